"""One run in a few numbers: what lists, comparisons and the MLflow UI show of a thousand runs.

Reading one costs about a millisecond per 1,000 rows, and imports neither numpy nor pandas.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mlflow_track.analysis.aggregates import Fold, MetricSummary, join_metrics
from mlflow_track.analysis.times import active_seconds, spans
from mlflow_track.record import layout
from mlflow_track.record.find import Skipped, find_folders
from mlflow_track.record.info import UnreadableRun, read_config, read_info, true_status
from mlflow_track.record.params import flatten
from mlflow_track.record.schema import RUNNING, RunInfo
from mlflow_track.wording import count_text

_METRICS_FILES = (layout.METRICS, layout.METRICS_LONG, layout.SYSTEM_METRICS)


@dataclass(frozen=True, slots=True)
class Summary:
    """One run, as its folder says at one moment.

    Attributes:
        info: All of run.json.
        status: RUNNING, FINISHED, FAILED or KILLED; true also after a SIGKILL.
        params: Under dotted names, with the values as JSON has them.
        seconds: The time that its attempts were at work; pauses between them do not count.
        wall_seconds: From the start to the end, or to the last update of a run without an end.
        rows: Lines of metrics: a call of log_metrics makes one, or one for each value.
        last_step: The largest step logged; -1 where none is.
        steps_per_second: Over the time in which rows came; pauses between attempts do not count.
            None below two rows.
        problems: Readable descriptions of unreadable parts of the record.
        system_metrics: The metrics of the machine, from system_metrics.csv.
    """

    path: Path
    info: RunInfo
    status: str
    params: dict[str, Any]
    seconds: float
    wall_seconds: float
    metrics: dict[str, MetricSummary] = field(default_factory=dict)
    rows: int = 0
    last_step: int = -1
    steps_per_second: float | None = None
    problems: tuple[str, ...] = ()
    system_metrics: dict[str, MetricSummary] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return self.info.id

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def experiment(self) -> str:
        return self.info.experiment

    @property
    def tags(self) -> dict[str, str]:
        return self.info.tags

    @property
    def summary_values(self) -> dict[str, bool | int | float | str]:
        """The values of `log_summary`; what is not finite is a float here."""
        return summary_values(self.info)

    @property
    def created(self) -> float:
        """Unix seconds."""
        return self.info.created

    @property
    def ended(self) -> float | None:
        """Unix seconds; None where nobody wrote an end."""
        return self.info.ended


def summary_values(info: RunInfo) -> dict[str, bool | int | float | str]:
    """The values of `log_summary`; run.json holds NaN and infinities as words."""
    odd = {"nan", "inf", "-inf"}
    return {name: float(v) if v in odd else v for name, v in info.summary.items()}


def durations(path: Path, info: RunInfo) -> tuple[float, float]:
    """`seconds` and `wall_seconds` of the run in `path`."""
    found = spans(path, info)
    return active_seconds(found), max(0.0, found[-1].ended - info.created)


def read_summary(path: Path) -> Summary:
    """The summary of the run in the folder `path`.

    Raises:
        UnreadableRun: The folder is not, or not legibly, the record of a run.
    """
    return SummaryReader(path).read()


def read_summaries(
    root: Path, experiment: str | None = None
) -> tuple[list[Summary], list[Skipped]]:
    """All runs at and below `root`, oldest first, and the folders that cannot be read, with why."""
    return SummaryCache().read_all(root, experiment)


class SummaryCache:
    """Summaries that are read again only where a file has changed, and then only what is new.

    A RUNNING run is checked each time: its death changes no file.
    """

    def __init__(self) -> None:
        self._readers: dict[Path, SummaryReader] = {}

    def read(self, path: Path) -> Summary:
        """See `read_summary`."""
        reader = self._readers.get(path)
        if reader is None:
            reader = self._readers[path] = SummaryReader(path)
        try:
            return reader.read()
        except UnreadableRun:
            del self._readers[path]
            raise

    def read_all(
        self, root: Path, experiment: str | None = None
    ) -> tuple[list[Summary], list[Skipped]]:
        """See `read_summaries`."""
        folders, skipped = find_folders(root, experiment)
        summaries = []
        for path in folders:
            try:
                summaries.append(self.read(path))
            except UnreadableRun as error:
                skipped.append(Skipped(path, str(error)))
        if experiment is not None:
            summaries = [summary for summary in summaries if summary.experiment == experiment]
        return sorted(summaries, key=lambda summary: (summary.created, summary.id)), skipped


class SummaryReader:
    """Reads the summary of one run, once or again and again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stamps: tuple[Any, ...] = ()
        self._summary: Summary | None = None
        self._folds = {name: Fold(path / name) for name in _METRICS_FILES}

    def read(self) -> Summary:
        """See `read_summary`."""
        files = (layout.RUN, layout.CONFIG, *_METRICS_FILES)
        stamps = tuple(_stamp(self.path / name) for name in files)
        summary = self._summary
        if summary is None or stamps != self._stamps:
            summary = self._summary = self._read()
            self._stamps = stamps
        elif summary.status == RUNNING:
            status = true_status(self.path, summary.info)
            if status != RUNNING:
                summary = self._summary = replace(summary, status=status)
        return summary

    def _read(self) -> Summary:
        info = read_info(self.path)
        problems = []
        try:
            params = flatten(read_config(self.path).params)
        except UnreadableRun as error:
            params = {}
            problems.append(str(error))
        starts = [attempt.started for attempt in info.attempts[1:] if attempt.started]
        for file, fold in self._folds.items():
            try:
                fold.update(starts)
            except FileNotFoundError:
                continue
            except (OSError, ValueError) as error:
                problems.append(f"{file} cannot be read: {error}")
            if fold.damaged:
                problems.append(f"{file} has {count_text(fold.damaged, 'damaged line')} (skipped)")
        own = [self._folds[layout.METRICS], self._folds[layout.METRICS_LONG]]
        seconds, wall_seconds = durations(self.path, info)
        longest = max(own, key=lambda fold: fold.active_steps)
        return Summary(
            path=self.path,
            info=info,
            status=true_status(self.path, info),
            params=params,
            seconds=seconds,
            wall_seconds=wall_seconds,
            metrics=join_metrics(fold.metrics for fold in own),
            rows=sum(fold.rows for fold in own),
            last_step=max(fold.last_step for fold in own),
            steps_per_second=longest.steps_per_second(),
            problems=tuple(problems),
            system_metrics=dict(self._folds[layout.SYSTEM_METRICS].metrics),
        )


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return (stat.st_size, stat.st_mtime_ns, stat.st_ino)
