"""One training over several processes, as ``torchrun`` starts them."""

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

_groups = itertools.count()


@dataclass(frozen=True)
class Processes:
    """The processes of a training.

    Attributes:
        rank: of this one.
        count: how many there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and shows progress."""
        return self.rank == 0

    def gathered(self, items: list[_Item]) -> list[_Item]:
        """The items of all processes, those of the first process first."""
        if self.count == 1:
            return items
        lists: list[list[_Item]] = [[] for _ in range(self.count)]
        dist.all_gather_object(lists, items)
        return [item for part in lists for item in part]

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.count > 1:
            dist.barrier()


def local_device(device: torch.device) -> torch.device:
    """The device of this process: of several GPUs, the one that ``torchrun`` means it to take."""
    if device.type != "cuda" or device.index is not None:
        return device
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


@contextmanager
def process_group(device: torch.device) -> Iterator[Processes]:
    """Join the processes that ``torchrun`` started, and leave them at the end; without it, this process is alone.

    Args:
        device: NCCL connects GPUs, Gloo CPUs.

    Yields:
        Which process this is.
    """
    if "WORLD_SIZE" not in os.environ:
        yield Processes()
        return
    # Groups that follow each other in one run share the store of torchrun: what an earlier one has left there, such as
    # the addresses of its processes, must not be taken for this one's.
    store, rank, count = next(rendezvous("env://"))
    own = dist.PrefixStore(f"training {next(_groups)}", store)  # type: ignore[attr-defined]
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=own, rank=rank, world_size=count)
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
