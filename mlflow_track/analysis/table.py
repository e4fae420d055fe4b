"""The comparison of runs as a DataFrame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlflow_track import checks
from mlflow_track.analysis.compare import compare_rows
from mlflow_track.analysis.load import LoadedRun, drawn
from mlflow_track.analysis.summary import Summary
from mlflow_track.extras import extra
from mlflow_track.record.metric import DIRECTIONS, Direction

with extra("analysis"):
    import pandas


class Comparison(pandas.DataFrame):
    """A DataFrame with a plot in a notebook. Operations on it return plain DataFrames.

    Attributes:
        summaries: The summaries of its runs.
    """

    # pandas hands an attribute on, and sets it without a warning, when it is named here.
    _metadata = ["summaries"]  # noqa: RUF012
    summaries: list[Summary]

    def _repr_html_(self) -> str:
        return drawn("comparison_as_html", self.summaries)


def compare(
    runs: Sequence[LoadedRun],
    metrics: Sequence[str] | None = None,
    directions: Mapping[str, Direction] | None = None,
) -> Comparison:
    """One row per run, by id: name, status, times, params that differ, metrics.

    Args:
        runs: Runs, as returned by `load_runs`.
        metrics: Only these; None takes all.
        directions: For a metric by name "min" or "max": which value is the best. Without it
            what the runs recorded decides (`run.define_metric`, their policies), else the
            metric's name; where that is unknown, or the runs disagree, no value is the best.

    Returns:
        A DataFrame with the columns `name`, `experiment`, `status`, `seconds`, `steps`,
        `steps_per_second`; `params.<name>` for each param that is not the same in all runs; and of
        each metric `<metric>` (its last value), `<metric> best` and `<metric> best step`.

    Raises:
        ValueError: A direction is neither "min" nor "max".
    """
    for name, mode in (directions or {}).items():
        checks.choice(f"the direction of {name!r}", mode, DIRECTIONS)
    summaries = [run.summary for run in runs]
    rows: list[dict[str, Any]] = compare_rows(summaries, metrics, directions)
    ids = pandas.Index([summary.id for summary in summaries], name="id")
    table = Comparison(rows, index=ids)
    for name in table.columns:
        if name not in ("name", "experiment", "status") and not name.startswith("params."):
            # Where no run has a value, the column holds numbers all the same.
            table[name] = pandas.to_numeric(table[name])
    table.summaries = summaries
    return table
