"""Finds backends: those of this package, and those of other packages."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points

from mlflow_track.extras import MissingExtra, require_extra
from mlflow_track.record.schema import BACKEND_NAME

GROUP = "mlflow_track.backends"
_OURS = (
    EntryPoint("mlflow", "mlflow_track.backends.mlflow.backend:MlflowBackend", GROUP),
    EntryPoint(
        "tensorboard", "mlflow_track.backends.tensorboard.backend:TensorboardBackend", GROUP
    ),
    EntryPoint("wandb", "mlflow_track.backends.wandb.backend:WandbBackend", GROUP),
)
_NAME = re.compile(BACKEND_NAME)


def find_backend(name: str) -> EntryPoint | None:
    """The class of a backend, to be loaded; None where no installed package has one."""
    # Those of other packages are looked for in the metadata of all, which takes milliseconds.
    if not _NAME.fullmatch(name):
        return None
    ours = next((entry for entry in _OURS if entry.name == name), None)
    return ours or next(iter(entry_points(group=GROUP, name=name)), None)


def backend_names() -> list[str]:
    """The names of all backends that are installed."""
    names = {entry.name for entry in (*_OURS, *entry_points(group=GROUP))}
    return sorted(name for name in names if _NAME.fullmatch(name))


def why_missing(name: str) -> str:
    """The reason why a backend cannot be used (a missing package); "" where it can."""
    if any(entry.name == name for entry in _OURS):
        try:
            # Backend, package and the extra that installs it have one name.
            require_extra(name, name)
        except MissingExtra as error:
            return str(error)
    return ""


def options_of(name: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables MLFLOW_TRACK_<NAME>_*, by the rest of their names in lower case."""
    prefix = f"MLFLOW_TRACK_{name.upper().replace('-', '_')}_"
    return {
        variable.removeprefix(prefix).lower(): value
        for variable, value in environment.items()
        if variable.startswith(prefix) and value
    }
