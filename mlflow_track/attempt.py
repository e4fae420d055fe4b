"""One attempt of a run: starts the helpers beside the training loop, and ends all of it."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import weakref
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mlflow_track import checks
from mlflow_track.artifacts import Artifacts
from mlflow_track.divergence import Divergence
from mlflow_track.log_handler import LogHandler
from mlflow_track.media.log import MediaLog
from mlflow_track.plugins import why_missing
from mlflow_track.record import provenance
from mlflow_track.record.console import say
from mlflow_track.record.directory import RunDirectory
from mlflow_track.record.exit_status import ending_of, error_since, note_error_before, note_exits
from mlflow_track.record.info import UnreadableRun
from mlflow_track.record.masking import mask_password
from mlflow_track.record.metric import Directions
from mlflow_track.record.schema import FINISHED
from mlflow_track.record.system import SystemMonitor
from mlflow_track.repeats import RepeatedSteps
from mlflow_track.settings import UPLOADS, Settings
from mlflow_track.stop import StopRequest
from mlflow_track.wording import count_text, shown, value_error

if TYPE_CHECKING:
    from mlflow_track.checkpoint.checkpointer import Checkpoints
    from mlflow_track.checkpoint.decision import Policies
    from mlflow_track.checkpoint.policy.retention import Keep
    from mlflow_track.checkpoint.watched import WatchedValues
    from mlflow_track.mirror.companion import Companion

_PROVENANCE_SECONDS = 30.0


class Attempt:
    """The record of a run while one process writes it.

    Args:
        record: The run's folder, locked by this process.
        settings: The settings of the run.
        is_resumed: Whether earlier attempts are in the record.

    Attributes:
        repeats: Removes earlier rows of repeated steps.
        media: Its images, texts and histograms of steps.
        directions: The better direction of each metric.
        stop: The request to stop, by a signal or a policy.
        checkpoints: The current checkpoints; None before `open_checkpoints`.
        watched: Takes the values that their policies watch; None without policies.
        log_handlers: The handlers that write `logging` to the log; closed with the attempt.
        companion: The mirror process; None without one.
        provenance: The thread that captures the origin of the run.
        config_lock: Held while params are written.
        has_ended: Whether `end` was called, or need not be called.
        keeps: Kept alive until then: the run, for `active_run`.
    """

    def __init__(self, record: RunDirectory, settings: Settings, *, is_resumed: bool) -> None:
        self.record = record
        self._settings = settings
        self.checkpoints: Checkpoints | None = None
        self.watched: WatchedValues | None = None
        self.stop = StopRequest()
        self.has_ended = False
        self.keeps: object = None
        self.config_lock = threading.Lock()
        self._is_reopened = is_resumed and record.info.status == FINISHED
        record.start_attempt(provenance.describe_process())
        if settings.backends and record.is_kept:
            record.restate("mirror", settings.for_mirror())
        self.metrics = record.open_metrics(self.print)
        self._divergence = Divergence(record.metrics_path, self.print)
        self.metrics.note_not_finite = self._divergence.note
        self.media = MediaLog(record, self.print)
        self.repeats = RepeatedSteps(record, self.metrics, self.media, is_resumed=is_resumed)
        self.artifacts = Artifacts.of(record, self.print)
        self.directions = Directions(
            record.info.directions,
            lambda changed: self.record.restate("directions", changed),
            self.print,
        )
        self.log_handlers: list[LogHandler] = []
        self.companion: Companion | None = None
        self._system: SystemMonitor | None = None
        self.provenance = threading.Thread()

    def start_helpers(self) -> None:
        """Start the helpers beside the loop: the mirror, system metrics, provenance."""
        note_error_before(self.record.info.id)
        note_exits()
        atexit.register(self._end_at_exit)
        _after_fork(self)
        if not self.record.is_kept:
            return
        for start, what in (
            (self._start_mirror, "the mirror"),
            (self._start_system_metrics, "system metrics"),
            (self._start_provenance, "the capture of provenance"),
        ):
            try:
                start()
            except (OSError, RuntimeError) as error:
                # A machine that allows no more processes or threads still trains.
                self.print(f"WARNING: cannot start {what} ({error}); training continues")

    def _start_mirror(self) -> None:
        backends = []
        for name in self._settings.backends:
            if why := why_missing(name):
                self.print(f"WARNING: {why}; until then the run is recorded here only")
            else:
                backends.append(name)
        before = self.record.info.mirror
        if not self._settings.backends and before is not None:
            self.print(
                f"this run was sent to {', '.join(before.backends)} before, and is recorded here "
                "only from now on; mlflow-track sync sends the rest"
            )
        if backends:
            from mlflow_track.mirror.companion import Companion, mirror_environment

            environment = mirror_environment(self._settings)
            self.companion = Companion(self.record.path, backends, environment)

    def _start_system_metrics(self) -> None:
        interval = self._settings.system_metrics_seconds
        if interval > 0:
            self._system = SystemMonitor(self.record.system_metrics_path, interval, self.print)

    def add_params(self, params: Mapping[str, Any], *, is_start: bool) -> None:
        """Merge checked params into config.json and log the changes."""
        with self.config_lock:
            changed = self.record.add_params(params, is_start=is_start)
        for name, (was, now) in changed.items():
            self.print(f"param {name} changed from {shown(was)} to {shown(now)}")
        is_by_name = self._settings.resume in ("auto", "must")
        if changed and is_start and is_by_name and not self.record.info.name_given:
            self.print(
                "WARNING: resuming an unnamed run whose params have changed. If this is a new "
                "trial, give it its own run_name=…"
            )

    def print(self, message: str, *, is_shown: bool = True) -> None:
        """Write one line to training.log and, unless it is shown there already, on the console."""
        # As a whole: a private key has several lines.
        for line in mask_password(str(message)).splitlines() or [""]:
            try:
                if not self.record.why_closed:
                    self.record.append_log(line)
            except OSError as error:
                # A full disk must not end a training, neither by a checkpoint nor by a line.
                line = f"{line} (not in training.log: {error.strerror})"
            if is_shown and self.record.is_shown:
                say(line)

    def open_checkpoints(self, policies: Policies, upload: str) -> Checkpoints:
        """The run's checkpoints under `policies`; those of an earlier call end.

        Raises:
            TypeError, ValueError: See `Run.checkpoints`.
        """
        self.record.require_open()
        from mlflow_track.checkpoint.checkpointer import Checkpoints
        from mlflow_track.checkpoint.disk.store import CheckpointStore, DiscardedStore
        from mlflow_track.checkpoint.ranks import Ranks
        from mlflow_track.checkpoint.session import Session
        from mlflow_track.checkpoint.watched import WatchedValues

        ranks = Ranks.here()
        if ranks.is_first:
            # The others follow rank 0, which alone knows what the run recorded.
            policies = policies.resolved(self.directions)
        self._set_upload(upload, policies.keep)
        self.stop.listen()
        if self.checkpoints is not None:
            self.checkpoints._end_now("run.checkpoints")
        self.watched = WatchedValues(policies.watched) if ranks.is_first else None
        kind = CheckpointStore if self.record.is_kept else DiscardedStore
        self.checkpoints = Checkpoints(
            Session(
                record=self.record,
                metrics=self.metrics,
                media=self.media,
                store=kind.of_trainer(self.record),
                runs=self._settings.directory,
                ranks=ranks,
                policies=policies,
                stop=self.stop,
                announce=self.print,
                repeats=self.repeats,
                watched=self.watched,
            )
        )
        return self.checkpoints

    def _set_upload(self, upload: str, keep: Keep | None) -> None:
        """Note for the mirror which checkpoints it sends."""
        checks.choice("upload", upload, UPLOADS)
        metric = keep.metric if keep is not None else None
        if upload == "best" and metric is None:
            raise value_error(
                "keep", "Keep(metric=…) where upload is 'best'", "no metric to compare"
            )
        if self.record.info.mirror is not None:
            what = {"upload": upload, "metric": metric, "mode": keep and keep.mode}
            self.record.restate("mirror", what)

    def end(self, status: str, error: str | None) -> None:
        """Make rows durable, write status and end time, give the mirror time to send the rest.

        Only the first call does something.
        """
        if self.has_ended:
            return
        self.has_ended, self.keeps = True, None
        atexit.unregister(self._end_at_exit)
        failure = ""
        if self.checkpoints is not None:
            with self._warned("the last checkpoint may be missing"):
                self.checkpoints._end_in_turn()
            failure = self.checkpoints._failure
        self.stop.ignore()
        if self._system is not None:
            self._system.close()
        if self.provenance.ident is not None:
            self.provenance.join(timeout=_PROVENANCE_SECONDS)
        info = self.record.info
        error = "; ".join(filter(None, [error, failure, self._divergence.ending()])) or None
        if self.record.is_kept:
            self.print(f"run {info.name} {status}{': ' + error if error else ''}")
        self.media.close()
        with self._warned("rows may be lost"):
            self.metrics.sync()
        if gone := self.metrics.gone():
            self.print(f"WARNING: {gone}")
            error = f"{error}; {gone}" if error else gone
        if self.metrics.lost:
            lost = count_text(self.metrics.lost, "metric value")
            self.print(f"WARNING: {lost} of a failed device were lost")
        with self._warned("the status is not in run.json, so the run reads as KILLED"):
            facts = {"checkpoint_error": failure} if failure else {}
            self.record.end_attempt(status, error, **facts)
        why = f"run {info.id} has ended; log before finish, or continue it with resume"
        self.record.close(why)
        with self._warned("rows are lost"):
            self.metrics.close(why)
        for handler in self.log_handlers:
            handler.close()
        self.record.release()
        if self.companion is not None:
            with self._warned("the server may lack some of the run"):
                there = self.companion.close(self._settings.finish_timeout_seconds)
                # Not into training.log: the server has that already.
                self.companion.report(there)

    def end_with(self, error: BaseException | None) -> None:
        """End as the exception says that ended the program, or the way its loop was left."""
        self.end(*ending_of(error, self.stop.interruption, self.stop.request))

    def leave_to_parent(self) -> None:
        """In a forked child: the run is the parent's to write and to finish."""
        self.has_ended, self.keeps = True, None
        self.repeats.place_is_known()
        # A thread of the parent may have held it.
        self.config_lock = threading.Lock()
        why = (
            f"run {self.record.info.id} is written by the process that this one "
            f"({os.getpid()}) was forked from; pass the values to it, or call start_run here"
        )
        self.record.close(why)
        self.metrics.abandon(why)
        for handler in self.log_handlers:
            handler.is_closed = True
        if self.checkpoints is not None:
            self.checkpoints._abandon(why)
        self.media.abandon()

    def open_record(self) -> RunDirectory:
        """The record, to be written to; see `RunDirectory.require_open`."""
        self.record.require_open()
        return self.record

    def open_log_handler(self) -> LogHandler:
        """A handler of `logging` that writes to the log; see `open_record`."""
        handler = LogHandler(self.open_record().append_log)
        self.log_handlers.append(handler)
        return handler

    @contextlib.contextmanager
    def _warned(self, consequence: str) -> Iterator[None]:
        """Warns of errors of the disk: the training is done, they must not end it."""
        try:
            yield
        except (OSError, UnreadableRun) as error:
            self.print(f"WARNING: {error}: {consequence}")

    def _start_provenance(self) -> None:
        # What is added to a run that has finished, like a test result, is of another program.
        if not self._is_reopened:
            self.provenance = provenance.start(
                self.record.path,
                # Not after the end, when another process may write the run.
                lambda found: self.open_record().restate("provenance", found),
                self.print,
            )

    def _end_at_exit(self) -> None:
        self.end_with(error_since(self.record.info.id))


def _after_fork(attempt: Attempt) -> None:
    # The hook stays for the life of the process; the attempt need not.
    reference = weakref.ref(attempt)

    def leave_to_parent() -> None:
        if (attempt := reference()) is not None:
            attempt.leave_to_parent()

    os.register_at_fork(after_in_child=leave_to_parent)
