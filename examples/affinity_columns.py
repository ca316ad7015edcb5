"""Draw the steps of AffinityNet for some images, like Figure 5 of its paper.

    dcsm-attr scenes scenes --count 100
    dcsm-attr affinity scenes --weights demo --output affinity
    python examples/affinity_columns.py scenes demo affinity/network/affinity_net.safetensors

The columns are the image, the ground truth, class activation maps, low predicted affinities, and the label maps after
the walk and after the CRF. Works with any VOC folder and any classifier of `dcsm-attr train`.
"""

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dcsm_attr import ClassActivationMaps, Segmenter
from dcsm_attr.cli.build import load_trained_classifier
from dcsm_attr.datasets.masks import VOID, overlay, read_mask
from dcsm_attr.datasets.voc import voc_collection
from dcsm_attr.models.affinity_net import Offsets, neighbor_offsets, overlap_slices
from dcsm_attr.models.checkpoint import load_affinity_net
from dcsm_attr.segmentation.visualization import blank_figure, draw_heat_map, draw_image, finish_layout
from dcsm_attr.wsss.affinity import RELEASED_EXPONENTS
from dcsm_attr.wsss.random_walk import SemanticWalk


def main() -> None:
    """Draw evenly spaced images of a split."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("voc_root")
    parser.add_argument("classifier", help="demo, or a file of dcsm-attr train")
    parser.add_argument("affinity_net", help="a file of dcsm-attr affinity")
    parser.add_argument("--split", default="val")
    parser.add_argument("--count", type=int, default=6)
    parser.add_argument("--background", type=float, default=RELEASED_EXPONENTS.walk)
    parser.add_argument("--output", default="affinity-columns.png")
    arguments = parser.parse_args()

    classifier = load_trained_classifier(arguments.classifier)
    walk = SemanticWalk(load_affinity_net(arguments.affinity_net))
    segmenter = Segmenter(
        classifier.network,
        saliency=ClassActivationMaps(classifier.network, pooling=classifier.pooling),
        class_names=classifier.class_names,
        preprocess=classifier.preprocess,
        background_exponent=arguments.background,
        walk=walk,
    )
    items = voc_collection(arguments.voc_root, arguments.split).evenly_spaced(arguments.count).images
    first = segmenter.prepare_image(items[0].path).image
    figure, axes = blank_figure(first, len(items), 6)
    for row, item in zip(axes, items, strict=True):
        result = segmenter.segment(item.path, item.classes)
        prepared = segmenter.prepare_image(item.path).canvas
        affinities = walk.affinities(prepared.crop(prepared.tensor))
        low = F.interpolate(
            boundaries(affinities, neighbor_offsets(walk.radius)), result.image.shape[:2], mode="bilinear"
        )
        truth = read_mask(item.mask, class_count=len(classifier.class_names)).numpy()
        draw_image(row[0], result.image, ", ".join(result.names))
        draw_image(row[1], overlay(result.image, np.where(truth == VOID, 0, truth)), "ground truth")
        draw_heat_map(row[2], result.image, result.class_maps.maps[0].amax(dim=0).numpy(), "class activation maps")
        draw_heat_map(row[3], result.image, low[0, 0].numpy(), "low affinities")
        draw_image(row[4], overlay(result.image, result.display_labels(result.unrefined)), "after the walk")
        draw_image(row[5], overlay(result.image, result.display_labels()), "after the CRF")
    finish_layout(figure).savefig(arguments.output, dpi=90)
    print(arguments.output)


def boundaries(affinities: Tensor, offsets: Offsets) -> Tensor:
    """One minus the mean affinity of each position with its neighbors in all directions.

    Args:
        affinities: ``(N, P, h, w)`` in [0, 1].
        offsets: P pairs ``(dy, dx)``, those of the affinities.

    Returns:
        ``(N, 1, h, w)`` in [0, 1]; 0 for a position without neighbors.
    """
    count, _, height, width = affinities.shape
    total, neighbors = affinities.new_zeros(count, height, width), affinities.new_zeros(height, width)
    for pair, offset in enumerate(offsets):
        sources, targets = overlap_slices(height, width, offset)
        values = affinities[:, pair, sources[0], sources[1]]
        for rows, columns in (sources, targets):
            total[:, rows, columns] += values
            neighbors[rows, columns] += 1
    return torch.where(neighbors > 0, 1 - total / neighbors.clamp(min=1), 0.0)[:, None]


if __name__ == "__main__":
    main()
