"""Measure the mean IoU of the demo for networks from several training seeds, on several series of unseen scenes.

    python -m benchmarks.demo_seeds FOLDER

Trains one network per seed into FOLDER, about six minutes each on two cores; existing networks are reused. Writes
results/demo_seeds.json.
"""

import sys
from pathlib import Path

from dcsm_attr.demo import STEPS, TEST_SCENE_SEED, run_demo
from dcsm_attr.evaluation.result import run_environment
from dcsm_attr.io import make_writable_folder, write_json
from dcsm_attr.models.scene_net import load_scene_net
from dcsm_attr.training.scenes import train_scene_net

TRAINING_SEEDS = (0, 1, 2)
# The first is that of the demo; the weight of the CRF was chosen on none of them.
SCENE_SEEDS = (TEST_SCENE_SEED, 31, 32)
SCENES = 200


def main() -> None:
    """Measure, print a table, write the result."""
    folder = make_writable_folder(sys.argv[1])
    results = []
    print(f"{'network':>8}{'scenes':>8}" + "".join(f"{step:>19}" for step in STEPS))
    for training_seed in TRAINING_SEEDS:
        checkpoint = folder / f"seed-{training_seed}.safetensors"
        if not checkpoint.exists():
            train_scene_net(checkpoint, seed=training_seed)
        network = load_scene_net(checkpoint)
        for scene_seed in SCENE_SEEDS:
            means = run_demo(network, SCENES, scene_seed=scene_seed, shown=0).mean_iou
            print(f"{training_seed:>8}{scene_seed:>8}" + "".join(f"{100 * value:>19.1f}" for value in means))
            means_by_step = {step: round(100 * value, 2) for step, value in zip(STEPS, means, strict=True)}
            results.append({"network": training_seed, "scenes": scene_seed, "mean IoU in %": means_by_step})
    content = {
        "measured": run_environment("python -m benchmarks.demo_seeds FOLDER"),
        "scenes": SCENES,
        "results": results,
    }
    target = Path(__file__).parent / "results" / "demo_seeds.json"
    write_json(target, content)


if __name__ == "__main__":
    main()
