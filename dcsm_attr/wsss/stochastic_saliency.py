"""Many maps of each class from any method that explains a model, with dropout switched on: a stochastic DCSM.

Dropout that a model keeps in evaluation mode, so that any method gives other maps of the same picture each time.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from tqdm import trange

from dcsm_attr.attribution.class_maps import Saliency
from dcsm_attr.models.stochastic import use_generator

__all__ = ["ActiveDropout", "stochastic_class_maps"]


class ActiveDropout(TorchFunctionMode):
    """Within this context, dropout drops, whatever mode the model is in, with random numbers of its own.

    The methods of this package hold the model in evaluation mode, and give PyTorch's random state back as they found
    it; here dropout drops all the same, and each call draws on. Reached are ``nn.Dropout``, ``nn.Dropout2d`` and their
    functions, as :class:`~dcsm_attr.attribution.guided.GuidedRectifiers` reaches rectifiers.

    Examples::

        >>> dcs = DistinctClassSaliency(model)
        >>> with ActiveDropout(seed=0):
        ...     first, second = dcs.attribute(x), dcs.attribute(x)
    """

    def __init__(self, seed: int = 0) -> None:
        """Begin the random numbers.

        Args:
            seed: of what is dropped, on the CPU, so that it is the same on every device.
        """
        super().__init__()
        self._generator = torch.Generator().manual_seed(seed)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run ``func``; in place of dropout, drop."""
        kwargs = kwargs or {}
        if func is F.dropout:
            return self._dropped(*args, **kwargs, whole_channels=False)
        if func is F.dropout2d:
            return self._dropped(*args, **kwargs, whole_channels=True)
        return func(*args, **kwargs)

    def _dropped(
        self,
        input: Tensor,  # noqa: A002 - the name that dropout gives it.
        p: float = 0.5,
        training: bool = True,
        inplace: bool = False,
        *,
        whole_channels: bool,
    ) -> Tensor:
        shape = (*input.shape[:-2], 1, 1) if whole_channels else input.shape
        kept = torch.rand(shape, generator=self._generator).to(input.device) >= p
        scaled = kept.to(input.dtype) / (1 - p) if p < 1 else kept.to(input.dtype).zero_()
        return input.mul_(scaled) if inplace else input * scaled


def stochastic_class_maps(
    saliency: Saliency,
    image: Tensor,
    classes: Sequence[int],
    draws: int = 200,
    *,
    seed: int = 0,
    progress: bool = False,
) -> Iterator[Tensor]:
    """Explain one picture many times, with other units dropped each time.

    Drawn anew are the model's dropout (:class:`~dcsm_attr.wsss.stochastic_saliency.ActiveDropout`) and its stochastic
    selections; a model without either gives the same maps each time. Each draw is a whole run of the method;
    one more, without dropout, comes before the first.

    Args:
        saliency: for example ``DistinctClassSaliency(model)``.
        image: ``(1, 3, H, W)``, normalized as the model wants it.
        classes: K known classes of the picture.
        draws: N.
        seed: of what is dropped, the same on every device.
        progress: whether to show a bar.

    Yields:
        N times ``(K, H, W)``, in the order of the classes; for :func:`~dcsm_attr.wsss.ficklenet.aggregated`.

    Raises:
        ValueError: with the first map, if there is not one picture, or the number of draws is not positive.
    """
    if image.ndim != 4 or len(image) != 1:
        raise ValueError(f"image must be one picture, of shape (1, 3, H, W); got {tuple(image.shape)}.")
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}.")
    # What a method finds out about the model in its first run, such as the layers to look at, must not shift the draws.
    with use_generator(torch.Generator().manual_seed(seed)):
        saliency.class_maps(image, list(classes))
    dropout = ActiveDropout(seed)
    generator = torch.Generator().manual_seed(seed)
    for _ in trange(draws, unit="map", disable=not progress, leave=False):
        with dropout, use_generator(generator):
            result = saliency.class_maps(image, list(classes))
        # Candidates are in the order of their scores, which dropout changes.
        yield result.of_classes(classes)
