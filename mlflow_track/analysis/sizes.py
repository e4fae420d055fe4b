"""How much a run takes on the disk."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import NamedTuple

from mlflow_track.record import layout


class Sizes(NamedTuple):
    """Bytes by what they are for; what is neither checkpoint nor artifact is the record."""

    record: int
    checkpoints: int
    artifacts: int

    @property
    def total(self) -> int:
        return sum(self)


def folder_size(path: Path | str) -> int:
    """The bytes of all files in a folder. No link is followed; what cannot be read counts 0."""
    total = 0
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    total += folder_size(entry.path)
                elif stat.S_ISREG(status.st_mode):
                    total += status.st_size
    except OSError:
        return total
    return total


def sizes(path: Path) -> Sizes:
    """The sizes of the run in the folder `path`."""
    checkpoints = folder_size(path / layout.CHECKPOINTS)
    artifacts = folder_size(path / layout.ARTIFACTS)
    return Sizes(folder_size(path) - checkpoints - artifacts, checkpoints, artifacts)
