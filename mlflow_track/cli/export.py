"""`mlflow-track export`: metrics of runs as one table for another program."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlflow_track.cli.exit_codes import NotFound
from mlflow_track.cli.output import echo, echo_skipped, json_option, json_text, print_json
from mlflow_track.cli.select import directory_option, runs_argument, some_runs
from mlflow_track.record import layout
from mlflow_track.wording import count_text, expected

if TYPE_CHECKING:
    from mlflow_track.analysis.summary import Summary

_SUFFIXES = (".csv", ".json", ".parquet")


@click.command()
@runs_argument
@directory_option
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

    In JSON a row has only the metrics that were logged at its step; CSV and Parquet leave the cells
    of the others empty, as they do with NaN.

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
        if suffix == ".json" or (output is None and as_json):
            rows = _rows(found, name)
            if output is None:
                print_json(rows)
                return
            output.write_text(json_text(rows) + "\n", encoding="utf-8")
            count = len(rows)
        else:
            count = _write_table(found, name, output)
            if output is None:
                return
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    if as_json:
        print_json({"file": str(output), "rows": count, "runs": len(found)})
    else:
        echo(f"{output}: {count_text(count, 'row')} of {count_text(len(found), 'run')}")


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

    found = []
    for run in runs:
        histories = Histories(run.path / name)
        histories.refresh()
        found += [
            {"run": run.id, "step": row.step, "time": row.time, "metrics": row.values}
            for row in histories.rows()
        ]
    return found


def _write_table(runs: list[Summary], name: str, output: Path | None) -> int:
    """Write CSV or Parquet; print CSV without a file. How many rows there are."""
    from mlflow_track.analysis.frames import read_frames

    frame = read_frames([run.path / name for run in runs], [run.id for run in runs])
    frame = frame.reset_index()
    frame["run"] = frame["run"].astype(str)
    if output is None:
        click.echo(frame.to_csv(index=False), nl=False)
    elif output.suffix.lower() == ".csv":
        frame.to_csv(output, index=False)
    else:
        frame.to_parquet(output, index=False)
    return len(frame)
