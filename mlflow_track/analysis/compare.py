"""Runs side by side: one row per run, what differs between them and what came of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mlflow_track.analysis.load import LoadedRun
from mlflow_track.record.params import flatten

if TYPE_CHECKING:
    import pandas


def compare(runs: Sequence[LoadedRun]) -> pandas.DataFrame:
    """One row per run, by id: name, status, duration, params that differ, metrics.

    Returns:
        A DataFrame with the columns `name`, `experiment`, `status`, `seconds`, `steps`; a column
        `params.<name>` for each param that is not the same in all runs; and for each metric
        `<metric>` (its last value), `<metric> min` and `<metric> max`.
    """
    import pandas

    params = [flatten(run.params) for run in runs]
    names = sorted({name for one in params for name in one})
    differing = [name for name in names if len({_text(one.get(name)) for one in params}) > 1]
    rows = []
    for run, one in zip(runs, params, strict=True):
        frame = run.metrics()
        row: dict[str, Any] = {
            "name": run.name,
            "experiment": run.experiment,
            "status": run.status,
            "seconds": run.seconds,
            "steps": int(frame.index[-1]) + 1 if len(frame) else 0,
        }
        row |= {f"params.{name}": one.get(name) for name in differing}
        for metric in frame.columns.drop("time"):
            logged = frame[metric].dropna()
            if len(logged):
                row[metric] = float(logged.iloc[-1])
                row[f"{metric} min"], row[f"{metric} max"] = logged.min(), logged.max()
        rows.append(row)
    return pandas.DataFrame(rows, index=pandas.Index([run.id for run in runs], name="id"))


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
