"""One training shared by several processes, as ``torchrun`` starts them."""

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

__all__ = ["Processes", "local_device", "process_group"]


_Item = TypeVar("_Item")

_group_numbers = itertools.count()


@dataclass(frozen=True)
class Processes:
    """The processes of a training.

    Attributes:
        rank: of this process.
        world_size: number of processes.
    """

    rank: int = 0
    world_size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and shows progress."""
        return self.rank == 0

    def gather(self, items: list[_Item]) -> list[_Item]:
        """Concatenate the items of all processes, in the order of their ranks."""
        if self.world_size == 1:
            return items
        lists: list[list[_Item]] = [[] for _ in range(self.world_size)]
        dist.all_gather_object(lists, items)
        return [item for part in lists for item in part]

    def wait(self) -> None:
        """Wait for all processes."""
        if self.world_size > 1:
            dist.barrier()


def local_device(device: torch.device) -> torch.device:
    """Choose the device of this process: among several GPUs, the one that ``torchrun`` assigned to it."""
    if device.type != "cuda" or device.index is not None:
        return device
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


@contextmanager
def process_group(device: torch.device) -> Iterator[Processes]:
    """Join the processes that ``torchrun`` started, and leave them at the end.

    Args:
        device: GPUs are connected by NCCL, CPUs by Gloo.

    Yields:
        The processes; without ``torchrun``, this one alone.
    """
    if "WORLD_SIZE" not in os.environ:
        yield Processes()
        return
    # All groups of one torchrun share its store. With a prefix, a group does not read entries of an earlier group, such
    # as the addresses of its processes.
    store, rank, world_size = next(rendezvous("env://"))
    own = dist.PrefixStore(f"training {next(_group_numbers)}", store)  # type: ignore[attr-defined]
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=own, rank=rank, world_size=world_size)
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
