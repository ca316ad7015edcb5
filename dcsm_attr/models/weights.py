"""Classification models from a name and weights: torchvision's, or a file, of which nothing is executed."""

import difflib
import inspect
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dcsm_attr.datasets.labels import read_class_names
from dcsm_attr.datasets.masks import VOC_CLASSES

__all__ = [
    "UnsafeFileError",
    "WeightsError",
    "build_model",
    "load_class_names",
    "load_model",
    "load_weights",
    "load_weights_only",
    "read_weights",
]


_MAX_LISTED_MISMATCHES = 5


class WeightsError(ValueError):
    """Weights that cannot be read or do not fit the model; the message names the file and the first mismatches."""


def load_model(name: str, weights: str | Path, device: torch.device | str = "cpu") -> nn.Module:
    """Build a torchvision classification model with its weights.

    Args:
        name: any name of ``torchvision.models.list_models(module=torchvision.models)``.
        weights: ``"DEFAULT"`` or another name of torchvision's weights, which it downloads once; or a ``.safetensors``,
            ``.pth`` or ``.pt`` file with the model's parameters. The number of classes is the file's.
        device: of the model.

    Returns:
        The model, in evaluation mode.

    Raises:
        ValueError: if there is no such model.
        WeightsError: if the weights cannot be downloaded or read, or do not fit.
    """
    _check_name(name)
    # Modules draw initial weights even if they are replaced: this must not advance the caller's random numbers.
    with torch.random.fork_rng([]):
        if _is_file_name(weights):
            tensors = read_weights(weights)
            model = _build(name, _class_count(name, tensors))
            load_weights(model, tensors, str(weights))
        else:
            model = _load_pretrained(name, str(weights))
    return model.eval().to(device)


def build_model(name: str) -> nn.Module:
    """Build a torchvision classification model with weights drawn from PyTorch's global generator.

    Args:
        name: as in :func:`load_model`.

    Raises:
        ValueError: if there is no such model.
    """
    _check_name(name)
    model: nn.Module = torchvision.models.get_model(name, weights=None)
    return model


def _check_name(name: str) -> None:
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        near = difflib.get_close_matches(name.lower(), known, n=5)
        hint = f"Similar names: {', '.join(near)}." if near else "torchvision.models.list_models() lists them."
        raise ValueError(f"torchvision has no classification model {name!r}. {hint}")


def _is_file_name(weights: str | Path) -> bool:
    path = Path(weights)
    return isinstance(weights, Path) or path.suffix.lower() in _READERS or path.exists() or len(path.parts) > 1


def _load_pretrained(name: str, weights: str) -> nn.Module:
    published = torchvision.models.get_model_weights(name)
    choices = ["DEFAULT", *(entry.name for entry in published)]
    if weights not in choices:
        raise WeightsError(
            f"{weights!r} is neither a file nor among torchvision's weights of {name}: {', '.join(choices)}. A file "
            f"ends in {', '.join(_READERS)}."
        )
    try:
        model: nn.Module = torchvision.models.get_model(name, weights=weights)
    except OSError as error:
        raise WeightsError(
            f"the weights {weights} of {name} could not be downloaded ({error}). Without an internet "
            "connection, pass a local file."
        ) from error
    return model


def _build(name: str, classes: int) -> nn.Module:
    builder = torchvision.models.get_model_builder(name)
    # Some families draw initial weights slowly, which is unnecessary where weights are loaded.
    options = {"init_weights": False} if "init_weights" in inspect.signature(builder).parameters else {}
    model: nn.Module = builder(weights=None, num_classes=classes, **options)
    return model


def _class_count(name: str, tensors: Mapping[str, Tensor]) -> int:
    """Return the number of classes of a file: the rows of the parameter with the name of the model's last layer."""
    try:
        with torch.device("meta"):
            expected = _build(name, 1000).state_dict()
    except NotImplementedError:
        # RegNet computes its widths with tensors, which have no values on the meta device.
        expected = _build(name, 1000).state_dict()
    heads = [key for key, value in expected.items() if value.ndim >= 2 and value.shape[0] == 1000]
    return next((len(tensors[key]) for key in reversed(heads) if key in tensors and tensors[key].ndim), 1000)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a file of parameters without executing anything that it contains.

    Args:
        path: ``.safetensors``; or ``.pth`` or ``.pt``, opened with ``weights_only=True``, holding a state dict or a
            checkpoint with one under ``"state_dict"`` or ``"model"``.

    Returns:
        Names and tensors on the CPU, half precision converted to float32.

    Raises:
        WeightsError: if the file is missing, of another kind, incomplete, or holds more than tensors.
    """
    path = Path(path)
    if path.is_dir():
        raise WeightsError(f"{path}: weights are read from a file, but this is a folder. Name the file in it.")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise WeightsError(f"{path}: weights are read from {', '.join(_READERS)} files, not from {path.suffix!r}.")
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such file.")
    if not path.stat().st_size:
        raise WeightsError(f"{path}: the file is empty. Copy or download it again.")
    content = reader(path)
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise WeightsError(f"{path}: holds no state dict (names and tensors), but {_summarize(content)}.")
    unsupported = [name for name, tensor in content.items() if not _is_plain(tensor)]
    if unsupported:
        raise WeightsError(
            f"{path}: weights must be dense tensors with all of their values in the file; {_list_first(unsupported)} "
            "are not (sparse, quantized, without data, or expanded). Save the state dict of an ordinary float model."
        )
    return {name: _to_float32(tensor) for name, tensor in content.items()}


def _summarize(content: Any) -> str:
    return (
        f"a dict with {', '.join(map(str, list(content)[:5]))}"
        if isinstance(content, Mapping)
        else type(content).__name__
    )


def _is_plain(tensor: Tensor) -> bool:
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        return False
    # A small file may declare a tensor of any size whose elements are all the same one.
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _to_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() and tensor.element_size() < 4 else tensor


def _read_safetensors(path: Path) -> Any:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: not a complete safetensors file ({error}).") from error


def _read_torch(path: Path) -> Any:
    try:
        return load_weights_only(path)
    except UnsafeFileError as error:
        raise WeightsError(
            f"{path}: {error}; nothing in it was executed. Save the state dict alone: torch.save(model.state_dict(), "
            "path), or use safetensors."
        ) from error
    # torch.load raises exceptions of many types on damaged files.
    except Exception as error:
        raise WeightsError(f"{path}: not a complete PyTorch file ({type(error).__name__}: {error}).") from error


_READERS = {".safetensors": _read_safetensors, ".pth": _read_torch, ".pt": _read_torch}


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Load tensors into a model, all or none.

    Args:
        model: changed in place.
        tensors: names and values.
        source: where the tensors come from, for messages.

    Raises:
        WeightsError: if names, shapes or kinds of numbers differ, or values are NaN or infinite; the message names the
            first five.
    """
    expected = model.state_dict()
    # Files from before this counter existed lack it, and evaluation does not use it.
    counters = {name for name in expected if name.endswith("num_batches_tracked")}
    differences = [f"{name} is missing" for name in expected if name not in tensors and name not in counters]
    differences += [f"{name} is not in the model" for name in tensors if name not in expected]
    differences += [
        f"{name} is {tuple(tensors[name].shape)}, the model has {tuple(value.shape)}"
        for name, value in expected.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    differences += [
        f"{name} is {tensors[name].dtype}, the model has {value.dtype}"
        for name, value in expected.items()
        if name in tensors and name not in counters and _number_kind(tensors[name]) != _number_kind(value)
    ]
    if differences:
        raise WeightsError(
            f"{source} does not fit {type(model).__name__}: {_list_first(differences)}. Use the model that the "
            "weights were saved from."
        )
    broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        raise WeightsError(
            f"{source}: weights must be finite, but {_list_first(broken)} hold NaN or infinity, from a training that "
            "diverged or a damaged file. Use an earlier checkpoint."
        )
    model.load_state_dict(dict(tensors), strict=False)


def _list_first(items: Sequence[str]) -> str:
    more = len(items) - _MAX_LISTED_MISMATCHES
    return "; ".join(items[:_MAX_LISTED_MISMATCHES]) + (f"; and {more} more" if more > 0 else "")


def _number_kind(tensor: Tensor) -> tuple[bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex()


def load_class_names(labels: str | Path) -> tuple[str, ...]:
    """Return the names of a model's classes, in the order of its scores.

    Args:
        labels: ``"voc"``, ``"imagenet"``, or a text file with one name per line.

    Raises:
        OSError: if the file cannot be opened.
        ValueError: if there is no such file, or as :func:`dcsm_attr.datasets.labels.read_class_names`.
    """
    if labels == "voc":
        return VOC_CLASSES
    if labels == "imagenet":
        categories: Sequence[str] = torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"]
        return tuple(categories)
    path = Path(labels)
    if not path.is_file():
        raise ValueError(
            f"labels must be 'voc', 'imagenet' or a text file with one name per line; there is no file {path}."
        )
    return read_class_names(path)


class UnsafeFileError(ValueError):
    """A file that contains code: Python objects, or a TorchScript program."""


def load_weights_only(path: Path) -> Any:
    """Load tensors and plain values, without executing anything in the file.

    Args:
        path: written by ``torch.save``.

    Returns:
        The saved object, on the CPU.

    Raises:
        UnsafeFileError: if reading the whole file would execute code.
        Exception: of many kinds, if the file is damaged.
    """
    # PyTorch before 2.6 executes such an archive, even with weights_only.
    if _is_torchscript(path):
        raise UnsafeFileError("it is a TorchScript archive, which holds a program")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UnsafeFileError("it holds Python objects besides tensors, or is damaged") from error


def _is_torchscript(path: Path) -> bool:
    # The test of PyTorch itself, with its own reader: another reader might see another archive in the same bytes.
    try:
        return "constants.pkl" in torch._C.PyTorchFileReader(str(path)).get_all_records()
    except RuntimeError:
        return False
