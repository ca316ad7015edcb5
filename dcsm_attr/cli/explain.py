"""``dcsm-attr segment``: photographs to label maps.

``dcsm-attr attribute``: photographs to class maps.

``dcsm-attr demo``: the whole method, offline, in under two minutes.
"""

import time
from pathlib import Path
from typing import Annotated

import typer

from dcsm_attr.cli.building import (
    SaliencyOptions,
    build_segmenter,
    network_arguments,
    parse_classes,
    resolve_device,
    segmenter_settings,
)
from dcsm_attr.cli.options import (
    Classes,
    Device,
    DeviceName,
    Labels,
    MaxPixels,
    ModelName,
    NoCrf,
    Output,
    Photographs,
    Precision,
    PrecisionChoice,
    Resume,
    WalkOptions,
    Weights,
    with_option_groups,
)
from dcsm_attr.cli.runs import expanded, for_each_image

__all__ = ["attribute", "demo", "segment"]


@with_option_groups
def segment(
    photographs: Photographs,
    saliency: SaliencyOptions,
    walking: WalkOptions,
    model: ModelName = "vgg16",
    weights: Weights = "DEFAULT",
    labels: Labels = "imagenet",
    classes: Classes = None,
    no_crf: NoCrf = False,
    max_pixels: MaxPixels = None,
    device: Device = DeviceName.AUTO,
    precision: Precision = PrecisionChoice.FLOAT32,
    output: Output = Path("out"),
    resume: Resume = False,
) -> None:
    """Segment photographs: class maps, background, dense CRF, label map.

    Writes for each image: labels.png (a palette picture in the colors of VOC), maps.npz (class maps and
    probabilities), overlay.png, overview.png (everything at a glance), manifest.json (classes, scores, every setting).
    And for the run run.json: where each image's results are, or why it could not be read, which ends nothing. Of
    an animation the first frame is taken.

    Examples:
      dcsm-attr segment photo.jpg

      dcsm-attr segment photos/ --model resnet50 --output results

      dcsm-attr segment pets.jpg --classes "golden retriever,tabby"

      dcsm-attr segment photo.jpg --model squeezenet1_1 --weights squeezenet.safetensors

      dcsm-attr segment photo.jpg --method simonyan --no-crf

      dcsm-attr segment photos/ --weights out/classifier/best.safetensors --method fusion

      dcsm-attr segment street.jpg --weights my-voc-vgg16.pth --labels voc --classes car,person
    """
    # Before the model, which may have to be downloaded: a folder without pictures is found out now.
    pictures = expanded(photographs)
    known = parse_classes(classes)
    provenance = network_arguments(model, weights, labels)
    further = {
        **walking.settings(resolve_device(device.value), saliency.method),
        **segmenter_settings(precision, max_pixels, no_crf),
    }
    segmenter = build_segmenter(model, weights, labels, device.value, saliency, **further)

    def work(photograph: Path, folder: Path) -> str:
        result = segmenter.segment(photograph, known, raw=True)
        result.save(folder, overview=True, provenance=provenance)
        shares = [float((result.labels == c + 1).float().mean()) for c in result.classes]
        found = ", ".join(f"{name} {share:.1%}" for name, share in zip(result.names, shares, strict=True))
        return f"nothing above the threshold; best: {found}" if result.fallback else found

    for_each_image(pictures, output, work, finished="manifest.json" if resume else None)


@with_option_groups
def attribute(
    photographs: Photographs,
    saliency: SaliencyOptions,
    model: ModelName = "vgg16",
    weights: Weights = "DEFAULT",
    labels: Labels = "imagenet",
    classes: Classes = None,
    max_pixels: MaxPixels = None,
    device: Device = DeviceName.AUTO,
    output: Output = Path("out"),
    resume: Resume = False,
) -> None:
    """Show where the model sees each class: the candidates' maps, raw and distinct.

    Writes for each image: attribution.png (every candidate's raw and distinct map), attribution.npz (the maps and
    their classes), attribution.json (names, scores, every setting). And for the run run.json: where each image's
    results are, or why it could not be read, which ends nothing. Of an animation the first frame is taken.

    Examples:
      dcsm-attr attribute photo.jpg

      dcsm-attr attribute pets.jpg --model resnet50 --classes "golden retriever,tabby"

      dcsm-attr attribute photo.jpg --variant caffe --no-guided

      dcsm-attr attribute photo.jpg --model squeezenet1_1 --weights squeezenet.safetensors
    """
    # Before the model, which may have to be downloaded: a folder without pictures is found out now.
    pictures = expanded(photographs)
    known = parse_classes(classes)
    provenance = network_arguments(model, weights, labels)
    segmenter = build_segmenter(model, weights, labels, device.value, saliency, max_pixels=max_pixels, crf=None)

    def work(photograph: Path, folder: Path) -> str:
        result = segmenter.segment(photograph, known, raw=True)
        result.save_attribution(folder, provenance=provenance)
        scores = result.class_maps.scores[0]
        return ", ".join(f"{result.class_names[c]} {float(scores[c]):.2f}" for c in result.candidates)

    for_each_image(pictures, output, work, finished="attribution.json" if resume else None)


def demo(
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="Where to write demo.png.")] = Path("out"),
    scenes: Annotated[int, typer.Option(min=1, help="How many unseen scenes to measure on.")] = 200,
    retrain: Annotated[
        bool, typer.Option("--retrain", help="First train the network again, into FOLDER, and use that one.")
    ] = False,
) -> None:
    """Show what the method does, without a network or a download.

    Draws scenes that the shipped network has never seen, finds where it sees each class, subtracts the classes from
    each other, segments with the dense CRF, prints the mean IoU of each step, and writes one figure. The network is a
    small CNN that this project trained from image-level labels alone.

    Examples:
      dcsm-attr demo

      dcsm-attr demo --scenes 20 --output pictures

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
        typer.echo(f"trained in {time.perf_counter() - start:.0f} s: {checkpoint}")
    result = run_demo(load_scene_net(checkpoint), scenes)
    typer.echo(f"mean IoU over {scenes} unseen scenes, background and 8 classes, classes detected by the network:")
    before = None
    for step, value in zip(STEPS, result.mean_iou, strict=True):
        gain = "" if before is None else f"  ({100 * (value - before):+.1f})"
        typer.echo(f"  {step:<18}{100 * value:5.1f}{gain}")
        before = value
    picture = output / "demo.png"
    with atomic_buffer(picture) as file:
        demo_figure(result).savefig(file, dpi=130)
    typer.echo(f"{picture} shows how; {time.perf_counter() - start:.0f} s in all.")
