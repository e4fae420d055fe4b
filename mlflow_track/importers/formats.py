"""The formats that can be imported, and which of them lies at a path or URI."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # The help of the command lists the names.
    from mlflow_track.importers.source import Source

# By name, what reads it. What belongs to a backend lies beside it, and only loads what it needs.
_SOURCES = {
    "csv": "mlflow_track.importers.csv:CsvSource",
    "mlflow": "mlflow_track.backends.mlflow.source:MlflowSource",
    "neptune": "mlflow_track.importers.neptune:NeptuneSource",
    "tensorboard": "mlflow_track.importers.tensorboard:TensorboardSource",
    "trackio": "mlflow_track.importers.trackio:TrackioSource",
    "wandb": "mlflow_track.importers.wandb:WandbSource",
}
FORMATS: Sequence[str] = tuple(_SOURCES)


def open_source(where: str, format: str | None = None) -> list[Source]:
    """The sources at a path or URI: none, one, or one for each format that has something there.

    Args:
        where: The path or URI.
        format: One of `FORMATS`, where the user knows it; then nothing else is looked for.
    """
    if "://" not in where:
        # A link that the user names is followed, unlike those in what it leads to.
        where = os.path.realpath(Path(where).expanduser())
    kinds = [_load(name) for name in ((format,) if format else FORMATS)]
    found = [kind.recognise(where, is_certain=format is not None) for kind in kinds]
    return [source for source in found if source is not None]


def descriptions(format: str | None = None) -> list[str]:
    """What each format, or the given one, looks for, as readable text."""
    return [_load(name).what for name in ((format,) if format else FORMATS)]


def _load(name: str) -> type[Source]:
    return EntryPoint(name, _SOURCES[name], "").load()
