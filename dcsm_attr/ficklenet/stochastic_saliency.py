"""Many maps of each class from any method that explains a model, with dropout switched on: a stochastic DCSM."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from tqdm import trange

from dcsm_attr.ficklenet.dropout import ActiveDropout
from dcsm_attr.segmentation.segmenter import Saliency
from dcsm_attr.stochastic.masks import drawing_from

__all__ = ["stochastic_class_maps"]


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

    Drawn anew are the model's dropout (:class:`~dcsm_attr.ficklenet.dropout.ActiveDropout`) and its stochastic
    selections; a model without either gives the same maps each time. Each draw is a whole run of the method;
    one more, without dropout, comes before the first.

    Args:
        saliency: for example ``DistinctClassSaliency(model)``.
        image: ``(1, 3, H, W)``, normalised as the model wants it.
        classes: K known classes of the picture.
        draws: N.
        seed: of what is dropped, the same on every device.
        progress: whether to show a bar.

    Yields:
        N times ``(K, H, W)``, in the order of the classes; for :func:`~dcsm_attr.ficklenet.aggregation.aggregated`.

    Raises:
        ValueError: with the first map, if there is not one picture, or the number of draws is not positive.
    """
    if image.ndim != 4 or len(image) != 1:
        raise ValueError(f"image must be one picture, of shape (1, 3, H, W); got {tuple(image.shape)}.")
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}.")
    # What a method finds out about the model in its first run, such as the layers to look at, must not shift the draws.
    with drawing_from(torch.Generator().manual_seed(seed)):
        saliency.class_maps(image, list(classes))
    dropout = ActiveDropout(seed)
    generator = torch.Generator().manual_seed(seed)
    for _ in trange(draws, unit="map", disable=not progress, leave=False):
        with dropout, drawing_from(generator):
            result = saliency.class_maps(image, list(classes))
        # Candidates are in the order of their scores, which dropout changes.
        yield result.of_classes(classes)
