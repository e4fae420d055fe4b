"""The newest of a run, from the end of its file: what a list of a thousand runs shows at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mlflow_track.analysis.aggregates import MetricSummary
from mlflow_track.analysis.summary import Summary, durations, read_summary
from mlflow_track.record import layout
from mlflow_track.record.info import read_config, read_info, true_status
from mlflow_track.record.params import flatten
from mlflow_track.record.row_format import Columns
from mlflow_track.record.rows import files_of, read_end, read_header

# Most metrics are in the last rows; one that is logged seldom is looked for further up.
_TAILS = (2 << 10, 64 << 10)
_NAN = float("nan")


def read_brief(path: Path, metrics: Sequence[str] = ()) -> Summary:
    """A summary whose metrics are only those asked for, and of them only the last value is there.

    Raises:
        UnreadableRun: The folder is not, or not legibly, the record of a run.
    """
    info = read_info(path)
    found: dict[str, MetricSummary] = {}
    last_step = -1
    problems: tuple[str, ...] = ()
    try:
        last_step, found = _read_end(path, metrics)
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        problems = (f"{layout.METRICS} cannot be read: {error}",)
    try:
        params = flatten(read_config(path).params)
    except ValueError as error:
        params, problems = {}, (*problems, str(error))
    seconds, wall_seconds = durations(path, info)
    return Summary(
        path=path,
        info=info,
        status=true_status(path, info),
        params=params,
        seconds=seconds,
        wall_seconds=wall_seconds,
        metrics=found,
        last_step=last_step,
        problems=problems,
    )


def read_names(path: Path) -> list[str]:
    """The metrics of the run in `path`, by the first line and the last lines of its files."""
    names: dict[str, None] = {}
    for file in files_of(path / layout.METRICS):
        try:
            if layout.is_long(file):
                names |= dict.fromkeys(read_end(file, _TAILS[-1])[0].metrics)
            else:
                names |= dict.fromkeys(read_header(file)[0])
        except (OSError, ValueError):
            continue
    return list(names)


def _read_end(path: Path, metrics: Sequence[str]) -> tuple[int, dict[str, MetricSummary]]:
    """The last step, and the last value of each metric; what is seldom logged costs all rows."""
    files = files_of(path / layout.METRICS)
    if not files:
        raise FileNotFoundError
    has_long = layout.is_long(files[-1])
    for size in _TAILS:
        ends = [read_end(file, size) for file in files]
        # A header names all metrics of its file.
        wanted = [name for name in metrics if has_long or name in ends[0][0].metrics]
        found = {name: _last(ends, name) for name in wanted}
        if all(is_all for _, is_all in ends) or (
            any(columns.steps for columns, _ in ends) and all(found.values())
        ):
            last_step = max(max(columns.steps, default=-1) for columns, _ in ends)
            return last_step, {name: last for name, last in found.items() if last is not None}
    summary = read_summary(path)
    return summary.last_step, {n: m for n, m in summary.metrics.items() if n in metrics}


def _last(ends: Sequence[tuple[Columns, bool]], name: str) -> MetricSummary | None:
    """The last value in the ends of the files; None also where a later one may precede an end."""
    time, step, value = -1.0, -1, _NAN
    others: list[float] = []
    for columns, is_all in ends:
        column = columns.metrics.get(name)
        if column is None or not column.values:
            if not is_all:
                others.append(min(columns.times, default=float("inf")))
        elif columns.times[column.rows[-1]] >= time:
            row = column.rows[-1]
            time, step, value = columns.times[row], columns.steps[row], float(column.values[-1])
    if step < 0 or any(first > time for first in others):
        return None
    return MetricSummary(1, value, step, time, _NAN, -1, _NAN, -1)
