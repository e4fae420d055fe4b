"""How much a run takes on the disk."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from mlflow_track.record import layout
from mlflow_track.record.files import folder_size


class Sizes(NamedTuple):
    """Bytes by what they are for; what is neither checkpoint nor artifact is the record."""

    record: int
    checkpoints: int
    artifacts: int

    @property
    def total(self) -> int:
        return sum(self)


def sizes(path: Path) -> Sizes:
    """The sizes of the run in the folder `path`."""
    checkpoints = folder_size(path / layout.CHECKPOINTS)
    artifacts = folder_size(path / layout.ARTIFACTS)
    return Sizes(folder_size(path) - checkpoints - artifacts, checkpoints, artifacts)
