"""``dcsm-attr segment``: photographs to label maps."""

from pathlib import Path

from dcsm_attr.cli.building import (
    SaliencyOptions,
    build_segmenter,
    chosen_device,
    chosen_network,
    parsed_classes,
    segmenter_settings,
)
from dcsm_attr.cli.option_groups import with_option_groups
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
    Weights,
)
from dcsm_attr.cli.photographs import expanded, for_each_photograph
from dcsm_attr.cli.walking import WalkOptions

__all__ = ["segment"]


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

    Writes for each photograph: labels.png (a palette picture in the colours of VOC), maps.npz (class maps and
    probabilities), overlay.png, sheet.png (everything at a glance), manifest.json (classes, scores, every setting).
    And for the run run.json: where each photograph's results are, or why it could not be read, which ends nothing. Of
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
    known = parsed_classes(classes)
    provenance = chosen_network(model, weights, labels)
    further = {
        **walking.settings(chosen_device(device.value), saliency.method),
        **segmenter_settings(precision, max_pixels, no_crf),
    }
    segmenter = build_segmenter(model, weights, labels, device.value, saliency, **further)

    def work(photograph: Path, folder: Path) -> str:
        result = segmenter.segment(photograph, known, raw=True)
        result.save(folder, sheet=True, provenance=provenance)
        shares = [float((result.labels == c + 1).float().mean()) for c in result.classes]
        found = ", ".join(f"{name} {share:.1%}" for name, share in zip(result.names, shares, strict=True))
        return f"nothing above the threshold; best: {found}" if result.fallback else found

    for_each_photograph(pictures, output, work, finished="manifest.json" if resume else None)
