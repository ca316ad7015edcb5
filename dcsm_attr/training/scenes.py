"""Training the network of the generated scenes from image-level labels, with parts of the images hidden."""

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


#: Training uses the series of scenes with this seed and higher ones; evaluate on series with smaller seeds.
FIRST_TRAINING_SEED = 1_000_000

_BATCH = 16
_LEARNING_RATE = 2e-3
_WARM_UP = 0.1
# Strong, so that the score of a class does not depend on other objects, such as the sky behind trees.
_WEIGHT_DECAY = 0.2
# Factors that a batch is resized by; the paper uses others.
_SCALES = (0.75, 1.0)
# Share of the steps without hidden parts: an untrained network learns nothing from images with hidden parts.
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

    Every step takes 16 new scenes. The same arguments give the same network on the same machine with the same number of
    threads.

    Args:
        path: the ``.safetensors`` file to write, in half precision, with ``seed``, ``steps`` and ``classes`` as its
            metadata. It appears when it is complete.
        seed: random seed of the weights, the scenes (see :data:`FIRST_TRAINING_SEED`) and their augmentation.
        steps: number of steps.
        size: side of the scenes in pixels.
        workers: number of processes that generate scenes; 0: the current process.
        progress: whether to show a progress bar.

    Returns:
        The network as it was saved, in evaluation mode.

    Raises:
        ValueError: if ``steps`` is not positive.
        OSError: if the file cannot be written; raised before training.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}.")
    # Opened before training, so that a folder that cannot be written to raises here.
    with atomic_path(path) as temporary:
        network = _train(seed, steps, size, workers, progress)
        weights = {name: tensor.half().contiguous() for name, tensor in network.state_dict().items()}
        metadata = {"seed": str(seed), "steps": str(steps), "classes": ",".join(CLASS_NAMES)}
        save_file(weights, temporary, metadata)
    return load_scene_net(path)


def _train(seed: int, steps: int, size: int, workers: int, progress: bool) -> SceneNet:
    scenes = Scenes((steps + _SCALING_BATCHES) * _BATCH, FIRST_TRAINING_SEED + seed, size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = SceneNet(len(CLASS_NAMES))
        batches = iter(DataLoader(scenes, _BATCH, num_workers=workers))
        _scale_weights(network, torch.cat([_normalize(next(batches)[0]) for _ in range(_SCALING_BATCHES)]))
        _run_steps(network, tqdm(batches, total=steps, unit="step", desc="training", disable=not progress), steps)
    return network


def _run_steps(network: SceneNet, batches: "tqdm[tuple[Tensor, Tensor]]", steps: int) -> None:
    optimizer = torch.optim.AdamW(network.parameters(), _LEARNING_RATE, betas=(0.9, 0.98), weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _learning_rate_factor(step / steps))
    for step, (images, present) in enumerate(batches):
        inputs = _normalize(images)
        if step >= _HIDE_START * steps:
            inputs = hide_patches(inputs, _MAX_HIDDEN)
        scale = _SCALES[int(torch.randint(len(_SCALES), ()))]
        score_maps = network(*resize_images((inputs,), scale, "bilinear"))
        loss = multi_label_loss(pool_score_maps(score_maps), present)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        batches.set_postfix(loss=f"{loss.item():.3f}", refresh=False)


def _learning_rate_factor(done: float) -> float:
    """Return the factor of the learning rate at a share of the steps: a linear warm-up, then half a cosine to zero."""
    if done < _WARM_UP:
        return (done + 0.01) / (_WARM_UP + 0.01)
    return 0.5 + 0.5 * math.cos(math.pi * (done - _WARM_UP) / (1 - _WARM_UP))


def _normalize(images: Tensor) -> Tensor:
    return (images / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


@torch.no_grad()
def _scale_weights(network: SceneNet, images: Tensor) -> None:
    """Scale each convolution so that its output has unit variance, which halves the steps until learning starts.

    Mishkin and Matas, "All you need is a good init", ICLR 2016. Differs from it: each channel is scaled by itself, and
    the initial weights are not orthogonal.
    """
    *hidden, last = [*network.features, *network.classifier]
    for module in hidden:
        if isinstance(module, nn.Conv2d):
            module.weight /= module(images).std(dim=(0, 2, 3))[:, None, None, None]
        images = module(images)
    # The maximum over a score map is large at first, but most classes are absent.
    assert isinstance(last, nn.Conv2d)
    assert last.bias is not None
    last.bias.fill_(-2.0)


def hide_patches(images: Tensor, max_share: float, cells: int = 8) -> Tensor:
    """Cover random cells of a grid with the mean color of their image.

    A network trained with image-level labels needs only the most discriminative part of an object, and its gradients
    point there; if any part may be hidden, it has to recognize all of them. Kumar Singh and Lee, "Hide-and-Seek", ICCV
    2017.

    Differs from the paper: the share of hidden cells is sampled per image, and the position of the grid per batch.

    Args:
        images: ``(N, C, H, W)``.
        max_share: upper bound of the share of hidden cells, in [0, 1].
        cells: number of cells along each side.

    Returns:
        ``(N, C, H, W)``. Random numbers are from PyTorch's global generator.
    """
    count, _, height, width = images.shape
    share = torch.rand(count, 1, 1, 1, device=images.device) * max_share
    # One cell more than fits, so that the grid can be shifted.
    hidden = (torch.rand(count, 1, cells + 1, cells + 1, device=images.device) < share).to(images.dtype)
    cell = (-(-height // cells), -(-width // cells))
    grid = F.interpolate(hidden, size=((cells + 1) * cell[0], (cells + 1) * cell[1]), mode="nearest")
    top, left = (int(torch.randint(extent, ())) for extent in cell)
    mask = grid[:, :, top : top + height, left : left + width]
    return torch.lerp(images, images.mean(dim=(2, 3), keepdim=True).expand_as(images), mask)
