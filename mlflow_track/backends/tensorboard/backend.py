"""TensorBoard as a destination: `tensorboard --logdir runs` shows the runs beside their records.

Only files of the run's own folder are written: nothing here finds runs of another machine.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial

from mlflow_track.backends.protocol import (
    Backend,
    MetricPoint,
    Opened,
    Refusals,
    RunRecord,
    Unavailable,
)
from mlflow_track.backends.tensorboard.events import (
    description,
    end_event,
    scalar_events,
    without_steps_after,
)
from mlflow_track.backends.tensorboard.files import EventFiles
from mlflow_track.record.find import folder_name
from mlflow_track.record.schema import RUNNING


class TensorboardBackend(Backend):
    """Writes event files to `tensorboard/<name of the run>/` in the folder of each run."""

    def __init__(self) -> None:
        self._opened: tuple[EventFiles, RunRecord] | None = None

    # --- required ---

    def open(self, run: RunRecord, known_id: str | None) -> Opened:
        forks = self.memory.get("forks", 0)
        name = known_id or folder_name(run.name) + (f"-{forks + 1}" if forks else "")
        with _writing():
            files = EventFiles(run.path, name)
        self._opened = files, run
        return Opened(name, str(files.folder), files.position)

    def describe(self, run: RunRecord) -> Refusals:
        with self._existing() as (files, _):
            self._opened = files, run
            # An end of an earlier attempt is not that of a run that continues.
            started = run.newest.started or run.created
            end = [end_event(RUNNING, started)] if len(run.attempts) > 1 else []
            files.describe(description(run, end))
        return []

    def log_metrics(self, points: Sequence[MetricPoint]) -> Refusals:
        with self._existing() as (files, _):
            files.append(scalar_events(points))
        return []

    def close(self, status: str, ended: float) -> None:
        with self._existing() as (files, run):
            end = end_event(status, ended)
            files.describe(description(run, [end]))
            # A page that is open has read the description already.
            if files.last not in (b"", end):
                files.append([end])
            files.sync()

    # --- optional ---

    def rewind(self, step: int) -> None:
        with self._existing() as (files, _):
            files.keep(partial(without_steps_after, step=step))

    def fork(self) -> None:
        self.memory = {"forks": self.memory.get("forks", 0) + 1}
        self.save()

    # --- inside ---

    @contextlib.contextmanager
    def _existing(self) -> Iterator[tuple[EventFiles, RunRecord]]:
        assert self._opened is not None, "open must be called first"
        with _writing():
            yield self._opened


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Unavailable(f"the event files cannot be written: {error}") from error
