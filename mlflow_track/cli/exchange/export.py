"""`mlflow-track export`: metrics of runs as one table for another program."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from mlflow_track.cli.exit_codes import NotFound
from mlflow_track.cli.output import echo, echo_skipped, json_option, json_text, print_json
from mlflow_track.cli.select import runs_argument, some_runs
from mlflow_track.record import layout
from mlflow_track.record.files import legible
from mlflow_track.wording import count_text, expected

if TYPE_CHECKING:
    from mlflow_track.analysis.summary import Summary

_SUFFIXES = (".csv", ".json", ".parquet")
_FIXED = ("run", "step", "time")
_LINES_AT_ONCE = 1000


@click.command()
@runs_argument
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="A .csv, .json or .parquet file; without it CSV is printed.",
)
@click.option(
    "--file",
    "name",
    default=layout.METRICS,
    show_default=True,
    help="Which file of a run; system_metrics.csv is another.",
)
@json_option
def export(
    runs: tuple[str, ...], root: Path, output: Path | None, name: str, as_json: bool
) -> None:
    """Write the metrics of RUNs (default: all) as one table: a row per run and step.

    NaN and infinities are in it: as NaN, inf and -inf in CSV, and in JSON as the strings NaN,
    Infinity and -Infinity. What was not logged at a step is an empty cell, or null. A row that
    --json prints has its metrics in "metrics", without those that were not logged.

    \b
    Examples:
      mlflow-track export @last
      mlflow-track export demo -o metrics.parquet
    """

    suffix = None if output is None else output.suffix.lower()
    if suffix is not None and suffix not in _SUFFIXES:
        raise click.UsageError(
            expected("--output", f"a file ending in {' or '.join(_SUFFIXES)}", f"{str(output)!r}")
        )
    found = _readable(some_runs(root, runs), name)
    try:
        rows = _rows(found, name)
        if output is not None:
            _write(_table(rows), output, suffix)
        elif as_json:
            print_json(rows)
        else:
            for piece in _csv(_table(rows)):
                click.echo(piece, nl=False)
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    if output is None:
        return
    if as_json:
        print_json({"file": str(output), "rows": len(rows), "runs": len(found)})
    else:
        echo(f"{output}: {count_text(len(rows), 'row')} of {count_text(len(found), 'run')}")


def _readable(runs: list[Summary], name: str) -> list[Summary]:
    """The runs whose file `name` can be read; the others are named on stderr."""
    from mlflow_track.record.rows import files_of, read_header

    found, skipped, is_damaged = [], [], False
    for run in runs:
        files = files_of(run.path / name)
        try:
            for file in files:
                read_header(file)
        except (OSError, ValueError) as error:
            skipped.append((run.path, str(error)))
            is_damaged = True
        else:
            if files:
                found.append(run)
            else:
                skipped.append((run.path, f"there is no {name}"))
    echo_skipped(skipped)
    if not found:
        kind = click.ClickException if is_damaged else NotFound
        raise kind(f"none of these runs has a readable {name}")
    return found


def _rows(runs: list[Summary], name: str) -> list[dict[str, Any]]:
    from mlflow_track.analysis.histories import Histories
    from mlflow_track.analysis.naming import keys

    found = []
    for run, key in zip(runs, keys(runs), strict=True):
        histories = Histories(run.path / name)
        histories.refresh()
        found += [
            {"run": key, "step": row.step, "time": row.time, "metrics": row.values}
            for row in histories.rows()
        ]
    return found


class _Table(NamedTuple):
    """Rows as columns: `run`, `step`, `time` and a column per metric; None is "not logged"."""

    header: list[str]
    columns: list[list[Any]]


def _table(rows: list[dict[str, Any]]) -> _Table:
    metrics = list(dict.fromkeys(metric for row in rows for metric in row["metrics"]))
    # A metric that is called as the column of the runs stands beside it.
    titles = [f"metrics.{metric}" if metric == "run" else metric for metric in metrics]
    columns = [[row[name] for row in rows] for name in _FIXED]
    columns += [[row["metrics"].get(metric) for row in rows] for metric in metrics]
    return _Table([*_FIXED, *titles], columns)


def _csv(table: _Table) -> Iterator[str]:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(table.header)
    for number, row in enumerate(zip(*table.columns, strict=True)):
        writer.writerow(["" if cell is None else "NaN" if cell != cell else cell for cell in row])
        if number % _LINES_AT_ONCE == 0:
            yield legible(buffer.getvalue())
            buffer.seek(0)
            buffer.truncate()
    yield legible(buffer.getvalue())


def _write(table: _Table, output: Path, suffix: str | None) -> None:
    """Write the table; a null of Parquet is "not logged", a NaN is NaN."""
    if suffix == ".csv":
        with open(output, "w", encoding="utf-8", newline="") as file:
            file.writelines(_csv(table))
    elif suffix == ".json":
        rows = [
            dict(zip(table.header, row, strict=True)) for row in zip(*table.columns, strict=True)
        ]
        output.write_text(json_text(rows) + "\n", encoding="utf-8")
    else:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise click.ClickException("pyarrow is not installed: pip install pyarrow") from None
        kinds = [pyarrow.string(), pyarrow.int64(), *[pyarrow.float64()] * len(table.header)]
        arrays = [
            pyarrow.array(column, kind, from_pandas=False)
            for column, kind in zip(table.columns, kinds, strict=False)
        ]
        pyarrow.parquet.write_table(
            pyarrow.table(dict(zip(table.header, arrays, strict=True))), output
        )
