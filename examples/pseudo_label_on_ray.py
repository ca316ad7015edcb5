"""Pseudo-labels of generated scenes by Ray Data, on this machine or on a cluster.

    python examples/pseudo_label_on_ray.py [--output FOLDER] [--actors N] [--gpus SHARE]
    RAY_ADDRESS=auto python examples/pseudo_label_on_ray.py --output /shared/run --actors 16 --gpus 0.5

With RAY_ADDRESS it runs on that cluster, whose machines need the package and access to the folder. For your own data,
`dcsm-attr pseudo-label IMAGES --engine ray` does the same. An interrupted run resumes.
"""

import argparse
from functools import partial
from pathlib import Path

from dcsm_attr import Segmenter
from dcsm_attr.datasets.preprocess import Preprocess
from dcsm_attr.datasets.scenes import write_scene_folder
from dcsm_attr.datasets.voc import voc_class_names, voc_collection
from dcsm_attr.io import FolderStorage
from dcsm_attr.models.scene_net import load_scene_net
from dcsm_attr.pipelines.batches import Outputs
from dcsm_attr.pipelines.ray import RayEngine
from dcsm_attr.pipelines.report import write_report
from dcsm_attr.pipelines.run import pseudo_label


def build_segmenter(class_names: tuple[str, ...], gpu: bool) -> Segmenter:
    """Build the segmenter in each actor. Only the name of this function is sent to the actors, not the model."""
    model = load_scene_net().to("cuda" if gpu else "cpu")
    return Segmenter(model, class_names=class_names, preprocess=Preprocess(size=96))


def main() -> None:
    """Generate scenes, label them, write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("out/ray"))
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--gpus", type=float, default=0.0, help="share of a GPU per actor")
    given = parser.parse_args()

    scenes = given.output / "scenes"
    if not scenes.exists():
        write_scene_folder(scenes, given.count, size=96)
    collection = voc_collection(scenes, "train", masks=False)
    storage = FolderStorage(given.output / "labels", ".unfinished")
    done = pseudo_label(
        partial(build_segmenter, voc_class_names(scenes), given.gpus > 0),
        collection,
        storage,
        outputs=Outputs(overlays=10),
        engine=RayEngine((given.actors, given.actors), gpus=given.gpus),
    )
    print(f"{storage.location}: {done.labeled} labeled, {write_report(storage)}")


if __name__ == "__main__":
    main()
