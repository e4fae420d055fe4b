"""The newest of a run, from the end of its file: what a list of a thousand runs shows at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mlflow_track.analysis.aggregates import MetricSummary
from mlflow_track.analysis.summary import Summary, read_summary
from mlflow_track.record import layout
from mlflow_track.record.info import last_sign_of_life, read_config, read_info, true_status
from mlflow_track.record.params import flatten
from mlflow_track.record.rows import Columns, parse_columns, read_piece

# Most metrics are in the last rows; one that is logged seldom is looked for further up.
_TAILS = (2 << 10, 64 << 10)
_NAN = float("nan")


def read_brief(path: Path, metrics: Sequence[str] = ()) -> Summary:
    """A summary whose metrics are only those asked for, and of them only the last value is there.

    Args:
        path: The run's folder.
        metrics: Names; one that the run lacks is not in the summary.

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
    return Summary(
        path=path,
        info=info,
        status=true_status(path, info),
        params=params,
        seconds=max(0.0, last_sign_of_life(path, info) - info.created),
        metrics=found,
        last_step=last_step,
        problems=problems,
    )


def read_names(path: Path) -> tuple[str, ...]:
    """The metrics of the run in `path`, by the first line of its file; () where there is none."""
    try:
        return read_piece(path / layout.METRICS, 0, 1).names
    except (OSError, ValueError):
        return ()


def _read_end(path: Path, metrics: Sequence[str]) -> tuple[int, dict[str, MetricSummary]]:
    columns = Columns([], [], {}, 0)
    for size in _TAILS:
        piece = read_piece(path / layout.METRICS, -size)
        columns = parse_columns(piece.names, piece.body)
        wanted = [name for name in metrics if name in piece.names]
        found = {name: _last(columns, name) for name in wanted}
        if piece.position == 0 or (columns.steps and all(found.values())):
            break
    else:
        summary = read_summary(path)
        return summary.last_step, {n: m for n, m in summary.metrics.items() if n in metrics}
    return max(columns.steps, default=-1), {n: m for n, m in found.items() if m is not None}


def _last(columns: Columns, name: str) -> MetricSummary | None:
    values = columns.values[name]
    for at in range(len(values) - 1, -1, -1):
        value = values[at]
        if value is not None:
            step, time = columns.steps[at], columns.times[at]
            return MetricSummary(1, float(value), step, time, _NAN, -1, _NAN, -1)
    return None
