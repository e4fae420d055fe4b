"""Track PyTorch training: a run is a folder that survives anything, mirrored into MLflow.

Importing this imports neither torch, mlflow, pandas nor matplotlib.
"""

from mlflow_track.analysis.load import LoadedRun, load_run, load_runs
from mlflow_track.checkpoint.retention import Keep
from mlflow_track.checkpoint.schedule import EvenlySpaced, EverySteps, SavePolicy
from mlflow_track.record.directory import RunHeldError
from mlflow_track.run import Run, start_run

__all__ = [
    "EvenlySpaced",
    "EverySteps",
    "Keep",
    "LoadedRun",
    "Run",
    "RunHeldError",
    "SavePolicy",
    "load_run",
    "load_runs",
    "start_run",
]
