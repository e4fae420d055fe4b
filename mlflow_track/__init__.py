"""Track PyTorch training: a run is a folder that survives anything, mirrored into MLflow.

Importing this imports neither torch, mlflow, pandas nor matplotlib: each name loads at first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from mlflow_track.analysis.load import LoadedRun, load_metrics, load_run, load_runs
    from mlflow_track.analysis.table import Comparison, compare
    from mlflow_track.checkpoint.checkpointer import Checkpoints
    from mlflow_track.checkpoint.disk.store import Checkpoint, CorruptCheckpointError
    from mlflow_track.checkpoint.loader.resumable import resumable
    from mlflow_track.checkpoint.policy.budget import Budget
    from mlflow_track.checkpoint.policy.improvement import OnImprovement
    from mlflow_track.checkpoint.policy.retention import Keep
    from mlflow_track.checkpoint.policy.save_policy import SavePolicy
    from mlflow_track.checkpoint.policy.schedule import (
        AtSteps,
        Continuous,
        EvenlySpaced,
        EveryMinutes,
        EverySteps,
    )
    from mlflow_track.checkpoint.policy.stopping import EarlyStopping
    from mlflow_track.checkpoint.weights import load_weights
    from mlflow_track.mirror.status import SyncStatus
    from mlflow_track.record.directory import RunHeldError
    from mlflow_track.run import Run
    from mlflow_track.start import active_run, start_run

__all__ = [
    "AtSteps",
    "Budget",
    "Checkpoint",
    "Checkpoints",
    "Comparison",
    "Continuous",
    "CorruptCheckpointError",
    "EarlyStopping",
    "EvenlySpaced",
    "EveryMinutes",
    "EverySteps",
    "Keep",
    "LoadedRun",
    "OnImprovement",
    "Run",
    "RunHeldError",
    "SavePolicy",
    "SyncStatus",
    "__version__",
    "active_run",
    "compare",
    "load_metrics",
    "load_run",
    "load_runs",
    "load_weights",
    "resumable",
    "start_run",
]

_HOMES = {
    "analysis.load": ("LoadedRun", "load_metrics", "load_run", "load_runs"),
    "analysis.table": ("Comparison", "compare"),
    "checkpoint.checkpointer": ("Checkpoints",),
    "checkpoint.disk.store": ("Checkpoint", "CorruptCheckpointError"),
    "checkpoint.loader.resumable": ("resumable",),
    "checkpoint.weights": ("load_weights",),
    "checkpoint.policy.retention": ("Keep",),
    "checkpoint.policy.budget": ("Budget",),
    "checkpoint.policy.stopping": ("EarlyStopping",),
    "checkpoint.policy.improvement": ("OnImprovement",),
    "checkpoint.policy.schedule": (
        "AtSteps",
        "Continuous",
        "EvenlySpaced",
        "EveryMinutes",
        "EverySteps",
    ),
    "checkpoint.policy.save_policy": ("SavePolicy",),
    "mirror.status": ("SyncStatus",),
    "record.directory": ("RunHeldError",),
    "run": ("Run",),
    "start": ("active_run", "start_run"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("mlflow-track")
    except PackageNotFoundError:
        # A copy of the sources that nobody has installed.
        return "0+unknown"


def __dir__() -> list[str]:
    return sorted(__all__)
