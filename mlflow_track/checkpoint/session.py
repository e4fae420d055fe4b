"""What the parts of a run's checkpoints share while one process writes the run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mlflow_track.checkpoint.decision import Plan
from mlflow_track.checkpoint.disk.store import CheckpointStore
from mlflow_track.checkpoint.ranks import Ranks
from mlflow_track.record.directory import RunDirectory
from mlflow_track.record.metric import Directions
from mlflow_track.record.metrics import MetricsFile
from mlflow_track.stop import StopRequest


@dataclass(frozen=True, kw_only=True)
class Session:
    """One process and the run that it writes.

    Attributes:
        record: The run's folder, locked by this process; a discarded one of a rank above 0.
        metrics: Its rows: made durable before a checkpoint refers to them, and rewound when an
            older step is restored.
        store: Its checkpoints.
        ranks: The processes of the job.
        plan: When to save, what to keep, what a resume compares.
        directions: What the run says of its metrics.
        stop: What signals ask for, and where the decision to stop goes.
        announce: Takes one line of text for the log.
        place_is_known: Called once the place to continue from is known.
    """

    record: RunDirectory
    metrics: MetricsFile
    store: CheckpointStore
    ranks: Ranks
    plan: Plan
    directions: Directions
    stop: StopRequest
    announce: Callable[[str], None]
    place_is_known: Callable[[], None]
