"""The objects that the parts of a run's checkpoints share within one process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mlflow_track.checkpoint.decision import Policies
from mlflow_track.checkpoint.disk.store import CheckpointStore
from mlflow_track.checkpoint.exact.fingerprint import Fingerprints
from mlflow_track.checkpoint.exact.iterating import Loaders
from mlflow_track.checkpoint.ranks import Ranks
from mlflow_track.checkpoint.watched import WatchedValues
from mlflow_track.media.log import MediaLog
from mlflow_track.record.directory import RunDirectory
from mlflow_track.record.metrics import MetricsFile
from mlflow_track.repeats import RepeatedSteps
from mlflow_track.stop import StopRequest


@dataclass(frozen=True, kw_only=True)
class Session:
    """One process and the run that it writes.

    Attributes:
        record: The run's folder, locked by this process; a discarded one of a rank above 0.
        metrics: Its rows: made durable before a checkpoint refers to them, and rewound when an
            older step is restored.
        media: Its images, texts and histograms of steps, rewound with the rows.
        repeats: Whether earlier rows may still give way; notified once the place to continue from
            is known.
        watched: Collects values of watched metrics; None on ranks that do not decide.
        store: Its checkpoints.
        runs: The folder of all runs.
        ranks: The processes of the job.
        policies: The policies for saving, keeping, stopping and resuming.
        stop: The request to stop by a signal, and the decision to stop.
        announce: Takes one line of text for the log.
        fingerprints: Describes the objects of the state, at saves and at a restore.
        loaders: Finds iterators of a DataLoader that are in use.
    """

    record: RunDirectory
    metrics: MetricsFile
    media: MediaLog
    repeats: RepeatedSteps
    watched: WatchedValues | None
    store: CheckpointStore
    runs: Path
    ranks: Ranks
    policies: Policies
    stop: StopRequest
    announce: Callable[[str], None]
    fingerprints: Fingerprints = field(default_factory=Fingerprints)
    loaders: Loaders = field(default_factory=Loaders.here)

    @property
    def volume(self) -> Path:
        """The folder of checkpoints; that of all runs where nothing is written."""
        return self.store.path if self.record.is_kept else self.runs
