"""Run: the verbs check and convert their arguments once and write to the record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from mlflow_track import checks
from mlflow_track.attempt import Attempt
from mlflow_track.record.device_values import Arriving
from mlflow_track.record.directory import RunDirectory
from mlflow_track.record.schema import FAILED, FINISHED, KILLED
from mlflow_track.settings import Settings
from mlflow_track.verbs import RecordVerbs
from mlflow_track.wording import shown, value_error

if TYPE_CHECKING:
    import pandas

    from mlflow_track.checkpoint.checkpointer import Checkpoints
    from mlflow_track.checkpoint.policy.retention import Keep
    from mlflow_track.checkpoint.policy.save_policy import SavePolicy
    from mlflow_track.checkpoint.policy.stopping import EarlyStopping
    from mlflow_track.checkpoint.watched import WatchedValues
    from mlflow_track.mirror.status import SyncStatus

_EXACT_INT = 2**53


class Run(RecordVerbs):
    """A run that is being written. Made by `start_run`; `finish` or the `with` block ends it.

    Attributes:
        id: The run's id, also the name of its folder.
        name: The run's name.
        path: Its folder.
    """

    def __init__(
        self,
        directory: RunDirectory,
        settings: Settings,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        *,
        is_resumed: bool,
    ) -> None:
        self._settings = settings
        self.id: str = directory.info.id
        self.name: str = directory.info.name
        self.path: Path = directory.path
        self._attempt = Attempt(directory, settings, is_resumed=is_resumed)
        self._metrics, self._repeats = self._attempt.metrics, self._attempt.repeats
        self._watched: WatchedValues | None = None
        self._attempt.add_params(params, is_start=True)
        if tags and is_resumed:
            directory.set_tags(tags)
        self._attempt.start_helpers()
        self._attempt.keeps = self
        verb = f"continues (attempt {directory.attempt})" if is_resumed else "starts"
        if directory.is_kept:
            self.print(f"run {self.name} of {directory.info.experiment} {verb} in {self.path}")
        for warning in directory.unpromised():
            self.print(warning)

    # --- logging ---

    def log_metrics(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Write one row of metrics. When this returns, the row survives the process.

        A tensor on a CUDA device does not block: its row, and those logged after it, are written
        in their order by the first call that finds its value arrived, at the latest by a checkpoint
        or by `finish`. Threads may log at the same time.

        Args:
            metrics: Numbers by name: Python's, NumPy's, or tensors of one element. NaN and
                infinities are kept.
            step: An integer of 0 or more.

        Raises:
            TypeError: A value is not a number, a name is not a string, or the step is not an
                integer.
            ValueError: A name is empty or the step negative.
            RuntimeError: The run has ended, or this process was forked from the one that writes it.
            OSError: The disk is full; the row is not logged.
        """
        if type(step) is not int or not 0 <= step <= checks.MOST_STEP:
            step = checks.step_number(step)
        names = tuple(metrics)
        values = [v if type(v) is float else self._number(k, v) for k, v in metrics.items()]
        if names not in self._metrics.known:
            for name in names:
                checks.metric_name(name)
            if not names:
                return
        if self._repeats.may_come:
            self._repeats.give_way(names, step)
        if (watched := self._watched) is not None:
            places = watched.places.get(names)
            if places is None:
                places = watched.find(names)
            if places:
                # Policies get the values in the order of the record.
                with self._metrics.lock:
                    self._metrics.append(step, names, values)
                    watched.add(step, names, values, places)
                return
        self._metrics.append(step, names, values)

    def log_metric(self, key: str, value: float, *, step: int) -> None:
        """Write one metric.

        Args:
            key: The metric's name.
            value: A number; see `log_metrics`.
            step: An integer of 0 or more.

        Raises:
            TypeError, ValueError, RuntimeError, OSError: As `log_metrics` does.
        """
        # A loop over the layers of a model logs thousands of them at a step.
        if (
            type(value) is float
            and type(step) is int
            and 0 <= step <= checks.MOST_STEP
            and key in self._metrics.alone
            and not self._repeats.may_come
            and (self._watched is None or key not in self._watched.names)
        ):
            self._metrics.append_one(step, key, value)
        else:
            self.log_metrics({key: value}, step=step)

    # --- checkpoints and the end ---

    def checkpoints(
        self,
        *,
        save: SavePolicy | None = None,
        keep: Keep | None = None,
        stop: EarlyStopping | None = None,
        upload: str | None = None,
        max_steps: int | None = None,
        require_same: Sequence[str] = (),
        allow_changed: Sequence[str] = (),
    ) -> Checkpoints:
        """Open the run's checkpoints: `save` decides when, `keep` decides which stay.

        From here on SIGTERM, Ctrl-C, SIGUSR1 and a terminal that closes (SIGHUP) ask for a
        checkpoint and a clean stop, and so does `MLFLOW_TRACK_DEADLINE`. In a job of several ranks
        (torchrun) all of them call this, after `torch.distributed.init_process_group`, and then the
        same methods at the same steps.

        Args:
            save: When to save; None saves only when `save()` is called.
            keep: Which ones to keep; None keeps all.
            stop: When to stop early: `should_stop` turns true then, and the run ends FINISHED.
            upload: Which of the kept ones are sent to the MLflow server: "all", the "best" by the
                metric of `keep`, the "last", or "none"; else MLFLOW_TRACK_UPLOAD, else all.
            max_steps: Steps of the whole run, so that the last one is always saved.
            require_same: Params (shell patterns of dotted names, `data.*` for the sha256 of inputs)
                that must equal those of the checkpoint: a resume with a different one is refused.
            allow_changed: Params that may differ while the continuation counts as exact. Another
                one that differs makes the report say "exact: unknown".

        Raises:
            TypeError, ValueError: An argument is invalid; the message names it; or `upload` is
                "best" without a metric, or a metric's direction is unknown or contradicted.
        """
        from mlflow_track.checkpoint.decision import Policies
        from mlflow_track.checkpoint.policy.limits import Limits

        deadline, replay_step = self._settings.deadline, self._settings.replay_step
        limits = Limits(max_steps=max_steps, deadline=deadline, replay_step=replay_step)
        policies = Policies(
            save=save,
            keep=keep,
            stop=stop,
            require_same=require_same,
            allow_changed=allow_changed,
            limits=limits,
        )
        checkpoints = self._attempt.open_checkpoints(policies, upload or self._settings.upload)
        self._watched = self._attempt.watched
        return checkpoints

    @property
    def should_stop(self) -> bool:
        """Whether to leave the loop. Reading this promises to obey it: the run then ends KILLED.

        A loop that never reads it, or makes further steps nevertheless, ends FINISHED.

        True after a signal, a deadline or early stopping. Where `checkpoints.step` is called it
        turns true there, after a checkpoint was saved, and on all ranks at the same step.
        """
        self._attempt.stop.listen()
        return self._attempt.stop.heed()

    @property
    def stop_reason(self) -> str | None:
        """The reason to stop: the name of a signal, a deadline, early stopping; else None."""
        return self._attempt.stop.reason

    @property
    def url(self) -> str | None:
        """The run's page at its first backend, once known."""
        from mlflow_track.mirror.state import MirrorState

        names = self._backends
        return MirrorState.read(self._attempt.record.path, names[0]).url if names else None

    def sync_status(self) -> SyncStatus | None:
        """The status of the run at each backend: counts of sent and missing items, and errors.

        None where the run is sent nowhere.
        """
        from mlflow_track.mirror.status import read_statuses

        names = self._backends
        return read_statuses(self._attempt.record.path, names) if names else None

    def metrics(self) -> pandas.DataFrame:
        """The metrics so far: one row per step, one column per metric; see `LoadedRun`."""
        from mlflow_track.analysis.frames import read_frame

        return read_frame(self._attempt.record.metrics_path)

    def _repr_html_(self) -> str:
        from mlflow_track.analysis.load import load_run

        if not self._attempt.record.is_kept:
            return f"<p>run {self.name}: nothing is recorded</p>"
        return load_run(self.path)._repr_html_()

    def finish(self, status: str = FINISHED, error: str | None = None) -> None:
        """End the run: rows durable, status and end time written, the mirror given time to end.

        A full or failing disk causes a warning. In a process that was forked from the one that
        writes the run, this does nothing.

        Args:
            status: "FINISHED", "FAILED" or "KILLED". A loop that was left because `should_stop` was
                true is not finished: its run ends KILLED.
            error: The error, in one line.

        Raises:
            ValueError: The status is not one of these.
        """
        if status not in (FINISHED, FAILED, KILLED):
            raise value_error("status", "FINISHED, FAILED or KILLED", shown(status))
        if status == FINISHED and error is None:
            self._attempt.end_with(None)
        else:
            self._attempt.end(status, error)

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._attempt.end_with(error)

    # --- inside ---

    @property
    def _backends(self) -> tuple[str, ...]:
        return self._settings.backends if self._attempt.record.is_kept else ()

    def _number(self, name: str, value: Any) -> float | Arriving:
        if type(value) is int and -_EXACT_INT <= value <= _EXACT_INT:
            return value
        return checks.metric_value(name, value)
