"""What does the work of a run: this process, several, or a cluster."""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from dcsm_attr.pipelines.labeller import Outputs
from dcsm_attr.pipelines.plan import PhotographBatch
from dcsm_attr.segmentation.segmenter import Segmenter
from dcsm_attr.storage import Storage

__all__ = ["Engine", "FinishedBatch", "Job", "Recipe"]

#: Builds the segmenter, on the device where it is to run, from nothing: it is called where the work is done.
Recipe = Callable[[], Segmenter]


@dataclass(frozen=True)
class Job:
    """What is to be done with each batch; it can be sent to other processes if its parts can.

    Attributes:
        recipe: of the segmenter.
        outputs: what is written.
        storage: where.
        max_pixels: of a photograph, see :func:`dcsm_attr.images.read_image`.
    """

    recipe: Recipe
    outputs: Outputs
    storage: Storage
    max_pixels: int | None = None


@dataclass(frozen=True)
class FinishedBatch:
    """A batch whose files are written.

    Attributes:
        number: of the batch.
        records: the lines of its photographs.
    """

    number: int
    records: Sequence[Mapping[str, Any]]


class Engine(Protocol):
    """A way to do a job."""

    def __call__(self, job: Job, batches: Sequence[PhotographBatch]) -> Generator[FinishedBatch, None, None]:
        """Do the job, and write the files.

        Returns:
            The batches, as they are finished, in any order. Closed before its end, it ends what it began.
        """
        ...
