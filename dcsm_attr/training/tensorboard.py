"""The log of a training for TensorBoard, beside the CSV file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["TensorBoardLog"]


class TensorBoardLog:
    """Curves of some columns of :class:`~dcsm_attr.training.log.TrainingLog`, with the same values."""

    def __init__(self, folder: Path, columns: Sequence[str]) -> None:
        """Name the folder; an event file is written into it with the first line.

        Args:
            folder: of the event files; those of an interrupted run may stand there.
            columns: to draw.

        Raises:
            ImportError: if TensorBoard is not installed.
        """
        self._open = _summary_writer()
        self._folder = folder
        self._columns = columns
        self._kept = 0
        self._writer: Any = None

    def append(self, line: Mapping[str, Any]) -> None:
        """Add a point to each curve, at ``line["step"]``."""
        if self._writer is None:
            # Tells TensorBoard to forget what event files of earlier runs say of this step and later ones.
            self._writer = self._open(self._folder, purge_step=self._kept + 1)
        for name in self._columns:
            self._writer.add_scalar(name, float(line[name]), int(line["step"]))
        self._writer.flush()

    def forget_after(self, step: int) -> None:
        """Have the points of later steps replaced, which a resumed training logs again; before the first line."""
        self._kept = step

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError('logs for TensorBoard need it: pip install "dcsm_attr[tensorboard]".') from error
    return SummaryWriter
