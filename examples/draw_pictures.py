"""Draw the pictures of the README.

    python examples/draw_pictures.py [FOLDER]

Runs offline. Writes FOLDER/demo.png and FOLDER/scene-sheet.png; without FOLDER, into docs/pictures.
"""

import argparse
from pathlib import Path

from dcsm_attr.backbones.scene_net import load_scene_net
from dcsm_attr.demo.figure import demo_figure
from dcsm_attr.demo.run import run_demo, scene_segmenter
from dcsm_attr.files import atomic_path, writable_folder


def main() -> None:
    """Draw all pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default=Path(__file__).parents[1] / "docs" / "pictures")
    folder = writable_folder(parser.parse_args().folder)
    network = load_scene_net()
    result = run_demo(network, 200, shown=4)
    with atomic_path(folder / "demo.png") as path:
        demo_figure(result).savefig(path, dpi=110)
    richest = result.shown[0].scene
    segmentation = scene_segmenter(network).segment(richest.image, raw=True)
    with atomic_path(folder / "scene-sheet.png") as path:
        segmentation.sheet().savefig(path, dpi=80)


if __name__ == "__main__":
    main()
