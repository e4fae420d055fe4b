"""The order in which a record is sent to a backend; what each part sends lies in its own file."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec import structs

from mlflow_track.backends.protocol import (
    Backend,
    Gone,
    Lost,
    Opened,
    Refused,
    RunRecord,
    Unavailable,
    has,
)
from mlflow_track.mirror.artifacts import Artifacts
from mlflow_track.mirror.checkpoints import Checkpoints
from mlflow_track.mirror.media import Media
from mlflow_track.mirror.metrics import ForkNeeded, MetricRows
from mlflow_track.mirror.progress import Position, positions_of
from mlflow_track.mirror.recovery import Recovery
from mlflow_track.mirror.state import Ledger, MirrorState
from mlflow_track.record import layout
from mlflow_track.record.info import last_sign_of_life, true_status
from mlflow_track.record.schema import RUNNING, RunInfo

HEARTBEAT_SECONDS = 15.0


class Shipper:
    """Sends the record of one run to one backend. The caller holds the lock of the mirror."""

    def __init__(
        self,
        path: Path,
        name: str,
        backend: Backend,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._ledger = Ledger(path, name, backend, tell)
        self._rows = [
            MetricRows(self._ledger, layout.METRICS, layout.METRICS_LONG, is_rewound=True),
            MetricRows(self._ledger, layout.SYSTEM_METRICS, is_rewound=False),
        ]
        self._recovery = Recovery(self._ledger, self._rows[0])
        self._artifacts = Artifacts(self._ledger)
        self._media = Media(self._ledger)
        self._checkpoints = Checkpoints(self._ledger, self._artifacts, self._describe)
        self._tell = tell
        # Whether the last attempt at the end did not get past the files; whether it got past all.
        self._is_held_by_files = self._is_closed = False
        self._opened: Opened | None = None
        self._described: RunRecord | None = None
        self._beat_after = 0.0

    @property
    def state(self) -> MirrorState:
        return self._ledger.state

    @property
    def waiting(self) -> str | None:
        """What the destination does not take now, and gets later; None where there is nothing."""
        parts = self._artifacts, self._media, self._checkpoints
        again = f"{min(self._ledger.again)} is tried once more" if self._ledger.again else None
        return next((why for part in parts if (why := part.retries.waiting)), again)

    def ship(self, *, is_alive: bool = False) -> bool:
        """Send everything so far.

        A part that the destination cannot take now does not keep the others from it.

        Args:
            is_alive: Whether the trainer is alive, as the destination is told now and then.

        Returns:
            Whether the destination has all rows; `finish` sends the final status.

        Raises:
            Unavailable: Something is still pending because of the destination.
            Gone: The run was deleted there; the next call begins another one.
        """
        info = self._ledger.read_info()
        self._ledger.again.clear()
        is_drained = True

        def send_rows() -> None:
            nonlocal is_drained
            is_drained = all([rows.send() for rows in self._rows])

        try:
            self._open(info)
            _each(
                lambda: self._describe(info),
                send_rows,
                *([self.beat] if is_alive else []),
                *self._files(info, is_at_end=False),
            )
        except ForkNeeded:
            self._ledger.backend.fork()
            self._begin_anew()
            return False
        except Gone:
            self._begin_anew()
            raise
        except Lost:
            self._send_all_again()
            raise
        except BaseException:
            if self._opened is not None and self._opened.position is not None:
                # Part of a batch may have arrived: the destination itself knows which.
                self._close()
            raise
        return is_drained

    def finish(self) -> str:
        """Note how the run ended, after everything else is there; returns the status."""
        info = self._ledger.read_info()
        status = true_status(self._ledger.path, info)
        if status == RUNNING:
            return status
        parts = [lambda: self._describe(info, is_at_end=True), *self._files(info, is_at_end=True)]
        if self._is_held_by_files and not self._is_closed:
            self._close_run(status, info)
        self._is_held_by_files = True
        _each(*parts, *([self._artifacts.look_back] if self.state.takes_files else []))
        self._is_held_by_files = False
        if not self._is_closed:
            self._close_run(status, info)
        return status

    def _close_run(self, status: str, info: RunInfo) -> None:
        ended = last_sign_of_life(self._ledger.path, info)
        try:
            self._ledger.backend.close(status, ended)
        except Refused as error:
            self._ledger.note_refused([(f"the status {status}", str(error))])
        except Lost:
            self._send_all_again()
            raise
        self._is_closed = True
        self.state.status = status
        self._ledger.save()

    def beat(self) -> None:
        """Let the destination see, every now and then, that the run is alive."""
        now = time.monotonic()
        backend = self._ledger.backend
        if self._opened is not None and now >= self._beat_after and has(backend, "beat"):
            self._beat_after = now + HEARTBEAT_SECONDS
            backend.beat(time.time())

    def note_error(self, error: str | None) -> None:
        if self.state.error != error:
            self.state.error = error
            self._ledger.save()

    # --- inside ---

    def _files(self, info: RunInfo, *, is_at_end: bool) -> list[Callable[[], Any]]:
        """The senders of what lies in files; the final status does not wait for checkpoints."""
        parts: list[Callable[[], Any]] = [self._media.send]
        if self.state.takes_files:
            parts.append(lambda: self._artifacts.send(is_at_end=is_at_end))
            if not is_at_end:
                parts.append(lambda: self._checkpoints.send(info))
        return parts

    def _describe(self, info: RunInfo, *, is_at_end: bool = False) -> None:
        best = self._checkpoints.best(info, is_at_end=is_at_end)
        run = structs.replace(self._ledger.read_run(info), best=best)
        if run != self._described:
            self._ledger.note_refused(self._ledger.backend.describe(run))
            self._described = run

    def _open(self, info: RunInfo) -> None:
        if self._opened is not None:
            return
        ledger = self._ledger
        if self.state.destination != ledger.backend.destination:
            ledger.begin_elsewhere()
        opened = ledger.backend.open(ledger.read_run(info), self.state.run_id or None)
        if opened.id != self.state.run_id and self.state.run_id:
            ledger.begin_anew()
        state = self.state
        state.destination = ledger.backend.destination
        state.run_id, state.url = opened.id, opened.page
        state.status = opened.status or state.status
        self._ask_for_files()
        if opened.media_position is not None:
            self._media.continue_from(opened.media_position)
        ledger.save()
        if opened.position is None:
            self._recover(info, opened)
            self._look_for_foreign(info, opened)
        else:
            self._continue_from(opened.position)
        self._opened = opened

    def _ask_for_files(self) -> None:
        takes_files = has(self._ledger.backend, "upload")
        if self.state.takes_files and not takes_files:
            self._tell(
                f"{self._ledger.name} does not accept files: artifacts and checkpoints are not sent"
            )
        self.state.takes_files = takes_files
        self.state.media.is_taken = has(self._ledger.backend, "log_media")

    def _continue_from(self, position: str) -> None:
        """Take the position from the destination: it counts, not the one noted here."""
        try:
            self.state.files = positions_of(position)
        except ValueError:
            raise Unavailable(
                f"the last point there has the position {position!r}, which does not belong to "
                "this record"
            ) from None
        self.state.is_reconciled = True
        self._ledger.save()
        for rows in self._rows:
            rows.forget()

    def _recover(self, info: RunInfo, opened: Opened) -> None:
        """Without a state of the mirror, take it from the run at the destination."""
        if self.state.is_reconciled:
            return
        backend = self._ledger.backend
        if opened.last_steps and has(backend, "history"):
            self._recovery.recover()
        if not opened.is_new and has(backend, "list_files"):
            self._checkpoints.recover()
        for file in (layout.METRICS, layout.METRICS_LONG):
            position = self.state.position(file)
            position.rewinds = position.rewinds or [0] * len(info.rewinds)
        self.state.is_reconciled = True
        self._ledger.save()

    def _look_for_foreign(self, info: RunInfo, opened: Opened) -> None:
        """Once in each attempt: does the destination have rows that this record does not know?"""
        if not has(self._ledger.backend, "history"):
            return
        state, attempts = self.state, info.attempts
        last_steps = {k: s for k, s in opened.last_steps.items() if not k.startswith("system/")}
        if len(attempts) > 1 and last_steps and state.compared_in != len(attempts):
            # Another machine has made an attempt that this one does not know of.
            state.has_foreign |= opened.is_foreign
            # Rows of a later attempt do not tell what was sent before it.
            first = attempts[min(state.compared_in, len(attempts) - 1)]
            before = self._recovery.last_step_before(first.started or 0)
            if max(last_steps.values()) > before:
                # Rows were sent and then lost here: positions in the file mean nothing any more.
                state.has_foreign = True
                self._recovery.begin_again()
        state.compared_in = len(attempts)
        self._ledger.save()
        if state.has_foreign:
            self._recovery.find_foreign(last_steps)

    def _begin_anew(self) -> None:
        """Send the whole record to a new run of the destination."""
        self._ledger.begin_anew()
        self._close()

    def _send_all_again(self) -> None:
        """What was acknowledged is not there; what is there does not come twice."""
        state = self.state
        for rows in self._rows:
            for file in rows.files:
                before = rows.position(file)
                state.files[file] = Position(sending=before.sending, unknown=before.unknown)
        state.artifacts, state.checkpoints, state.uploading = {}, [], {}
        state.media.acknowledged = 0
        if self._opened is None or self._opened.media_position is None:
            state.media.kept = {}
        state.is_reconciled = False
        self._ledger.save()
        self._close()

    def _close(self) -> None:
        for rows in self._rows:
            rows.forget()
        self._artifacts.forget()
        self._opened = self._described = None
        self._is_closed = False


def _each(*parts: Callable[[], Any]) -> None:
    """Do all; an answer that refuses one does not stop the rest, silence does."""
    failure: Unavailable | None = None
    for part in parts:
        try:
            part()
        except Unavailable as error:
            if not error.is_answer or isinstance(error, Lost):
                raise
            failure = failure or error
    if failure is not None:
        raise failure
