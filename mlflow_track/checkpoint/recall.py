"""Feeds the memory of a run's policies with logged values, and rebuilds it from the record."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from mlflow_track.checkpoint.disk.logged import ends_of, read_values
from mlflow_track.checkpoint.disk.store import Checkpoint
from mlflow_track.checkpoint.policy.history import Moment
from mlflow_track.checkpoint.policy.memory import Memory
from mlflow_track.checkpoint.session import Session

NO_SAVES: Mapping[str, Any] = {"saved": []}


class Recall:
    """Keeps the logged values up to each step boundary."""

    def __init__(self, session: Session) -> None:
        self._record, self._metrics = session.record, session.metrics
        self._announce, self._watched = session.announce, session.watched
        # Unix time that never jumps: read once, then counted on by a clock that only goes forward.
        self._offset = time.time() - time.monotonic()
        self._names = frozenset() if self._watched is None else self._watched.names
        self.memory = Memory(self._names, since=self._now())
        # Until it is known from where a resumed run continues, earlier rows do not count.
        if session.repeats.is_settled:
            self.replay(NO_SAVES)

    def replay(self, saves: Mapping[str, Any], checkpoint: Checkpoint | None = None) -> None:
        """Make the memory again from the record and the saves.

        Args:
            saves: The earlier saves, as a checkpoint holds them.
            checkpoint: Only rows that belong to it count; None takes all.
        """
        self.take()  # Earlier values are in the record.
        if not self._record.is_kept:
            return
        rows = self._rows(checkpoint)
        self.memory = Memory.replay(saves, rows, self._names, since=self._now())

    def moment(self, step: int, given: Mapping[str, float]) -> Moment:
        """The step boundary of now, once watched values on their way have arrived."""
        self.take()
        if not given:  # Mostly.
            return Moment(step, self._now(), self.memory.at(step))
        self.memory.give(step, given)
        return Moment(step, self._now(), {**given, **self.memory.at(step)})

    def take(self) -> None:
        """Remember the values logged since the last call."""
        if self._watched is not None and self._watched.new:
            self._watched.take(self.memory.log)

    def logged_names(self) -> set[str]:
        """The metrics that this process has logged."""
        return set().union(*self._metrics.known)

    def _now(self) -> float:
        return self._offset + time.monotonic()

    def _rows(self, checkpoint: Checkpoint | None) -> Iterator[tuple[str, int, float]]:
        if not self._names or not self._record.is_kept:
            return
        try:
            self._metrics.positions()  # Waits for values on their way.
            path = self._record.metrics_path
            ends = None if checkpoint is None else ends_of(path, checkpoint)
            yield from read_values(path, self._names, ends)
        except (OSError, ValueError) as error:
            self._announce(f"WARNING: {error}: policies do not know earlier values")
