#!/bin/bash
# Pseudo-labels on a cluster with SLURM: an array of jobs, each with one GPU and a part of the images.
#
#     IMAGES=list.txt LABELS=labels.csv WEIGHTS=best.safetensors OUTPUT=/shared/run sbatch examples/pseudo_label_slurm.sh
#
# A preempted job resumes: `scontrol requeue`, or the same command again. The job that ends last
# writes manifest.jsonl and report.html.
#SBATCH --job-name=pseudo-label
#SBATCH --array=0-15
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --time=04:00:00
#SBATCH --requeue
set -euo pipefail

dcsm-attr pseudo-label "$IMAGES" ${LABELS:+--image-labels "$LABELS"} \
    --weights "$WEIGHTS" \
    --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" \
    --overlays 1000 --report \
    --output "$OUTPUT"
