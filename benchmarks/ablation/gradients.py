"""Gradients on disk: taken once for each image, and shared by all settings and runs that need them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from dcsm_attr.attribution import DistinctClassSaliency, Simonyan
from dcsm_attr.attribution.cached_gradients import CachedGradients, compute_gradients
from dcsm_attr.attribution.layers import default_layers, layer_blocks
from dcsm_attr.datasets.preprocess import CanvasImage
from dcsm_attr.evaluation.result import parameters_digest
from dcsm_attr.io import atomic_path, make_writable_folder, open_run_folder
from dcsm_attr.models.checkpoint import Classifier

__all__ = ["OUTER_SCALES", "GradientStore", "PassName", "gradient_passes"]


PassName = str

#: Scales around the paper's three: 300 and 700 pixels of 500.
OUTER_SCALES = (0.6, 1.4)
# The paper's Table 4 ends at 15 candidates.
_MAX_CANDIDATES = 15
_MIN_CANDIDATES = 4


@dataclass(frozen=True)
class _Pass:
    """One way to take gradients: what :class:`CachedGradients` depend on.

    Attributes:
        method: takes them.
        candidates: so many of the best classes are kept, beside those that are required.
    """

    method: DistinctClassSaliency | Simonyan
    candidates: int

    @property
    def points(self) -> list[str]:
        return list(self.method.layers) if isinstance(self.method, DistinctClassSaliency) else ["images"]


def gradient_passes(classifier: Classifier) -> dict[PassName, _Pass]:
    """The passes that the ablations need, by name.

    ``"guided"``: every block of layers at the paper's three scales, for up to 15 candidates. ``"outer"``: the default
    layers at two scales more. ``"plain"``: without guiding. ``"images"``: the gradient at the image (Simonyan).
    ``"matconvnet"`` and ``"caffe"``: the two released codes.
    """
    network, pooling = classifier.network, classifier.pooling
    default = default_layers(network)
    blocks = [name for block in layer_blocks(network) for name in block]

    def at_inputs(layers: list[str], **settings: Any) -> DistinctClassSaliency:
        return DistinctClassSaliency(network, layers, pooling=pooling, **settings)

    return {
        "guided": _Pass(at_inputs(blocks), _MAX_CANDIDATES),
        "outer": _Pass(at_inputs(default, scales=OUTER_SCALES), _MIN_CANDIDATES),
        "plain": _Pass(at_inputs(default, guided=False), _MIN_CANDIDATES),
        "images": _Pass(Simonyan(network, pooling=pooling), 1),
        "matconvnet": _Pass(at_inputs(default, variant="matconvnet"), _MIN_CANDIDATES),
        "caffe": _Pass(at_inputs(default, variant="caffe"), _MIN_CANDIDATES),
    }


class GradientStore:
    """Kept gradients of images, one file for each pass and photograph, taken when they are first asked for.

    Several processes may share a folder: files appear when they are complete, and whoever comes second writes the same.

    Attributes:
        parameters: digest of the classifier's parameters, of which all gradients are.
    """

    def __init__(self, folder: str | Path, classifier: Classifier) -> None:
        """Open a folder, or begin one.

        Args:
            folder: about 7 MB an image with a canvas of 320 pixels, when all passes were asked for.
            classifier: whose gradients they are.

        Raises:
            OSError: if the folder cannot be written to.
        """
        self._folder = make_writable_folder(folder)
        self._passes = gradient_passes(classifier)
        self.parameters = parameters_digest(classifier.network)
        self._preprocess = asdict(classifier.preprocess)
        self._checked: set[PassName] = set()

    def gradients(
        self, name: PassName, photograph: str, prepared: CanvasImage, required: Sequence[int], by_score: Sequence[int]
    ) -> CachedGradients:
        """The gradients of one image.

        Args:
            name: of the pass.
            photograph: its id.
            prepared: the image.
            required: classes that are kept whatever their score.
            by_score: all classes, the best first.

        Raises:
            OSError: if a file cannot be read or written.
            ValueError: if the folder belongs to another network, or to other settings of the pass.
        """
        self._check(name)
        one = self._passes[name]
        wanted = list(dict.fromkeys([*required, *by_score[: one.candidates]]))
        path = self._folder / name / f"{photograph}.safetensors"
        kept = _read(path, one.points)
        # Labels that were corrected since may require other classes.
        if kept is None or not set(wanted) <= set(kept.runs[0].classes[0].tolist()):
            kept = self._taken(one, prepared, wanted)
            with atomic_path(path) as temporary:
                save_file(kept.tensors(), temporary)
        return kept

    def _taken(self, one: _Pass, prepared: CanvasImage, candidates: list[int]) -> CachedGradients:
        parameter = next(one.method.forward_func.parameters())
        images = prepared.tensor[None].to(parameter.device)
        if isinstance(one.method, Simonyan):
            return _on_cpu(compute_gradients(one.method, images, classes=candidates))
        return _on_cpu(compute_gradients(one.method, images, candidates=candidates, attribute_to_layer_input=True))

    def _check(self, name: PassName) -> None:
        if name in self._checked:
            return
        one = self._passes[name]
        settings = {**one.method.settings, "points": one.points, "candidates": one.candidates}
        described = {"parameters": self.parameters, "preprocess": self._preprocess, "pass": settings}
        open_run_folder(self._folder / name, described, "gradients", results=["*.safetensors"])
        self._checked.add(name)


def _read(path: Path, points: list[str]) -> CachedGradients | None:
    """What the file holds; None if there is none, or it is damaged and has to be made again."""
    try:
        return CachedGradients.from_tensors(load_file(path), points)
    except (FileNotFoundError, SafetensorError, ValueError):
        return None


def _on_cpu(kept: CachedGradients) -> CachedGradients:
    return CachedGradients.from_tensors(
        {name: tensor.cpu() for name, tensor in kept.tensors().items()}, kept.runs[0].points
    )
