"""TensorBoard as a destination: `tensorboard --logdir runs` shows the runs beside their records.

Only files of the run's own folder are written: nothing here finds runs of another machine.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from functools import partial

from mlflow_track.backends.protocol import (
    Backend,
    MediaItem,
    MetricPoint,
    Opened,
    Refusals,
    RunRecord,
    Unavailable,
)
from mlflow_track.backends.tensorboard.description import description, end_event
from mlflow_track.backends.tensorboard.events import (
    media_event,
    place_of,
    scalar_events,
    without_media,
    without_steps_after,
)
from mlflow_track.backends.tensorboard.files import EventFiles
from mlflow_track.record.files import read_file
from mlflow_track.record.find import folder_name
from mlflow_track.record.schema import KILLED, RUNNING

# Protocol buffers end at 2 GiB.
_MOST_MEDIA_BYTES = 1 << 30


class TensorboardBackend(Backend):
    """Writes event files to `tensorboard/<name of the run>/` in the folder of each run."""

    def __init__(self) -> None:
        self._opened: EventFiles | None = None
        self._run: RunRecord | None = None

    # --- required ---

    def open(self, run: RunRecord, known_id: str | None) -> Opened:
        forks = self.memory.get("forks", 0)
        name = known_id or folder_name(run.name) + (f"-{forks + 1}" if forks else "")
        with _writing():
            files = EventFiles(run.path, name)
        self._opened, self._run = files, run
        return Opened(
            name,
            str(files.folder),
            files.held.position,
            media_position=files.held.media_position,
        )

    def describe(self, run: RunRecord) -> Refusals:
        self._run = run
        # An end of an earlier attempt is not that of a run that continues.
        started = run.newest.started or run.created
        end = [end_event(RUNNING, started)] if len(run.attempts) > 1 else []
        with _writing():
            self._files.describe(description(run, end))
        return []

    def log_metrics(self, points: Sequence[MetricPoint]) -> Refusals:
        files = self._files
        with _writing():
            files.append(scalar_events(points, files.held))
        return []

    def close(self, status: str, ended: float) -> None:
        assert self._run is not None, "open must be called first"
        files, end = self._files, end_event(status, ended)
        with _writing():
            files.describe(description(self._run, [end]))
            # A page that is open has read the description already.
            if files.held.last not in (b"", end):
                files.append([end])
            files.sync()

    # --- optional ---

    def log_media(self, items: Sequence[MediaItem]) -> Refusals:
        files, refused = self._files, []
        events: dict[tuple[str, int], bytes] = {}
        for item in items:
            try:
                event = media_event(item, read_file(item.path, _MOST_MEDIA_BYTES), files.held)
            except ValueError as error:
                refused.append((f"{item.kind} {item.key!r} of step {item.step}", str(error)))
                continue
            # Of two in one place the later one counts, in its order.
            place = place_of(item, files.held)
            events.pop(place, None)
            events[place] = event
        with _writing():
            _drop(files, events.keys())
            if events:
                files.append([*events.values()])
        return refused

    def remove_media(self, items: Sequence[MediaItem]) -> None:
        files = self._files
        with _writing():
            _drop(files, {place_of(item, files.held) for item in items})

    def rewind(self, step: int) -> None:
        with _writing():
            self._files.keep(partial(without_steps_after, step=step))

    def fork(self) -> None:
        if self._opened is not None and self._run is not None:
            # Its trainer is gone: this attempt continues elsewhere.
            ended = self._run.newest.started or self._run.created
            with _writing():
                self._files.describe(description(self._run, [end_event(KILLED, ended)]))
        self.memory = {"forks": self.memory.get("forks", 0) + 1}
        self.save()

    # --- inside ---

    @property
    def _files(self) -> EventFiles:
        assert self._opened is not None, "open must be called first"
        return self._opened


def _drop(files: EventFiles, places: Collection[tuple[str, int]]) -> None:
    """Remove the images, texts and histograms that are at these places, if any."""
    if not files.held.media.isdisjoint(places):
        files.keep(partial(without_media, removed=places))


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Unavailable(f"the event files cannot be written: {error}") from error
