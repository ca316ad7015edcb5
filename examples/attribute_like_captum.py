"""Drop-in for a Captum workflow: the map of one class, maps of all classes, NoiseTunnel, a metric, a visualization.

    python examples/attribute_like_captum.py [FOLDER]

Runs offline with the shipped network and a generated scene. Writes FOLDER/captum.png.
"""

import argparse

import torch
from captum.attr import NoiseTunnel
from captum.metrics import sensitivity_max

from dcsm_attr import DistinctClassSaliency
from dcsm_attr.datasets.scenes import CLASS_NAMES, generate_scene
from dcsm_attr.io import make_writable_folder
from dcsm_attr.models.scene_net import MEAN, STD, load_scene_net
from dcsm_attr.segmentation.visualization import visualize_attribution


def main() -> None:
    """Attribute one scene."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default="out")
    folder = make_writable_folder(parser.parse_args().folder)

    model = load_scene_net()
    scene = generate_scene(7, seed=1)
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    x = ((scene.image / 255 - mean) / std)[None]

    dcs = DistinctClassSaliency(model)
    print("layers chosen:", ", ".join(dcs.layers))

    best = dcs.attribute(x)  # the best class, (N, 1, H, W) like any Captum method
    print("the best class's map:", tuple(best.shape), f"from {best.min():.2f} to {best.max():.2f}")

    maps = dcs.class_maps(x)  # every candidate class, from one forward pass per scale
    for c, detected in zip(maps.classes[0].tolist(), maps.detected[0].tolist(), strict=True):
        role = "detected" if detected else "contrast only"
        print(f"  {CLASS_NAMES[c]:<10} score {maps.scores[0, c]:.2f}, {role}")

    target = int(maps.classes[0, 0])
    smooth = NoiseTunnel(dcs).attribute(x, nt_samples=4, stdevs=0.1, target=target)
    change = (smooth - dcs.attribute(x, target)).abs().mean()
    print(f"smoothed over noise, the map of {CLASS_NAMES[target]} changes by {change:.3f} on average")
    print(f"sensitivity_max: {sensitivity_max(dcs.attribute, x, target=target).item():.3f}")

    figure, axes = visualize_attribution(best[0], scene.image.permute(1, 2, 0).numpy())
    axes.set_title(CLASS_NAMES[int(maps.scores[0].argmax())])
    figure.savefig(folder / "captum.png")
    print(folder / "captum.png")


if __name__ == "__main__":
    main()
