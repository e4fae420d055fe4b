"""`mlflow-track export`: metrics of runs as one table for another program."""

from __future__ import annotations

from pathlib import Path

import click

from mlflow_track.cli.select import directory_option, runs_argument, some_runs
from mlflow_track.record import layout

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
def export(runs: tuple[str, ...], root: Path, output: Path | None, name: str) -> None:
    """Write the metrics of RUNs (all, where none is named) as one table: a row per run and step.

    \b
    Examples:
      mlflow-track export @last
      mlflow-track export demo -o metrics.parquet
    """
    from mlflow_track.analysis.frames import read_frames
    from mlflow_track.record.rows import files_of, read_header

    if output is not None and output.suffix.lower() not in _SUFFIXES:
        raise click.ClickException(
            f"{output} ends in {output.suffix!r}; export takes {', '.join(_SUFFIXES)}"
        )
    found = []
    for run in some_runs(root, runs):
        try:
            for file in files_of(run.path / name):
                read_header(file)
        except (OSError, ValueError) as error:
            click.echo(f"skipped {run.path}: {error}", err=True)
        else:
            found.append(run)
    try:
        frame = read_frames([run.path / name for run in found], [run.id for run in found])
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    frame = frame.reset_index()
    frame["run"] = frame["run"].astype(str)
    if output is None:
        click.echo(frame.to_csv(index=False), nl=False)
        return
    try:
        if output.suffix.lower() == ".csv":
            frame.to_csv(output, index=False)
        elif output.suffix.lower() == ".json":
            frame.to_json(output, orient="records", indent=1, double_precision=15)
        else:
            frame.to_parquet(output, index=False)
    except OSError as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"{output}: {len(frame):,} rows of {len(found)} runs")
