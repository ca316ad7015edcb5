"""Gradients on disk: computed once per image, and shared by all tables, settings and runs that need them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from dcsm_attr.attribution import DistinctClassSaliency, Simonyan
from dcsm_attr.attribution.cached_gradients import CachedGradients, compute_gradients
from dcsm_attr.attribution.layers import default_layers, layer_blocks
from dcsm_attr.datasets.preprocess import CanvasImage
from dcsm_attr.evaluation.result import parameters_digest
from dcsm_attr.io import atomic_path, make_writable_folder, open_run_folder
from dcsm_attr.models.checkpoint import Classifier

__all__ = ["OUTER_SCALES", "GradientStore", "PassName"]

#: ``"guided"``: all blocks of layers at the paper's three scales, for up to 15 candidates. ``"outer"``: the default
#: layers at two more scales. ``"plain"``: without the guided rule. ``"images"``: the gradient at the image (Simonyan).
#: ``"matconvnet"`` and ``"caffe"``: the two released codes.
PassName = Literal["guided", "outer", "plain", "images", "matconvnet", "caffe"]

#: Scales around the paper's three: 300 and 700 pixels of 500.
OUTER_SCALES = (0.6, 1.4)

# The paper's Table 4 ends at 15 candidates.
_MAX_CANDIDATES = 15
_MIN_CANDIDATES = 4


class GradientStore:
    """Gradients of images, one file per pass and image, computed when they are first requested.

    Several processes may share a folder: a file appears only when it is complete, and two processes that compute the
    same file write the same content.

    Attributes:
        parameters: digest of the parameters of the classifier whose gradients are stored.
    """

    def __init__(self, folder: str | Path, classifier: Classifier) -> None:
        """Open a folder, which is created if missing.

        Args:
            folder: needs about 7 MB per image with a canvas of 320 pixels, if all passes are requested.
            classifier: computes the gradients.

        Raises:
            OSError: if the folder cannot be written to.
        """
        self._folder = make_writable_folder(folder)
        self._passes = _gradient_passes(classifier)
        self.parameters = parameters_digest(classifier.network)
        self._preprocess = asdict(classifier.preprocess)
        self._checked: set[PassName] = set()

    def load_or_compute(
        self, name: PassName, image: str, prepared: CanvasImage, required: Sequence[int], by_score: Sequence[int]
    ) -> CachedGradients:
        """Return the gradients of one image.

        Args:
            name: name of the pass.
            image: id of the image.
            prepared: the image on its canvas.
            required: classes that are stored whatever their score.
            by_score: all classes, the best first.

        Raises:
            OSError: if a file cannot be read or written.
            ValueError: if the folder belongs to another network, or to other settings of the pass.
        """
        self._check_folder(name)
        gradient_pass = self._passes[name]
        candidates = list(dict.fromkeys([*required, *by_score[: gradient_pass.candidates]]))
        path = self._folder / name / f"{image}.safetensors"
        gradients = _read_gradients(path, gradient_pass.points)
        # Image-level labels that were corrected later may require other classes.
        if gradients is None or not set(candidates) <= set(gradients.runs[0].classes[0].tolist()):
            gradients = gradient_pass.compute(prepared, candidates)
            with atomic_path(path) as temporary:
                save_file(gradients.tensors(), temporary)
        return gradients

    def _check_folder(self, name: PassName) -> None:
        if name in self._checked:
            return
        gradient_pass = self._passes[name]
        settings = {
            "parameters": self.parameters,
            "preprocess": self._preprocess,
            "pass": {
                **gradient_pass.method.settings,
                "points": gradient_pass.points,
                "candidates": gradient_pass.candidates,
            },
        }
        open_run_folder(self._folder / name, settings, "gradients", results=["*.safetensors"])
        self._checked.add(name)


@dataclass(frozen=True)
class _GradientPass:
    """One way to compute gradients: everything that the :class:`CachedGradients` of an image depend on.

    Attributes:
        method: computes them.
        candidates: number of best classes that are stored, in addition to those that are required.
    """

    method: DistinctClassSaliency | Simonyan
    candidates: int

    @property
    def points(self) -> list[str]:
        return list(self.method.layers) if isinstance(self.method, DistinctClassSaliency) else ["images"]

    def compute(self, prepared: CanvasImage, candidates: list[int]) -> CachedGradients:
        """Compute the gradients of one image, on the CPU."""
        parameter = next(self.method.forward_func.parameters())
        images = prepared.tensor[None].to(parameter.device)
        if isinstance(self.method, Simonyan):
            gradients = compute_gradients(self.method, images, classes=candidates)
        else:
            gradients = compute_gradients(self.method, images, candidates=candidates, attribute_to_layer_input=True)
        tensors = {name: tensor.cpu() for name, tensor in gradients.tensors().items()}
        return CachedGradients.from_tensors(tensors, gradients.runs[0].points)


def _gradient_passes(classifier: Classifier) -> dict[PassName, _GradientPass]:
    network, pooling = classifier.network, classifier.pooling
    default = default_layers(network)
    blocks = [name for block in layer_blocks(network) for name in block]

    def dcsm_pass(layers: list[str], candidates: int, **settings: Any) -> _GradientPass:
        return _GradientPass(DistinctClassSaliency(network, layers, pooling=pooling, **settings), candidates)

    return {
        "guided": dcsm_pass(blocks, _MAX_CANDIDATES),
        "outer": dcsm_pass(default, _MIN_CANDIDATES, scales=OUTER_SCALES),
        "plain": dcsm_pass(default, _MIN_CANDIDATES, guided=False),
        "images": _GradientPass(Simonyan(network, pooling=pooling), 1),
        "matconvnet": dcsm_pass(default, _MIN_CANDIDATES, variant="matconvnet"),
        "caffe": dcsm_pass(default, _MIN_CANDIDATES, variant="caffe"),
    }


def _read_gradients(path: Path, points: list[str]) -> CachedGradients | None:
    """Read a file of gradients; None if it is missing, or damaged so that it has to be written again."""
    try:
        return CachedGradients.from_tensors(load_file(path), points)
    except (FileNotFoundError, SafetensorError, ValueError):
        return None
