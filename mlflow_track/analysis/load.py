"""Reads a run's folder as Python objects, also while the run is running."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_track.analysis.filters import Filter, parse_filter
from mlflow_track.analysis.naming import copies, keys
from mlflow_track.analysis.summary import Summary, SummaryReader, durations, summary_values
from mlflow_track.record import layout
from mlflow_track.record.find import Skipped, find_folders
from mlflow_track.record.info import UnreadableRun, read_config, read_info, read_plain, true_status
from mlflow_track.record.media.index import read_media
from mlflow_track.record.schema import MirrorSettings

if TYPE_CHECKING:
    import pandas

    from mlflow_track.checkpoint.disk.store import Checkpoint


class LoadedRun:
    """A run on disk. Only run.json is read at once, the rest on demand.

    Args:
        path: The run's folder.

    Raises:
        FileNotFoundError: There is no run.json in it.
        ValueError: run.json is damaged, or a newer version wrote it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not (self.path / layout.RUN).exists():
            raise FileNotFoundError(f"{self.path} is not a run: there is no run.json in it")
        self._info = read_info(self.path)
        self._summaries = SummaryReader(self.path)

    @property
    def id(self) -> str:
        """The id of the record; also the name of its folder."""
        return self._info.id

    @property
    def name(self) -> str:
        """The run's name; its id where it has none."""
        return self._info.name

    @property
    def experiment(self) -> str:
        """The experiment that the run belongs to."""
        return self._info.experiment

    @property
    def created(self) -> float:
        """The Unix time of the run's start."""
        return self._info.created

    @property
    def info(self) -> dict[str, Any]:
        """run.json as it is now, as plain JSON; keys that an older version lacks have defaults.

        Raises:
            ValueError: It was damaged after the run was loaded.
        """
        return read_plain(self.path)

    @property
    def mirror(self) -> MirrorSettings | None:
        """The run's settings of its mirror; None where it has none."""
        return self._info.mirror

    @property
    def tags(self) -> dict[str, str]:
        """The tags, in a copy."""
        return dict(self._info.tags)

    @property
    def status(self) -> str:
        """RUNNING, FINISHED, FAILED or KILLED; also true after a SIGKILL."""
        return true_status(self.path, self._info)

    @property
    def seconds(self) -> float:
        """Seconds in which its attempts were at work; pauses between them do not count."""
        return durations(self.path, self._info)[0]

    @property
    def wall_seconds(self) -> float:
        """Seconds from the start to the end, or to the last update of a run without an end."""
        return durations(self.path, self._info)[1]

    @cached_property
    def params(self) -> dict[str, Any]:
        """The params, nested as they were given.

        Raises:
            ValueError: config.json is damaged.
        """
        return read_config(self.path).params

    @property
    def summary(self) -> Summary:
        """The run in a few numbers, as of now: params, times, and of each metric last and best."""
        return self._summaries.read()

    @property
    def summary_values(self) -> dict[str, bool | int | float | str]:
        """What `log_summary` was given; `summary` is the run's metrics in a few numbers."""
        return summary_values(self._info)

    @property
    def checkpoints(self) -> list[Checkpoint]:
        """The committed checkpoints, newest last; their content is not read."""
        from mlflow_track.checkpoint.disk.store import CheckpointStore

        return CheckpointStore(self.path / layout.CHECKPOINTS).list()

    def metrics(self, file: str = layout.METRICS) -> pandas.DataFrame:
        """One row per step (the index), `time` in Unix seconds, one float column per metric.

        Rows of the same step are merged; where a metric was logged twice the later value counts.

        Args:
            file: Another file of the same form, as `"system_metrics.csv"` or a
                `"metrics.rewound-2.csv"`. One that does not exist has no rows.

        Raises:
            ValueError: The file is not a metrics file.
        """
        from mlflow_track.analysis.frames import read_frame

        return read_frame(self.path / file)

    def media(self) -> pandas.DataFrame:
        """The images, texts and histograms of steps, in the order of the calls.

        Of what was logged twice at a step the later item counts. The columns are `kind` ("image",
        "text" or "histogram"), `key`, `step`, `time` in Unix seconds, and `path` of the file.

        Raises:
            OSError: The index cannot be read.
        """
        import pandas

        root, entries = self.path / layout.ARTIFACTS, read_media(self.path)
        rows = [(e.kind, e.key, e.step, e.time, root / e.file) for e in entries]
        return pandas.DataFrame(rows, columns=["kind", "key", "step", "time", "path"])

    def _repr_html_(self) -> str:
        return drawn("run_as_html", self.summary)

    def __repr__(self) -> str:
        return f"<LoadedRun {self.experiment}/{self.name} {self.status} {self.path}>"


def load_run(path: str | os.PathLike[str]) -> LoadedRun:
    """The run in the folder `path`; see `LoadedRun`.

    Raises:
        FileNotFoundError: There is no run.json in it.
        ValueError: run.json is damaged, or a newer version wrote it.
    """
    return LoadedRun(path)


def load_runs(
    root: str | os.PathLike[str] = "runs",
    *,
    experiment: str | None = None,
    where: str | Callable[[LoadedRun], bool] | None = None,
) -> list[LoadedRun]:
    """All runs under `root`, oldest first. Warns of folders that cannot be read.

    Args:
        root: A folder of experiments, of runs, or of one run.
        experiment: Only the runs of this experiment.
        where: Only the runs for which this holds: a function of the run, or a filter like
            `"params.lr < 0.01 and status = 'FINISHED' and metrics.val/loss < 2"`.

    Raises:
        ValueError: `where` is not a filter, or asks for what no run has; the message has the
            reason.
    """
    holds = parse_filter(where) if isinstance(where, str) else where
    folders, skipped = find_folders(Path(root), experiment)
    runs = []
    for path in folders:
        try:
            runs.append(LoadedRun(path))
        except (UnreadableRun, FileNotFoundError) as error:
            skipped.append(Skipped(path, str(error)))
    for path, reason in skipped:
        warnings.warn(f"skipped {path}: {reason}", stacklevel=2)
    runs = [run for run in runs if experiment in (None, run.experiment)]
    for line in copies(runs):
        warnings.warn(line, stacklevel=2)
    if isinstance(holds, Filter):
        holds.require_names([run.summary for run in runs])
        runs = [run for run in runs if holds(run.summary)]
    elif holds is not None:
        runs = [run for run in runs if holds(run)]
    return sorted(runs, key=lambda run: (run.created, run.id))


def load_metrics(runs: Sequence[LoadedRun], file: str = layout.METRICS) -> pandas.DataFrame:
    """The metrics of many runs in one DataFrame.

    Args:
        runs: Runs, as returned by `load_runs`.
        file: Another file of the same form; see `LoadedRun.metrics`.

    Returns:
        One row per run and step, indexed by `run` (the id, categorical; of runs that share one,
        with the folder) and `step`, with the columns of `LoadedRun.metrics`; a metric that a run
        lacks is NaN in its rows.

    Raises:
        ValueError: A file is not a metrics file.
    """
    from mlflow_track.analysis.frames import read_frames

    return read_frames([run.path / file for run in runs], keys(runs))


def drawn(function: str, what: Any) -> str:
    """HTML of a run or a comparison, for a notebook: what draws is above, and loaded by name."""
    return getattr(import_module("mlflow_track.draw.notebook"), function)(what)
