"""The peak memory of one piece of work, each in a process of its own."""

import ctypes
import multiprocessing
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

__all__ = ["measure_peak_memory", "peak_memory"]


_STATUS = Path("/proc/self/status")


def peak_memory(prepare: Callable[..., Mapping[str, Callable[[], Any]]], arguments: tuple[Any, ...], name: str) -> int:
    """How much more memory was in use at the peak of an implementation's work than before it.

    Args:
        prepare: a function of a module, which gives the implementations. It runs in a new process, so that memory which
            other implementations left behind does not hide what this one needs.
        arguments: of ``prepare``; must pickle.
        name: of the implementation.

    Returns:
        Bytes: of the device's allocator on a GPU; of the process's resident memory elsewhere, 0 where the system does
        not tell it (anywhere but on Linux).
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_measured, prepare, arguments, name).result()


def _measured(prepare: Callable[..., Mapping[str, Callable[[], Any]]], arguments: tuple[Any, ...], name: str) -> int:
    return measure_peak_memory(prepare(*arguments)[name])


def measure_peak_memory(run: Callable[[], Any]) -> int:
    """How much more memory is in use at the peak of ``run`` than before it, in this process.

    Returns:
        Bytes, as of :func:`peak_memory`; of the first run of its kind in a process, for later ones find memory that is
        free already.
    """
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before
    if not _STATUS.is_file():
        return 0
    # What preparing left behind goes back to the system, and the high-water mark begins anew.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    run()
    return max(0, _status("VmHWM") - before)


def _status(field: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return 1024 * int(line.split()[1])
