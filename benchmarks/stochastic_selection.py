"""Time all forms of stochastic hidden unit selection, and measure their memory: one pass, and 200 maps.

    python -m benchmarks.stochastic_selection [ROUNDS]

Features of 41 x 41 x 512 (VGG-16 at 321 pixels), windows of 9 x 9, 20 classes, one image, one thread. The naive form
is the one that the paper compares its expansion with: a convolution of one window after the other. Implementations run
in turn, ROUNDS times (default 5); the peak memory of each is measured in a process of its own. Writes
results/stochastic_selection.json.
"""

import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.speed.comparison import peak_memory, time_interleaved
from dcsm_attr.evaluation.result import run_environment
from dcsm_attr.io import write_json
from dcsm_attr.models.stochastic import (
    StochasticSelection,
    gathered_convolution,
    selection_masks,
    shifted_convolution,
    use_generator,
)
from dcsm_attr.wsss.ficklenet import stochastic_maps

SIZE, CHANNELS, WINDOW, CLASSES = (41, 41), 512, 9, 20
RATES = (0.5, 0.7, 0.8, 0.9)
NUM_SAMPLES = 200
# Values of an expanded map that are held at once: 32 MiB in float32. All windows of 41 x 41 x 512 would take 266 MiB.
CHUNK_SIZE = 2**23


def window_by_window(x: Tensor, weight: Tensor, masks: Tensor) -> Tensor:
    """Mask and convolve one window after the other."""
    count, _, height, width = x.shape
    window = weight.shape[-1]
    padded = F.pad(x, (window // 2,) * 4)
    cells = masks.view(count, 1, window, window, height, width).to(x.dtype)
    rows = []
    for row in range(height):
        each = [
            F.conv2d(padded[:, :, row : row + window, left : left + window] * cells[..., row, left], weight)
            for left in range(width)
        ]
        rows.append(torch.cat(each, dim=3))
    return torch.cat(rows, dim=2)


def whole_expansion(x: Tensor, weight: Tensor, masks: Tensor) -> Tensor:
    """Expand as in the paper: lay out the tiles of all windows, and convolve with a stride of the kernel size."""
    count, channels, height, width = x.shape
    window = weight.shape[-1]
    windows = F.unfold(x, window, padding=window // 2).view(count, channels, window, window, height, width)
    tiles = (windows * masks.view(count, 1, window, window, height, width)).permute(0, 1, 4, 2, 5, 3)
    return F.conv2d(tiles.reshape(count, channels, height * window, width * window), weight, stride=window)


def expanded_convolution(x: Tensor, weight: Tensor, masks: Tensor) -> Tensor:
    """The expansion, computed by rows of windows so that memory is bounded."""
    count, channels, height, width = x.shape
    classes, _, window, _ = weight.shape
    padded = F.pad(x, (window // 2,) * 4)
    row_chunk_size = max(1, CHUNK_SIZE // (count * channels * window * window * width))
    parts = []
    for top in range(0, height, row_chunk_size):
        kept = masks[:, None, :, top : top + row_chunk_size].flatten(3)
        strip = padded[:, :, top : top + row_chunk_size + window - 1]
        windows = F.unfold(strip, window).view(count, channels, window * window, -1) * kept
        parts.append((weight.flatten(1) @ windows.flatten(1, 2)).view(count, classes, -1, width))
    return torch.cat(parts, dim=2)


FORMS = {
    "naive loop": window_by_window,
    "expansion, whole": whole_expansion,
    "expansion, by rows": expanded_convolution,
    "shifted": shifted_convolution,
    "gathered": gathered_convolution,
}


def passes(rate: float, training: bool) -> Mapping[str, Callable[[], Any]]:
    """Build one pass of each form, forward or forward and backward."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = torch.rand(1, CHANNELS, *SIZE).requires_grad_(training)
    weight = (torch.randn(CLASSES, CHANNELS, WINDOW, WINDOW) / CHANNELS).requires_grad_(training)
    masks = selection_masks(1, SIZE, WINDOW, rate)

    def run(form: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Any:
        with torch.set_grad_enabled(training):
            scores = form(x, weight, masks)
        return torch.autograd.grad(scores.square().sum(), (x, weight)) if training else scores

    return {name: partial(run, form) for name, form in FORMS.items()}


def localizations(rate: float) -> Mapping[str, Callable[[], Any]]:
    """Build maps of three classes from 200 samples: in closed form, or by a forward and a backward pass each."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = torch.rand(1, CHANNELS, *SIZE)
    layer = StochasticSelection(CHANNELS, CLASSES, WINDOW, rate)

    def run(head: nn.Module) -> list[Tensor]:
        return list(stochastic_maps(head, x, [3, 7, 14], NUM_SAMPLES))

    return {
        "closed form": partial(run, layer),
        "autograd": partial(run, nn.Sequential(layer, nn.Identity())),
        "masks alone": partial(_draw, layer, x),
    }


def _draw(layer: StochasticSelection, x: Tensor) -> None:
    with use_generator(torch.Generator().manual_seed(0)):
        for _ in range(NUM_SAMPLES):
            layer.draw_masks(1, x)


def measure(
    prepare: Callable[..., Mapping[str, Callable[[], Any]]], arguments: tuple[Any, ...], rounds: int
) -> dict[str, Any]:
    """Return median seconds and peak MiB per implementation."""
    implementations = prepare(*arguments)
    timings = time_interleaved(implementations, rounds)
    return {
        name: {
            "seconds": round(timings[name].median, 4),
            "MiB": round(peak_memory(prepare, arguments, name) / 2**20, 1),
        }
        for name in implementations
    }


def main() -> None:
    """Measure, print, write the result."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    result: dict[str, Any] = {
        "measured": run_environment("python -m benchmarks.stochastic_selection [ROUNDS]"),
        "rounds": rounds,
    }
    for name, prepare, arguments in (
        ("forward, rate 0.9", passes, (0.9, False)),
        ("forward and backward, rate 0.9", passes, (0.9, True)),
        (f"{NUM_SAMPLES} maps of 3 classes, rate 0.9", localizations, (0.9,)),
    ):
        result[name] = measure(prepare, arguments, rounds)
        print(name, *(f"{form}: {values}" for form, values in result[name].items()), sep="\n  ", flush=True)
    for rate in RATES:
        implementations = {form: run for form, run in passes(rate, True).items() if form in ("shifted", "gathered")}
        timings = time_interleaved(implementations, rounds)
        result[f"forward and backward, rate {rate}, seconds"] = {
            form: round(timing.median, 4) for form, timing in timings.items()
        }
        print(rate, result[f"forward and backward, rate {rate}, seconds"], flush=True)
    write_json(Path(__file__).parent / "results" / "stochastic_selection.json", result)


if __name__ == "__main__":
    main()
