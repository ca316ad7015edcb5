"""``dcsm-attr segment``, ``attribute`` and ``demo``: explain and segment images."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dcsm_attr.cli.build import build_segmenter, model_arguments, parse_classes, resolve_device
from dcsm_attr.cli.options import (
    OUTPUT,
    Classes,
    ImageFiles,
    MaskOptions,
    MaxPixels,
    MethodOptions,
    ModelOptions,
    Output,
    Overwrite,
    with_option_groups,
)
from dcsm_attr.cli.runs import expand_paths, process_images

if TYPE_CHECKING:
    from dcsm_attr.segmentation import Segmenter

__all__ = ["attribute", "demo", "segment"]


@with_option_groups
def segment(
    images: ImageFiles,
    model: ModelOptions,
    method: MethodOptions,
    mask: MaskOptions,
    classes: Classes = None,
    max_pixels: MaxPixels = None,
    output: Output = Path("out/segment"),
    overwrite: Overwrite = False,
) -> None:
    """Segment images: class maps, background, dense CRF, label map.

    Writes into a folder per image: labels.png (a palette image in the colors of VOC), maps.npz (class maps and
    probabilities), overlay.png, overview.png (all steps), and manifest.json (classes, scores, and all settings). Writes
    run.json, which lists the folder of each image, or why the image could not be read. Only the first frame of an
    animation is used. Running the same command again resumes an interrupted run.

    Examples:
      dcsm-attr segment photo.jpg

      dcsm-attr segment photos/ --model resnet50 --output results

      dcsm-attr segment pets.jpg --classes "golden retriever,tabby"

      dcsm-attr segment photo.jpg --model squeezenet1_1 --weights squeezenet.safetensors

      dcsm-attr segment photo.jpg --method simonyan --no-crf

      dcsm-attr segment photos/ --weights out/classifier/best.safetensors --method fusion

      dcsm-attr segment street.jpg --weights my-voc-vgg16.pth --class-names voc --classes car,person
    """
    # Before loading the model, which may have to be downloaded: a folder without images is an error.
    files = expand_paths(images)
    known = parse_classes(classes)
    settings = mask.settings(resolve_device(model.device), method.method)
    segmenter = build_segmenter(model, method, max_pixels=max_pixels, **settings)
    provenance = _provenance(segmenter, model, known)

    def process(image: Path, folder: Path) -> str:
        result = segmenter.segment(image, known, raw=True)
        result.save(folder, overview=True, provenance=provenance)
        shares = [float((result.labels == c + 1).float().mean()) for c in result.classes]
        found = ", ".join(f"{name} {share:.1%}" for name, share in zip(result.names, shares, strict=True))
        return f"nothing above the threshold; best: {found}" if result.fallback else found

    process_images(
        files,
        output,
        _run_settings(segmenter, provenance),
        process,
        contents="segmentations",
        manifest="manifest.json",
        overwrite=overwrite,
    )


@with_option_groups
def attribute(
    images: ImageFiles,
    model: ModelOptions,
    method: MethodOptions,
    classes: Classes = None,
    max_pixels: MaxPixels = None,
    output: Output = Path("out/attribute"),
    overwrite: Overwrite = False,
) -> None:
    """Compute class maps: where the model sees each candidate class, before and after the contrast.

    Writes into a folder per image: attribution.png (the maps of all candidates), attribution.npz (the maps and their
    classes), and attribution.json (names, scores, and all settings). Writes run.json, which lists the folder of each
    image, or why the image could not be read. Only the first frame of an animation is used. Running the same command
    again resumes an interrupted run.

    Examples:
      dcsm-attr attribute photo.jpg

      dcsm-attr attribute pets.jpg --model resnet50 --classes "golden retriever,tabby"

      dcsm-attr attribute photo.jpg --preset tuned

      dcsm-attr attribute photo.jpg --model squeezenet1_1 --weights squeezenet.safetensors
    """
    # Before loading the model, which may have to be downloaded: a folder without images is an error.
    files = expand_paths(images)
    known = parse_classes(classes)
    segmenter = build_segmenter(model, method, max_pixels=max_pixels, crf=None)
    provenance = _provenance(segmenter, model, known)

    def process(image: Path, folder: Path) -> str:
        result = segmenter.segment(image, known, raw=True)
        result.save_attribution(folder, provenance=provenance)
        scores = result.class_maps.scores[0]
        return ", ".join(f"{result.class_names[c]} {float(scores[c]):.2f}" for c in result.candidates)

    process_images(
        files,
        output,
        _run_settings(segmenter, provenance),
        process,
        contents="attributions",
        manifest="attribution.json",
        overwrite=overwrite,
    )


def _provenance(segmenter: "Segmenter", model: ModelOptions, classes: list[int | str] | None) -> dict[str, Any]:
    """What a result depends on in addition to the segmenter's settings."""
    from dcsm_attr.evaluation.result import parameters_digest

    return {**model_arguments(model), "parameters": parameters_digest(segmenter.model), "classes": classes}


def _run_settings(segmenter: "Segmenter", provenance: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run. The digest of the parameters identifies the weights, wherever their file is."""
    settings = {**segmenter.settings, **provenance}
    del settings["weights"]
    return settings


def demo(
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for demo.png.", rich_help_panel=OUTPUT)] = Path(
        "out/demo"
    ),
    scenes: Annotated[int, typer.Option(min=1, help="Number of scenes to evaluate.")] = 200,
    retrain: Annotated[
        bool, typer.Option("--retrain", help="First train the network again, and save it in FOLDER.")
    ] = False,
) -> None:
    """Demonstrate the whole method offline, on generated scenes.

    Generates scenes that the included network was not trained on, computes the class maps, their contrast and the
    dense CRF, prints the mean IoU of each step, and writes a figure. The network is a small CNN that was trained from
    image-level labels only.

    Examples:
      dcsm-attr demo

      dcsm-attr demo --scenes 20 --output results

      dcsm-attr demo --retrain
    """
    from dcsm_attr.demo import STEPS, demo_figure, run_demo
    from dcsm_attr.io import atomic_buffer, make_writable_folder
    from dcsm_attr.models.scene_net import load_scene_net
    from dcsm_attr.training.scenes import train_scene_net

    start = time.perf_counter()
    output = make_writable_folder(output)
    checkpoint = None
    if retrain:
        checkpoint = output / "scene_net.safetensors"
        train_scene_net(checkpoint)
        typer.echo(f"{checkpoint}: trained in {time.perf_counter() - start:.0f} s")
    result = run_demo(load_scene_net(checkpoint), scenes)
    typer.echo(f"Mean IoU on {scenes} scenes, background and 8 classes, classes detected by the network:")
    before = None
    for step, value in zip(STEPS, result.mean_iou, strict=True):
        gain = "" if before is None else f"  ({100 * (value - before):+.1f})"
        typer.echo(f"  {step:<18}{100 * value:5.1f}{gain}")
        before = value
    figure = output / "demo.png"
    with atomic_buffer(figure) as file:
        demo_figure(result).savefig(file, dpi=130)
    typer.echo(f"{figure}: example scenes; {time.perf_counter() - start:.0f} s in total")
