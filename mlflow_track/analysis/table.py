"""The comparison of runs as a DataFrame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mlflow_track import checks
from mlflow_track.analysis.compare import compare_columns
from mlflow_track.analysis.load import LoadedRun, drawn
from mlflow_track.analysis.naming import keys
from mlflow_track.analysis.summary import Summary
from mlflow_track.extras import extra
from mlflow_track.record.metric import DIRECTIONS, Direction

with extra("analysis"):
    import pandas

_TEXTS = ("name", "experiment", "status")


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
    """One row per run, by id: name, status, times, params that differ, the machine, metrics.

    Args:
        runs: Runs, as returned by `load_runs`.
        metrics: Only these; None takes all.
        directions: For a metric by name "min" or "max": which value is the best. Without it
            what the runs recorded decides (`run.define_metric`, their policies), else the
            metric's name; where that is unknown, or the runs disagree, no value is the best.

    Returns:
        A DataFrame with the columns `name`, `experiment`, `status`, `seconds` (at work),
        `wall_seconds` (from start to end), `steps`, `steps_per_second`; `params.<name>` for each
        param that is not the same in all runs; `summary.<name>` for what `log_summary` was given;
        `system.<name>` for the use of the machine; and of each metric `<metric>` (its last value),
        `<metric> best` and `<metric> best step`, and where it was NaN or infinite `<metric> not
        finite at` with the first such step. A metric that is called as another column has
        `metrics.` before its name. The index is `id`; of runs that share one it has the folder.

    Raises:
        ValueError: A direction is neither "min" nor "max".
    """
    for name, mode in (directions or {}).items():
        checks.choice(f"the direction of {name!r}", mode, DIRECTIONS)
    summaries = [run.summary for run in runs]
    columns = compare_columns(summaries, metrics, directions)
    ids = pandas.Index(keys(summaries), name="id")
    shown = [column for column in columns if column.title != "id"]
    table = Comparison({column.title: column.values for column in shown}, index=ids)
    for column in shown:
        if column.kind not in ("param", "summary") and column.title not in _TEXTS:
            # Where no run has a value, the column holds numbers all the same.
            table[column.title] = pandas.to_numeric(table[column.title])
    table.summaries = summaries
    return table
