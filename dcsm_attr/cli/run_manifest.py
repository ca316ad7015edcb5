"""What became of each photograph of a run: ``run.json``, beside the folders of the photographs."""

from pathlib import Path
from typing import Any

import dcsm_attr
from dcsm_attr.files import write_json

__all__ = ["RUN_MANIFEST", "RunManifest"]

#: Its name; no photograph gets a folder of this name.
RUN_MANIFEST = "run.json"


class RunManifest:
    """The photographs of a run, each once: where its results are, or why it could not be read."""

    def __init__(self, output: Path, photographs: int) -> None:
        """Name the file, and remove that of an earlier run, which must not vouch for this one.

        Args:
            output: the folder of the run.
            photographs: how many are to be done.

        Raises:
            OSError: if the old file cannot be removed.
        """
        self._path = output / RUN_MANIFEST
        self._path.unlink(missing_ok=True)
        self._photographs = photographs
        self._results: list[dict[str, str]] = []
        self._failures: list[dict[str, str]] = []

    @property
    def failures(self) -> list[str]:
        """Why photographs could not be read, in order."""
        return [failure["reason"] for failure in self._failures]

    def finished(self, photograph: Path, folder: Path) -> None:
        """Note that the results of a photograph stand in a folder."""
        self._results.append({"photograph": str(photograph), "folder": folder.name})

    def failed(self, photograph: Path, reason: str) -> None:
        """Note that a photograph could not be read."""
        self._failures.append({"photograph": str(photograph), "reason": reason})

    def write(self) -> None:
        """Write the file; photographs that a run did not come to are in neither list.

        Raises:
            OSError: if it cannot be written.
        """
        content: dict[str, Any] = {
            "dcsm_attr": dcsm_attr.__version__,
            "photographs": self._photographs,
            "results": self._results,
            "failures": self._failures,
        }
        write_json(self._path, content)
