"""``dcsm-attr attribute``: photographs to class maps."""

from pathlib import Path

from dcsm_attr.cli.building import SaliencyOptions, build_segmenter, chosen_network, parsed_classes
from dcsm_attr.cli.option_groups import with_option_groups
from dcsm_attr.cli.options import (
    Classes,
    Device,
    DeviceName,
    Labels,
    MaxPixels,
    ModelName,
    Output,
    Photographs,
    Resume,
    Weights,
)
from dcsm_attr.cli.photographs import expanded, for_each_photograph

__all__ = ["attribute"]


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

    Writes for each photograph: attribution.png (every candidate's raw and distinct map), attribution.npz (the maps and
    their classes), attribution.json (names, scores, every setting). And for the run run.json: where each photograph's
    results are, or why it could not be read, which ends nothing. Of an animation the first frame is taken.

    Examples:
      dcsm-attr attribute photo.jpg

      dcsm-attr attribute pets.jpg --model resnet50 --classes "golden retriever,tabby"

      dcsm-attr attribute photo.jpg --variant caffe --no-guided

      dcsm-attr attribute photo.jpg --model squeezenet1_1 --weights squeezenet.safetensors
    """
    # Before the model, which may have to be downloaded: a folder without pictures is found out now.
    pictures = expanded(photographs)
    known = parsed_classes(classes)
    provenance = chosen_network(model, weights, labels)
    segmenter = build_segmenter(model, weights, labels, device.value, saliency, max_pixels=max_pixels, crf=None)

    def work(photograph: Path, folder: Path) -> str:
        result = segmenter.segment(photograph, known, raw=True)
        result.save_attribution(folder, provenance=provenance)
        scores = result.saliency.scores[0]
        return ", ".join(f"{result.class_names[c]} {float(scores[c]):.2f}" for c in result.candidates)

    for_each_photograph(pictures, output, work, finished="attribution.json" if resume else None)
