"""Run, the verbs: check and convert once, write to the record."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from mlflow_track import checks
from mlflow_track.artifacts import Artifacts
from mlflow_track.ending import ending_of, error_since, note_error_before
from mlflow_track.record import provenance
from mlflow_track.record.console import say
from mlflow_track.record.directory import RunDirectory
from mlflow_track.record.info import UnreadableRun
from mlflow_track.record.late import Arriving
from mlflow_track.record.masking import mask_password
from mlflow_track.record.rows import iterate_rows
from mlflow_track.record.statuses import FAILED, FINISHED, KILLED
from mlflow_track.record.undisturbed import undisturbed
from mlflow_track.settings import UPLOADS, Settings
from mlflow_track.stop import StopRequest
from mlflow_track.system import SystemMonitor

if TYPE_CHECKING:
    import pandas

    from mlflow_track.checkpoint.checkpointer import Checkpointer
    from mlflow_track.checkpoint.follower import Follower
    from mlflow_track.checkpoint.retention import Keep
    from mlflow_track.checkpoint.schedule import SavePolicy
    from mlflow_track.mirror.companion import Companion
    from mlflow_track.mirror.status import SyncStatus
    from mlflow_track.off import NoCheckpoints

_EXACT_INT = 2**53


class Run:
    """A run that is being written. Made by `start_run`; `finish` or the `with` block ends it.

    Attributes:
        id: The run's id, also the name of its folder.
        name: The run's name.
        directory: Its folder.
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
        self._record = directory
        self._settings = settings
        self.id: str = directory.info["id"]
        self.name: str = directory.info["name"]
        self.directory: Path = directory.path
        self._is_finished = False
        self._why_closed = ""
        self._stop = StopRequest()
        self._checkpointer: Checkpointer | None = None
        self._config_lock = threading.Lock()
        # A resumed run may log steps again that it has (see _give_way).
        self._is_place_unknown = is_resumed
        self._place_lock = threading.Lock()
        self._former_steps: dict[str, int] | None = None
        directory.start_attempt(provenance.describe_process())
        if settings.tracking_uri:
            directory.restate(
                "mirror",
                {
                    "attach": settings.mlflow_run_id,
                    "experiment_id": settings.mlflow_experiment_id,
                    "tracking_uri": mask_password(settings.tracking_uri),
                    "rewind": settings.rewind,
                    "upload": settings.upload,
                },
            )
        self._metrics = directory.open_metrics(self.print)
        self._former_bytes = self._metrics.position()
        self._artifacts = Artifacts(directory.artifacts_path)
        self._write_params(params, is_start=True)
        if tags and is_resumed:
            directory.set_tags(tags)
        self._companion = self._start_mirror()
        self._system = self._start_system_monitor()
        self._provenance = threading.Thread(target=self._capture_provenance, daemon=True)
        self._provenance.start()
        note_error_before(self.id)
        atexit.register(self._finish_at_exit)
        _after_fork(self)
        verb = f"continues (attempt {directory.attempt})" if is_resumed else "starts"
        self.print(f"run {self.name} of {directory.info['experiment']} {verb} in {self.directory}")

    # --- what is logged ---

    def log_metrics(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Write one row of metrics. When this returns, the row survives the process.

        A tensor on a CUDA device is not waited for: its row, and those logged after it, are written
        in their order by the first call that finds its value arrived, at the latest by a checkpoint
        or by `finish`. Threads may log at the same time.

        Args:
            metrics: Numbers by name: Python's, NumPy's, or tensors of one element. NaN and
                infinities are kept.
            step: An integer of 0 or more.

        Raises:
            TypeError: A value is no number, a name no string, a step no integer.
            ValueError: A name is empty or a step negative.
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
        if self._is_place_unknown and self._may_repeat(names, step):
            undisturbed(lambda: self._give_way(names, step))
        self._metrics.append(step, names, values)

    def log_metric(self, name: str, value: float, *, step: int) -> None:
        """Write one metric; see `log_metrics`."""
        self.log_metrics({name: value}, step=step)

    def log_params(self, params: Any) -> None:
        """Add params: a mapping or dataclass, nested allowed. A changed value is recorded as such.

        Raises:
            TypeError: A value is not serialisable; the message names its path.
        """
        self._write_params(checks.params(params), is_start=False)

    def log_param(self, name: str, value: Any) -> None:
        """Add one param; see `log_params`."""
        self.log_params({name: value})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags; values become strings."""
        self._open_record().set_tags(checks.tags(tags))

    def set_tag(self, name: str, value: str) -> None:
        """Set one tag; see `set_tags`."""
        self.set_tags({name: value})

    def log_input(
        self,
        name: str,
        *,
        sha256: str,
        size_bytes: int,
        source: str = "",
        context: str = "training",
    ) -> None:
        """Note a dataset that the run reads; MLflow shows it as the run's dataset.

        Raises:
            TypeError: `size_bytes` is no integer, or another argument no string.
        """
        item = checks.input_description(name, sha256, size_bytes, source, context)
        record = self._open_record()
        if item not in record.info["inputs"]:
            record.add("inputs", item)

    def log_artifact(self, path: str | os.PathLike[str], artifact_path: str | None = None) -> Path:
        """Copy a file, or a folder with all in it, to the artifacts, below `artifact_path`.

        Raises:
            FileNotFoundError: There is nothing at `path`.
            ValueError: `artifact_path` would leave the artifacts.
        """
        return self._open_artifacts().copy(path, artifact_path)

    def log_artifacts(
        self, folder: str | os.PathLike[str], artifact_path: str | None = None
    ) -> None:
        """Copy what a folder holds to the artifacts."""
        self._open_artifacts().copy_content(folder, artifact_path)

    def log_text(self, text: str, artifact_file: str) -> Path:
        """Write a text as an artifact."""
        return self._open_artifacts().write_text(text, artifact_file)

    def log_dict(self, content: Any, artifact_file: str) -> Path:
        """Write JSON-serialisable content as an artifact."""
        return self._open_artifacts().write_json(content, artifact_file)

    def log_figure(self, figure: Any, artifact_file: str) -> Path:
        """Draw a matplotlib figure into an artifact; its ending says how (png, svg, pdf)."""
        return self._open_artifacts().write_figure(figure, artifact_file)

    def log_table(self, data: Any, artifact_file: str) -> Path:
        """Write a table as an artifact, `.csv` or `.json`: a mapping of columns, or a DataFrame."""
        return self._open_artifacts().write_table(data, artifact_file)

    def print(self, message: str, *, is_shown: bool = True) -> None:
        """Say one line in training.log and, unless something else shows it there, on the console.

        The console is stderr.
        """
        for line in str(message).splitlines() or [""]:
            try:
                self._record.append_log(line)
            except OSError as error:
                # On a full disk a line of text must not end what a checkpoint that fails does not.
                line = f"{line} (not in training.log: {error.strerror})"
            if is_shown:
                say(line)

    # --- checkpoints and the end ---

    def checkpoints(
        self,
        *,
        save: SavePolicy | None = None,
        keep: Keep | None = None,
        upload: str | None = None,
        max_steps: int | None = None,
        must_match: Sequence[str] = (),
        free: Sequence[str] = (),
    ) -> Checkpointer | Follower | NoCheckpoints:
        """The run's checkpoints: `save` decides when, `keep` decides what stays.

        From here on SIGTERM, Ctrl-C and SIGUSR1 ask for a checkpoint and a clean stop, and so does
        `MLFLOW_TRACK_DEADLINE`. In a job of several ranks (torchrun) all of them call this, after
        `torch.distributed.init_process_group`, and then the same methods at the same steps.

        Args:
            save: When to save; None saves only when `save()` is called.
            keep: What to keep; None keeps all.
            upload: Which of the kept ones the MLflow server gets, too: "all", the "best" by the
                metric of `keep`, the "last", or "none"; else MLFLOW_TRACK_UPLOAD, else all.
            max_steps: Steps of the whole run, so that the last one is saved whatever `save` says.
            must_match: Params (shell patterns of dotted names, `data.*` for the sha256 of inputs)
                that must be those of the checkpoint: a resume that changed one is refused.
            free: Params that may differ and leave the continuation exact. Any other that differs
                makes the report say "exact: no".

        Raises:
            TypeError, ValueError: An argument does not fit; the message names it; or `upload` is
                "best" without a metric to compare.
        """
        from mlflow_track.checkpoint.checkpointer import Checkpointer
        from mlflow_track.checkpoint.decision import Limits
        from mlflow_track.checkpoint.plan import Plan

        limits = Limits(
            max_steps=max_steps,
            deadline=self._settings.deadline,
            replay_step=self._settings.replay_step,
        )
        plan = Plan(save=save, keep=keep, must_match=must_match, free=free, limits=limits)
        self._set_upload(upload or self._settings.upload, keep)
        self._stop.listen()
        if self._checkpointer is not None:
            self._checkpointer.close()
        self._checkpointer = Checkpointer(
            self._record,
            self._metrics,
            plan=plan,
            announce=self.print,
            stop=self._stop,
            restored=self._place_is_known,
        )
        return self._checkpointer

    @property
    def should_stop(self) -> bool:
        """Whether to leave the loop. Looking at this promises to obey it.

        A signal, or a deadline, asked to stop. Where `checkpoints.step` is called it turns true
        there, after a checkpoint was saved, and on all ranks at the same step.
        """
        self._stop.listen()
        return self._stop.reason is not None

    @property
    def url(self) -> str | None:
        """The run's page in the MLflow UI, once known."""
        return self._companion.url() if self._companion else None

    def sync_status(self) -> SyncStatus | None:
        """What the MLflow server has of the run and what it lacks, by count, and why.

        None where the run has no server: its backend is not "mlflow".
        """
        return self._companion.status() if self._companion else None

    def metrics(self) -> pandas.DataFrame:
        """What was logged so far: one row per step, one column per metric; see `LoadedRun`."""
        from mlflow_track.analysis.load import load_run

        return load_run(self.directory).metrics()

    def _repr_html_(self) -> str:
        from mlflow_track.analysis.load import load_run

        return load_run(self.directory)._repr_html_()

    def finish(self, status: str = FINISHED, error: str | None = None) -> None:
        """End the run: rows durable, status and end time written, the mirror given time to end.

        A disk that fails or is full costs a warning.

        Args:
            status: "FINISHED", "FAILED" or "KILLED".
            error: What went wrong, in one line.

        Raises:
            ValueError: Another status.

        In a process that was forked from the one that writes the run, this does nothing.
        """
        if status not in (FINISHED, FAILED, KILLED):
            raise ValueError(f"status is {status!r}; it takes FINISHED, FAILED or KILLED")
        if self._is_finished:
            return
        self._is_finished = True
        atexit.unregister(self._finish_at_exit)
        if self._checkpointer is not None:
            with self._warned("the last checkpoint may be missing"):
                self._checkpointer.close()
        self._stop.ignore()
        if self._system is not None:
            self._system.close()
        self._provenance.join(timeout=30)
        self.print(f"run {self.name} {status}{': ' + error if error else ''}")
        with self._warned("rows may be lost"):
            self._metrics.sync()
        if gone := self._metrics.gone():
            self.print(f"WARNING: {gone}")
            error = f"{error}; {gone}" if error else gone
        if self._metrics.lost:
            self.print(f"{self._metrics.lost} metric values never came: their device failed")
        with self._warned("the status is not in run.json, and the run reads as KILLED"):
            self._record.end_attempt(status, error)
        self._why_closed = f"run {self.id} has ended; log before finish, or continue it with resume"
        with self._warned("rows are lost"):
            self._metrics.close(self._why_closed)
        self._record.release()
        if self._companion is not None:
            with self._warned("what the server lacks is not known"):
                pending = self._companion.close(self._settings.finish_timeout_seconds)
                # Not into training.log: the server has that already.
                say(str(pending))

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.finish(*ending_of(error, self._stop.reason))

    # --- inside ---

    @contextlib.contextmanager
    def _warned(self, consequence: str) -> Iterator[None]:
        """The training is done: what the disk does not take is said, and ends nothing."""
        try:
            yield
        except (OSError, UnreadableRun) as error:
            self.print(f"WARNING: {error}: {consequence}")

    def _open_record(self) -> RunDirectory:
        if self._why_closed:
            raise RuntimeError(self._why_closed)
        return self._record

    def _open_artifacts(self) -> Artifacts:
        self._open_record()
        return self._artifacts

    def _leave_to_parent(self) -> None:
        """In a forked child: the run is the parent's to write and to finish."""
        self._is_finished = True
        self._is_place_unknown = False
        # Another thread of the parent may have held it.
        self._config_lock = threading.Lock()
        self._why_closed = (
            f"run {self.id} is written by the process that this one ({os.getpid()}) was forked "
            "from; hand the values over to it, or start_run a run of its own here"
        )
        self._metrics.abandon(self._why_closed)
        if self._checkpointer is not None:
            self._checkpointer.abandon(self._why_closed)

    def _set_upload(self, upload: str, keep: Keep | None) -> None:
        """Note for the mirror which checkpoints it sends."""
        checks.word("upload", upload, UPLOADS)
        metric = keep.metric if keep is not None else None
        if upload == "best" and metric is None:
            raise ValueError("upload='best' needs the metric to compare: keep=Keep(metric=…)")
        if self._record.info.get("mirror") is not None:
            mode = keep.mode if keep is not None else "min"
            self._record.restate("mirror", {"upload": upload, "metric": metric, "mode": mode})

    def _number(self, name: str, value: Any) -> float | Arriving:
        if type(value) is int and -_EXACT_INT <= value <= _EXACT_INT:
            return value
        return checks.metric_value(name, value)

    def _place_is_known(self) -> None:
        self._is_place_unknown = False

    def _may_repeat(self, names: tuple[str, ...], step: int) -> bool:
        """Whether a former attempt has logged one of the names at this step or later.

        A new metric at old steps, as an evaluation adds it to a run that has ended, repeats none.
        """
        former = self._former_steps
        return former is None or any(former.get(name, -1) >= step for name in names)

    def _give_way(self, names: tuple[str, ...], step: int) -> None:
        """A resumed run that restored no checkpoint repeats steps: its old rows give way."""
        with self._place_lock:
            if not self._is_place_unknown:
                return
            if self._former_steps is None:
                former: dict[str, int] = {}
                for row in iterate_rows(self._record.metrics_path):
                    for name in row.values:
                        former[name] = max(row.step, former.get(name, -1))
                self._former_steps = former
            if step > max(self._former_steps.values(), default=-1):
                self._is_place_unknown = False
            elif self._may_repeat(names, step):
                # Rows of this attempt stay: a metric that is new may have been logged before.
                self._record.rewind(self._metrics, step - 1, before=self._former_bytes)
                self._is_place_unknown = False

    def _write_params(self, params: Mapping[str, Any], *, is_start: bool) -> None:
        with self._config_lock:
            changed = self._open_record().add_params(params, is_start=is_start)
        for name, (was, now) in changed.items():
            self.print(f"param {name} changed from {was!r} to {now!r}")
        is_by_name = self._settings.resume in ("auto", "must")
        if changed and is_start and is_by_name and not self._record.info["name_given"]:
            self.print(
                "WARNING: the run that goes on here has other params, and no name that would tell "
                "it from a trial of its own; give run_name=… to keep trials apart"
            )

    def _start_mirror(self) -> Companion | None:
        if self._settings.tracking_uri is None:
            return None
        from mlflow_track.mirror.companion import Companion, mirror_environment

        return Companion(self.directory, mirror_environment(self._settings))

    def _start_system_monitor(self) -> SystemMonitor | None:
        interval = self._settings.system_metrics_seconds
        if interval <= 0:
            return None
        return SystemMonitor(self._record.system_metrics_path, interval, self.print)

    def _capture_provenance(self) -> None:
        try:
            self._record.restate("provenance", provenance.capture(self.directory))
        except OSError as error:
            self.print(f"provenance is incomplete: {error}")

    def _finish_at_exit(self) -> None:
        self.finish(*ending_of(error_since(self.id), self._stop.reason))


def _after_fork(run: Run) -> None:
    # The hook stays for the life of the process; the run need not.
    reference = weakref.ref(run)

    def leave_to_parent() -> None:
        if (run := reference()) is not None:
            run._leave_to_parent()

    os.register_at_fork(after_in_child=leave_to_parent)
