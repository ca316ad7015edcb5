"""``dcsm-attr segment``: photographs to label maps."""

from pathlib import Path

from dcsm_attr.cli.building import build_segmenter, parsed_classes
from dcsm_attr.cli.options import Classes, Device, DeviceName, Labels, ModelName, Output, Photographs, Resume, Weights
from dcsm_attr.cli.photographs import for_each_photograph

__all__ = ["segment"]


def segment(
    photographs: Photographs,
    model: ModelName = "vgg16",
    weights: Weights = "DEFAULT",
    labels: Labels = "imagenet",
    classes: Classes = None,
    device: Device = DeviceName.AUTO,
    output: Output = Path("out"),
    resume: Resume = False,
) -> None:
    """Segment photographs: class maps, background, dense CRF, label map.

    Writes for each photograph: labels.png (a palette picture in the colours of VOC), maps.npz (class maps and
    probabilities), overlay.png, sheet.png (everything at a glance), manifest.json (classes, scores, every setting).

    Examples:
      dcsm-attr segment photo.jpg

      dcsm-attr segment photos/ --model resnet50 --output results

      dcsm-attr segment pets.jpg --classes "golden retriever,tabby"

      dcsm-attr segment photo.jpg --model squeezenet1_1 --weights squeezenet.safetensors

      dcsm-attr segment street.jpg --weights my-voc-vgg16.pth --labels voc --classes car,person
    """
    known = parsed_classes(classes)
    provenance = {"model": model, "weights": weights, "labels": labels}
    segmenter = build_segmenter(model, weights, labels, device.value)

    def work(photograph: Path, folder: Path) -> str:
        result = segmenter.segment(photograph, known, raw=True)
        result.save(folder, sheet=True, provenance=provenance)
        shares = [float((result.labels == c + 1).float().mean()) for c in result.classes]
        found = ", ".join(f"{name} {share:.1%}" for name, share in zip(result.names, shares, strict=True))
        return f"nothing above the threshold; best: {found}" if result.fallback else found

    for_each_photograph(photographs, output, work, finished="manifest.json" if resume else None)
