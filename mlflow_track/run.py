"""Run, the verbs: check and convert once, write to the record."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from mlflow_track import checks
from mlflow_track.attempt import Attempt
from mlflow_track.param_values import plain_params
from mlflow_track.record.device_values import Arriving
from mlflow_track.record.directory import RunDirectory
from mlflow_track.record.exit_status import ending_of
from mlflow_track.record.schema import FAILED, FINISHED, KILLED
from mlflow_track.settings import Settings

if TYPE_CHECKING:
    import pandas

    from mlflow_track.checkpoint.checkpointer import Checkpointer
    from mlflow_track.checkpoint.policy.retention import Keep
    from mlflow_track.checkpoint.policy.schedule import SavePolicy
    from mlflow_track.mirror.status import SyncStatus

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
        self._settings = settings
        self.id: str = directory.info.id
        self.name: str = directory.info.name
        self.directory: Path = directory.path
        self._attempt = Attempt(directory, settings, is_resumed=is_resumed)
        self._metrics, self._repeats = self._attempt.metrics, self._attempt.repeats
        self._attempt.add_params(params, is_start=True)
        if tags and is_resumed:
            directory.set_tags(tags)
        self._attempt.start_helpers()
        verb = f"continues (attempt {directory.attempt})" if is_resumed else "starts"
        if directory.is_kept:
            self.print(f"run {self.name} of {directory.info.experiment} {verb} in {self.directory}")

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
        if self._repeats.may_come:
            self._repeats.give_way(names, step)
        self._metrics.append(step, names, values)

    def log_metric(self, name: str, value: float, *, step: int) -> None:
        """Write one metric; see `log_metrics`."""
        # A loop over the layers of a model logs thousands of them at a step.
        if (
            type(value) is float
            and type(step) is int
            and 0 <= step <= checks.MOST_STEP
            and name in self._metrics.alone
            and not self._repeats.may_come
        ):
            self._metrics.append_one(step, name, value)
        else:
            self.log_metrics({name: value}, step=step)

    def define_metric(self, name: str, *, mode: str) -> None:
        """Record which direction of a metric is better, for the run's policies and its readers.

        Args:
            name: The metric's name.
            mode: "min", "max", or "none" where no value is better than another.

        Raises:
            TypeError, ValueError: An argument is invalid, or a policy of the run says otherwise.
        """
        claim = checks.metric_definition(name, mode)
        self._attempt.open_record()
        self._attempt.directions.settle(f"define_metric {name}", [claim])

    def log_params(self, params: Any) -> None:
        """Add params. A changed value is recorded as such.

        Args:
            params: A mapping, a dataclass or another object that a program is configured with, of
                values of any kind that has a text (docs/logging.md).

        Raises:
            TypeError: A value has no faithful text; the message names its path.
            ValueError: Two params have the same name, or one is too large, is nested too deep,
                contains itself or cannot be read; the message names its path.
        """
        self._attempt.add_params(plain_params(params), is_start=False)

    def log_param(self, name: str, value: Any) -> None:
        """Add one param; see `log_params`."""
        self.log_params({name: value})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags; values become strings."""
        self._attempt.open_record().set_tags(checks.tags(tags))

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
        self._attempt.open_record().add("inputs", item, once=True)

    def log_artifact(self, path: str | os.PathLike[str], artifact_path: str | None = None) -> Path:
        """Copy a file, or a folder with all in it, to the artifacts, below `artifact_path`.

        Raises:
            FileNotFoundError: There is nothing at `path`.
            ValueError: `artifact_path` would leave the artifacts.
        """
        return self._attempt.open_artifacts().copy(path, artifact_path)

    def log_artifacts(
        self, folder: str | os.PathLike[str], artifact_path: str | None = None
    ) -> None:
        """Copy what a folder holds to the artifacts."""
        self._attempt.open_artifacts().copy_content(folder, artifact_path)

    def log_text(self, text: str, artifact_file: str) -> Path:
        """Write a text as an artifact."""
        return self._attempt.open_artifacts().write_text(text, artifact_file)

    def log_dict(self, content: Any, artifact_file: str) -> Path:
        """Write JSON-serialisable content as an artifact."""
        return self._attempt.open_artifacts().write_json(content, artifact_file)

    def log_figure(self, figure: Any, artifact_file: str) -> Path:
        """Draw a matplotlib figure into an artifact; its ending says how (png, svg, pdf)."""
        return self._attempt.open_artifacts().write_figure(figure, artifact_file)

    def log_table(self, data: Any, artifact_file: str) -> Path:
        """Write a table as an artifact, `.csv` or `.json`: a mapping of columns, or a DataFrame."""
        return self._attempt.open_artifacts().write_table(data, artifact_file)

    def print(self, message: str, *, is_shown: bool = True) -> None:
        """Say one line in training.log and, unless something else shows it there, on the console.

        The console is stderr.
        """
        self._attempt.print(message, is_shown=is_shown)

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
    ) -> Checkpointer:
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
            TypeError, ValueError: An argument is invalid; the message names it; or `upload` is
                "best" without a metric, or a metric's direction is unknown or contradicted.
        """
        from mlflow_track.checkpoint.decision import Limits, Plan

        deadline, replay_step = self._settings.deadline, self._settings.replay_step
        limits = Limits(max_steps=max_steps, deadline=deadline, replay_step=replay_step)
        plan = Plan(save=save, keep=keep, must_match=must_match, free=free, limits=limits)
        return self._attempt.open_checkpoints(plan, upload or self._settings.upload)

    @property
    def should_stop(self) -> bool:
        """Whether to leave the loop. Looking at this promises to obey it.

        A signal, or a deadline, asked to stop. Where `checkpoints.step` is called it turns true
        there, after a checkpoint was saved, and on all ranks at the same step.
        """
        self._attempt.stop.listen()
        return self._attempt.stop.reason is not None

    @property
    def url(self) -> str | None:
        """The run's page at its first backend, once known."""
        from mlflow_track.mirror.state import MirrorState

        names = self._backends
        return MirrorState.read(self._attempt.record.path, names[0]).url if names else None

    def sync_status(self) -> SyncStatus | None:
        """What each backend has of the run and what it lacks, by count, and why.

        None where the run is sent nowhere.
        """
        from mlflow_track.mirror.status import read_statuses

        names = self._backends
        return read_statuses(self._attempt.record.path, names) if names else None

    def metrics(self) -> pandas.DataFrame:
        """What was logged so far: one row per step, one column per metric; see `LoadedRun`."""
        from mlflow_track.analysis.frames import read_frame

        return read_frame(self._attempt.record.metrics_path)

    def _repr_html_(self) -> str:
        from mlflow_track.analysis.load import load_run

        if not self._attempt.record.is_kept:
            return f"<p>run {self.name}: nothing is recorded</p>"
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
        self._attempt.end(status, error)

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.finish(*ending_of(error, self._attempt.stop.reason))

    # --- inside ---

    @property
    def _backends(self) -> tuple[str, ...]:
        return self._settings.backends if self._attempt.record.is_kept else ()

    def _number(self, name: str, value: Any) -> float | Arriving:
        if type(value) is int and -_EXACT_INT <= value <= _EXACT_INT:
            return value
        return checks.metric_value(name, value)
