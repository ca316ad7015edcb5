"""What the commands that write seeds have in common: the photographs, the background, the folder and its report."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from dcsm_attr.cli.collections import labelled_collection
from dcsm_attr.cli.skipped import report_skipped

if TYPE_CHECKING:
    from dcsm_attr.backbones.classifier import Classifier
    from dcsm_attr.seeded.localisers import Localiser

__all__ = ["SeedOptions", "write_seed_folder"]


@dataclass(frozen=True)
class SeedOptions:
    """The options of which photographs get seeds, and of their background.

    Attributes:
        data, labels, split, saliency_layer, background_share, max_pixels, output: as the options of these names.
    """

    data: Path
    labels: Path | None
    split: str
    saliency_layer: str | None
    background_share: float
    max_pixels: int | None
    output: Path


def write_seed_folder(classifier: "Classifier", localiser: "Localiser", options: SeedOptions) -> None:
    """Write the seeds, and tell what became of them.

    Args:
        classifier: on the device where it is to run.
        localiser: for the foreground.
        options: for the rest.

    Raises:
        ValueError: if the classes of the photographs are not the classifier's, or an option is out of its range.
    """
    from dcsm_attr.files import writable_folder
    from dcsm_attr.seeded.seed_files import BackgroundSeeds, middle_layer, write_seeds
    from dcsm_attr.segmentation.label_files import Shard

    collection = labelled_collection(options.data, options.labels, options.split, classifier.class_names)
    folder = writable_folder(options.output)
    layer = options.saliency_layer or middle_layer(classifier.network)
    skipped = write_seeds(
        classifier.network,
        localiser,
        collection,
        folder,
        classifier.preprocess,
        BackgroundSeeds(layer, options.background_share),
        shard=Shard.of_this_process(),
        max_pixels=options.max_pixels,
    )
    typer.echo(f"{folder}: seeds of {len(collection) - len(skipped)} photographs; background by {layer}")
    report_skipped(skipped)
