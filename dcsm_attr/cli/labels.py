"""``dcsm-attr labels``: the image-level labels of a VOC folder, as a CSV file."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from tqdm import tqdm

from dcsm_attr.cli.options import MaxPixels, VocRoot
from dcsm_attr.cli.skipped import report_skipped

if TYPE_CHECKING:
    from dcsm_attr.datasets.masks import MaskReadError
    from dcsm_attr.datasets.voc_lists import VocEntry

__all__ = ["labels"]


def labels(
    voc_root: VocRoot,
    split: Annotated[
        list[str],
        typer.Option(
            metavar="NAME", help="A list in ImageSets/Segmentation; may be given several times.", show_default=False
        ),
    ],
    max_pixels: MaxPixels = None,
    output: Annotated[Path, typer.Option(metavar="FILE", help="The CSV file to write.")] = Path("labels.csv"),
) -> None:
    """Derive image-level labels: which classes each photograph shows.

    Reads the objects in Annotations, difficult ones included; where there is no such folder, the masks. Writes a line
    for each photograph: its id, its split and the names of its classes. Training reads this file, and never a mask. A
    photograph whose mask cannot be read is left out and named.

    Examples:
      dcsm-attr labels VOCdevkit/VOC2012 --split train

      dcsm-attr labels VOCdevkit/VOC2012 --split train_aug --output train_aug.csv

      dcsm-attr labels VOC --split train --split val --output VOC/image_labels.csv
    """
    from dcsm_attr.datasets.image_labels import ImageLabels, LabelRow, write_image_labels
    from dcsm_attr.datasets.masks import MaskReadError
    from dcsm_attr.datasets.voc import voc_class_names
    from dcsm_attr.datasets.voc_annotations import annotation_files
    from dcsm_attr.datasets.voc_lists import read_voc_list
    from dcsm_attr.files import writable_folder

    listed = [(name, entry) for name in split for entry in read_voc_list(voc_root, name)]
    _check_listed_once([entry.name for _, entry in listed])
    entries = [entry for _, entry in listed]
    annotations = annotation_files(voc_root, [entry.name for entry in entries])
    writable_folder(output.parent)
    class_names = voc_class_names(voc_root)
    derived = tqdm(_derived(entries, annotations, class_names, max_pixels), total=len(entries), unit="photo")
    found = {entry.name: (name, shown) for (name, entry), shown in zip(listed, derived, strict=True)}
    skipped = {name: str(shown) for name, (_, shown) in found.items() if isinstance(shown, MaskReadError)}
    rows = {name: LabelRow(of, shown) for name, (of, shown) in found.items() if not isinstance(shown, MaskReadError)}
    if not rows:
        raise ValueError(
            f"{voc_root}: none of the {len(found)} masks could be read; the first: {next(iter(skipped.values()))}"
        )
    write_image_labels(output, ImageLabels(class_names, rows))
    counts = Counter(class_names[c] for row in rows.values() for c in row.classes)
    typer.echo(f"{output}: {len(rows)} photographs, from the {'masks' if annotations is None else 'annotations'}")
    typer.echo(", ".join(f"{name} {count}" for name, count in counts.most_common()))
    report_skipped(skipped)


def _check_listed_once(names: Sequence[str]) -> None:
    from dcsm_attr.datasets.missing import first_five

    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(
            f"--split: {len(twice)} photographs are in two of the lists: {first_five(twice)}. Give lists "
            "that share none."
        )


def _derived(
    entries: "Sequence[VocEntry]",
    annotations: Sequence[Path] | None,
    class_names: Sequence[str],
    max_pixels: int | None,
) -> "Iterator[tuple[int, ...] | MaskReadError]":
    """The classes of each photograph, or why its mask cannot be read."""
    from dcsm_attr.datasets.masks import MaskReadError, classes_in_mask, read_mask
    from dcsm_attr.datasets.missing import require_files
    from dcsm_attr.datasets.voc_annotations import annotated_classes

    if annotations is not None:
        yield from (annotated_classes(annotation, class_names) for annotation in annotations)
        return
    masks = [entry.mask for entry in entries]
    require_files(masks, "masks", "Where there is no folder Annotations, the labels come from them.")
    for mask in masks:
        try:
            classes = classes_in_mask(read_mask(mask, class_count=len(class_names), max_pixels=max_pixels))
        except MaskReadError as error:
            yield error
            continue
        if not classes:
            raise ValueError(f"{mask}: shows no class; take the photograph out of the list.")
        yield classes
