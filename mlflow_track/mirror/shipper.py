"""The order in which a record is sent to a server; what each part sends lies in its own file."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlflow_track.backends.protocol import Gone, Sink, Target, Unavailable
from mlflow_track.mirror.artifacts import Artifacts
from mlflow_track.mirror.checkpoints import Checkpoints
from mlflow_track.mirror.metadata import Description
from mlflow_track.mirror.metrics import ForkNeeded, MetricRows
from mlflow_track.mirror.server_run import discard_ghosts, forget, fork, link
from mlflow_track.mirror.state import Ledger, MirrorState
from mlflow_track.record import layout
from mlflow_track.record.info import true_status
from mlflow_track.record.schema import RUNNING, RunInfo

ATTEMPTS_TAG = "mlflow_track.attempts"
HEARTBEAT_TAG = "mlflow_track.heartbeat"
HEARTBEAT_SECONDS = 15.0


class Shipper:
    """Sends the record of one run to one server. The caller holds the lock of the mirror.

    Args:
        path: The run's folder.
        sink: The server.
        tracking_uri: Its name, without a password.
    """

    def __init__(self, path: Path, sink: Sink, tracking_uri: str) -> None:
        self._ledger = Ledger(path, sink, tracking_uri)
        self._description = Description(self._ledger)
        self._rows = [
            MetricRows(self._ledger, layout.METRICS, layout.METRICS_LONG, is_rewound=True),
            MetricRows(self._ledger, layout.SYSTEM_METRICS, is_rewound=False),
        ]
        self._artifacts = Artifacts(self._ledger)
        self._checkpoints = Checkpoints(self._ledger, self._artifacts)
        self._is_linked = False
        self._beat_after = 0.0

    @property
    def state(self) -> MirrorState:
        return self._ledger.state

    def ship(self) -> bool:
        """Send what is there.

        A part that the server cannot take now does not keep the others from it.

        Returns:
            Whether the server has all rows; the status at the end is told by `finish`.

        Raises:
            Unavailable: Something is still pending because of the server.
            Gone: The run was deleted there; the next call begins another one.
        """
        info = self._ledger.read_info()
        is_drained = True

        def send_rows() -> None:
            nonlocal is_drained
            is_drained = all([rows.send() for rows in self._rows])

        try:
            self._link(info)
            _each(
                lambda: self._description.send(info),
                send_rows,
                lambda: self._artifacts.send(is_at_end=False),
                lambda: self._checkpoints.send(info),
            )
        except ForkNeeded:
            fork(self._ledger)
            self._unlink()
            return False
        except Gone:
            forget(self._ledger)
            self._unlink()
            raise
        return is_drained

    def finish(self) -> str:
        """Tell the server how the run ended, after everything else is there; returns the status."""
        info = self._ledger.read_info()
        status = true_status(self._ledger.path, info)
        if status == RUNNING:
            return status
        _each(
            lambda: self._description.send(info),
            lambda: self._artifacts.send(is_at_end=True),
            lambda: discard_ghosts(self._ledger, info),
            lambda: self._ledger.remove_tag(HEARTBEAT_TAG),
        )
        ended = info.ended if info.status == status else None
        end_time = round(1000 * (ended or self._ledger.last_sign_of_life()))
        self._ledger.sink.set_status(self._ledger.run_id, status, end_time)
        self.state.status = status
        self._ledger.save()
        return status

    def beat(self) -> None:
        """Let the server see, every now and then, that the run is alive."""
        now = time.monotonic()
        if self._is_linked and now >= self._beat_after:
            self._beat_after = now + HEARTBEAT_SECONDS
            clock = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            self._ledger.set_tags({HEARTBEAT_TAG: clock})

    def note_error(self, error: str | None) -> None:
        if self.state.error != error:
            self.state.error = error
            self._ledger.save()

    def _link(self, info: RunInfo) -> None:
        if self._is_linked:
            return
        target = link(self._ledger, info)
        self._description.own_tags = {k for k in target.tags if k.startswith("mlflow.")}
        self._recover(info, target)
        self._look_for_foreign(info, target)
        self._is_linked = True

    def _recover(self, info: RunInfo, target: Target) -> None:
        """Without a mirror.json of it, the run at the server itself says what it has."""
        if self.state.is_reconciled:
            return
        if target.metrics:
            self._rows[0].recover()
        if target.metrics or "mlflow_track.latest_checkpoint" in target.tags:
            self._checkpoints.recover()
        for file in (layout.METRICS, layout.METRICS_LONG):
            position = self.state.position(file)
            position.rewinds = position.rewinds or [0] * len(info.rewinds)
        self.state.is_reconciled = True
        self._ledger.save()

    def _look_for_foreign(self, info: RunInfo, target: Target) -> None:
        """Once in each attempt: does the server have rows that this record does not know?"""
        rows, state, attempts = self._rows[0], self.state, info.attempts
        last_steps = {k: s for k, s in target.metrics.items() if not k.startswith("system/")}
        if len(attempts) > 1 and last_steps and state.compared_in != len(attempts):
            sent_last = target.tags.get(ATTEMPTS_TAG)
            # Another machine has made an attempt that this one does not know of.
            state.has_foreign |= state.tags.get(ATTEMPTS_TAG, sent_last) != sent_last
            # What a later attempt has logged says nothing of what was sent before it.
            first = attempts[min(state.compared_in, len(attempts) - 1)]
            if max(last_steps.values()) > rows.last_step_before(first.started or 0):
                # Rows were sent and then lost here: positions in the file mean nothing any more.
                state.has_foreign = True
                rows.begin_again()
        state.compared_in = len(attempts)
        self._ledger.save()
        if state.has_foreign:
            rows.find_foreign(last_steps)

    def _unlink(self) -> None:
        for rows in self._rows:
            rows.forget()
        self._is_linked = False


def _each(*parts: Callable[[], Any]) -> None:
    """Do all; an answer that refuses one does not stop the rest, silence does."""
    failure: Unavailable | None = None
    for part in parts:
        try:
            part()
        except Unavailable as error:
            if not error.is_answer:
                raise
            failure = failure or error
    if failure is not None:
        raise failure
