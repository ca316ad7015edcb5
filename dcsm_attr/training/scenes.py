"""Training the network of the generated scenes from image-level labels.

Hiding parts of the training images, so that a network learns to recognize more than the most telling part.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from dcsm_attr.attribution.inputs import resize_images
from dcsm_attr.attribution.model import pool_score_maps
from dcsm_attr.datasets.scenes import CLASS_NAMES, Scenes
from dcsm_attr.io import atomic_path
from dcsm_attr.models.scene_net import MEAN, STD, SceneNet, load_scene_net
from dcsm_attr.training.classifier import multi_label_loss

__all__ = ["FIRST_TRAINING_SEED", "hide_patches", "train_scene_net"]


def hide_patches(images: Tensor, most: float, cells: int = 8) -> Tensor:
    """Cover random cells of a grid with the mean color of their image.

    A network trained with image-level labels needs one telling part of an object, and its gradients point there;
    where any part may be hidden it has to know all of them. Kumar Singh and Lee, "Hide-and-Seek", ICCV 2017.

    Differs from the paper: the share of hidden cells is sampled for each image, and the grid for each batch.

    Args:
        images: ``(N, C, H, W)``.
        most: upper limit of the share of cells that are hidden, in [0, 1].
        cells: of the grid along each side.

    Returns:
        ``(N, C, H, W)``; drawn from PyTorch's global generator.
    """
    count, _, height, width = images.shape
    share = torch.rand(count, 1, 1, 1, device=images.device) * most
    # One cell more than fits, so that the grid can be shifted.
    hidden = (torch.rand(count, 1, cells + 1, cells + 1, device=images.device) < share).to(images.dtype)
    cell = (-(-height // cells), -(-width // cells))
    grid = F.interpolate(hidden, size=((cells + 1) * cell[0], (cells + 1) * cell[1]), mode="nearest")
    top, left = (int(torch.randint(extent, ())) for extent in cell)
    mask = grid[:, :, top : top + height, left : left + width]
    return torch.lerp(images, images.mean(dim=(2, 3), keepdim=True).expand_as(images), mask)


#: Training draws the series of scenes with this seed and those after it; evaluate on smaller ones.
FIRST_TRAINING_SEED = 1_000_000

_BATCH = 16
_LEARNING_RATE = 2e-3
_WARM_UP = 0.1
# Strong: what a class does not need (the sky behind trees) must not stay among the paths to its score.
_WEIGHT_DECAY = 0.2
# Ratios that a batch is resized by, as the paper does with other ones.
_RATIOS = (0.75, 1.0)
# Whole pictures first: nothing is learned from hidden ones before something is known.
_HIDE_START = 0.4
_MAX_HIDDEN = 0.8
_SCALING_BATCHES = 4


def train_scene_net(
    path: str | Path,
    *,
    seed: int = 0,
    steps: int = 2000,
    size: int = 128,
    workers: int = 1,
    progress: bool = True,
) -> SceneNet:
    """Train a :class:`SceneNet` on generated scenes and their image-level labels, and save it.

    Every step takes 16 scenes that were never shown before. The same arguments give the same network on the same
    machine with the same number of threads.

    Args:
        path: the ``.safetensors`` file to write, in half precision, with ``seed``, ``steps`` and ``classes`` as its
            metadata. It appears when it is complete.
        seed: of the weights, of the scenes (see :data:`FIRST_TRAINING_SEED`) and of their augmentation.
        steps: of the optimizer.
        size: side of the scenes in pixels.
        workers: processes that draw scenes ahead; 0: this one draws them.
        progress: whether to show a bar.

    Returns:
        The network as it was saved, in evaluation mode.

    Raises:
        ValueError: if there are no steps.
        OSError: if the file cannot be written; found out before training.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}.")
    # Opened first: a folder that cannot be written to is found out now.
    with atomic_path(path) as temporary:
        network = _trained(seed, steps, size, workers, progress)
        weights = {name: tensor.half().contiguous() for name, tensor in network.state_dict().items()}
        metadata = {"seed": str(seed), "steps": str(steps), "classes": ",".join(CLASS_NAMES)}
        save_file(weights, temporary, metadata)
    return load_scene_net(path)


def _trained(seed: int, steps: int, size: int, workers: int, progress: bool) -> SceneNet:
    scenes = Scenes((steps + _SCALING_BATCHES) * _BATCH, FIRST_TRAINING_SEED + seed, size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = SceneNet(len(CLASS_NAMES))
        batches = iter(DataLoader(scenes, _BATCH, num_workers=workers))
        _scale_weights(network, torch.cat([_normalize(next(batches)[0]) for _ in range(_SCALING_BATCHES)]))
        _fit(network, tqdm(batches, total=steps, unit="step", desc="training", disable=not progress), steps)
    return network


def _fit(network: SceneNet, batches: "tqdm[tuple[Tensor, Tensor]]", steps: int) -> None:
    optimizer = torch.optim.AdamW(network.parameters(), _LEARNING_RATE, betas=(0.9, 0.98), weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step / steps))
    for step, (images, present) in enumerate(batches):
        inputs = _normalize(images)
        if step >= _HIDE_START * steps:
            inputs = hide_patches(inputs, _MAX_HIDDEN)
        ratio = _RATIOS[int(torch.randint(len(_RATIOS), ()))]
        score_maps = network(*resize_images((inputs,), ratio, "bilinear"))
        loss = multi_label_loss(pool_score_maps(score_maps), present)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        batches.set_postfix(loss=f"{loss.item():.3f}", refresh=False)


def _rate(done: float) -> float:
    """Share of the learning rate after a share of the steps: a linear warm-up, then half a cosine to zero."""
    if done < _WARM_UP:
        return (done + 0.01) / (_WARM_UP + 0.01)
    return 0.5 + 0.5 * math.cos(math.pi * (done - _WARM_UP) / (1 - _WARM_UP))


def _normalize(images: Tensor) -> Tensor:
    return (images / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


@torch.no_grad()
def _scale_weights(network: SceneNet, images: Tensor) -> None:
    """Scale each convolution so that its output has unit variance; learning starts in half as many steps.

    Mishkin and Matas, "All you need is a good init", ICLR 2016. For each channel by itself, and without their
    orthogonal start.
    """
    *hidden, last = [*network.features, *network.classifier]
    for module in hidden:
        if isinstance(module, nn.Conv2d):
            module.weight /= module(images).std(dim=(0, 2, 3))[:, None, None, None]
        images = module(images)
    # A maximum over a whole map is large at first; most classes are absent.
    assert isinstance(last, nn.Conv2d)
    assert last.bias is not None
    last.bias.fill_(-2.0)
