"""Draw the figures of the README, the tutorial and the how-to pages.

    python examples/draw_figures.py [FOLDER] [--scenes N]

Runs offline. Writes demo.png, scene-overview.png, subtraction.png and layers.png into FOLDER; without it, into
docs/figures.
"""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import nn

from dcsm_attr import DistinctClassSaliency
from dcsm_attr.datasets.scenes import CLASS_NAMES, generate_scene
from dcsm_attr.demo import demo_figure, run_demo, scene_segmenter
from dcsm_attr.io import atomic_path, make_writable_folder
from dcsm_attr.models.scene_net import MEAN, STD, load_scene_net
from dcsm_attr.segmentation.visualization import plot_attribution

# The scene of the tutorial.
_SCENE = generate_scene(15, seed=1)
_IMAGE = _SCENE.image.permute(1, 2, 0).numpy()


def main() -> None:
    """Draw all figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default=Path(__file__).parents[1] / "docs" / "figures")
    parser.add_argument("--scenes", type=int, default=200, help="number of scenes that demo.png is measured on")
    given = parser.parse_args()
    folder = make_writable_folder(given.folder)
    network = load_scene_net()
    result = run_demo(network, given.scenes, shown=4)
    with atomic_path(folder / "demo.png") as path:
        demo_figure(result).savefig(path, dpi=110)
    richest = result.shown[0].scene
    segmentation = scene_segmenter(network).segment(richest.image, raw=True)
    with atomic_path(folder / "scene-overview.png") as path:
        segmentation.overview().savefig(path, dpi=80)
    with atomic_path(folder / "subtraction.png") as path:
        subtraction(network).savefig(path, dpi=80)
    with atomic_path(folder / "layers.png") as path:
        layers(network).savefig(path, dpi=60)


def subtraction(network: nn.Module) -> Figure:
    """The raw maps of a scene's candidates, and below them the contrasted maps."""
    maps = DistinctClassSaliency(network).class_maps(_inputs(), raw=True)
    assert maps.raw is not None
    titles = [f"{CLASS_NAMES[c]} {maps.scores[0, c]:.2f}" for c in maps.classes[0].tolist()]
    return plot_attribution(_IMAGE, list(zip(titles, maps.maps[0].numpy(), strict=True)), list(maps.raw[0].numpy()))


def layers(network: nn.Module) -> Figure:
    """The map of the best class at each of the default layers."""
    maps = []
    for name in DistinctClassSaliency(network).layers:
        alone = DistinctClassSaliency(network, layer=name)
        maps.append((name, alone.attribute(_inputs(), attribute_to_layer_input=True)[0, 0].numpy()))
    return plot_attribution(_IMAGE, maps)


def _inputs() -> torch.Tensor:
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    return ((_SCENE.image / 255 - mean) / std)[None]


if __name__ == "__main__":
    main()
