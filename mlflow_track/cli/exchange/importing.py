"""`mlflow-track import`: runs of other trackers as records."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlflow_track.cli import exit_codes
from mlflow_track.cli.output import echo, json_option, print_json
from mlflow_track.cli.select import default_root
from mlflow_track.record.masking import mask_password
from mlflow_track.wording import count_text, shown

if TYPE_CHECKING:
    from mlflow_track.importers.source import FoundRun, Source
    from mlflow_track.importers.writer import RecordWriter

_TO_HELP = "The folder of all runs; else MLFLOW_TRACK_DIR, else runs."
_EXPERIMENT_HELP = "The experiment of all of them; else that of the source."
_FORMAT_HELP = "What SOURCE is; else that is found out."


def _formats() -> tuple[str, ...]:
    from mlflow_track.importers.formats import FORMATS

    return tuple(FORMATS)


@click.command("import")
@click.argument("source")
@click.option("--to", "root", type=click.Path(path_type=Path), default=default_root, help=_TO_HELP)
@click.option("--experiment", help=_EXPERIMENT_HELP)
@click.option("--format", "form", type=click.Choice(_formats()), help=_FORMAT_HELP)
@json_option
def import_(
    source: str, root: Path, experiment: str | None, form: str | None, as_json: bool
) -> None:
    """Import the runs of another tracker: SOURCE is a folder, a file, or the URI of a server.

    They become ordinary records, with their times. Importing again changes nothing; a run that has
    grown at its source is imported again, and the record of before goes to the trash. What is
    damaged is named, and everything else imported; the command ends with 1 then.

    \b
    Examples:
      mlflow-track import lightning_logs --to runs
      mlflow-track import sqlite:///mlflow.db --experiment old
    """
    from mlflow_track.importers.writer import RecordWriter

    if experiment is not None and not experiment.strip():
        raise click.UsageError("--experiment must be a name of at least one character")
    place = _place(source, form)
    found = list(place.find())
    if not found:
        raise exit_codes.NotFound(f"there is no run in {source}: looked for {place.what}")
    writer = RecordWriter(root, place.format, experiment)
    rows = [_imported(run, writer) for run in _with_progress(found, hidden=as_json)]
    if as_json:
        print_json({"source": mask_password(source), "format": place.format, "runs": rows})
    else:
        _report(rows, root)
    if any(row["problems"] for row in rows):
        raise click.exceptions.Exit(exit_codes.NO)


def _place(where: str, form: str | None) -> Source:
    """The one source at a path or URI.

    Raises:
        NotFound: There is none.
        click.UsageError: It has runs in several formats.
    """
    from mlflow_track.importers.formats import descriptions, open_source

    if "://" not in where and not os.path.lexists(where):
        raise exit_codes.NotFound(f"there is no file or folder {where}")
    sources = open_source(where, form)
    if len(sources) > 1:
        names = " or ".join(source.format for source in sources)
        raise click.UsageError(f"{where} has runs in several formats: give --format {names}")
    if not sources:
        what = ", ".join(descriptions())
        raise exit_codes.NotFound(f"there is no run in {where}: looked for {what}")
    return sources[0]


def _imported(found: FoundRun, writer: RecordWriter) -> dict[str, Any]:
    """Import one run; the result as a row."""
    row: dict[str, Any] = {"source": found.label, "state": "failed"}
    row |= dict.fromkeys(("id", "name", "experiment", "path"))
    try:
        run = found.read()
    except (OSError, ValueError) as error:
        return {**row, "problems": [str(error)], "notes": []}
    try:
        outcome = writer.write(run)
    except ValueError as error:
        return {**row, "problems": [str(error)], "notes": []}
    path = str(outcome.path.absolute())
    return {**row, **outcome._asdict(), "path": path}


def _with_progress(found: list[FoundRun], *, hidden: bool) -> Iterator[FoundRun]:
    """The runs one by one, with a bar on a terminal."""
    if hidden or not sys.stderr.isatty():
        yield from found
        return
    with click.progressbar(found, label="importing", file=sys.stderr, show_pos=True) as bar:
        yield from bar


def _report(rows: list[dict[str, Any]], root: Path) -> None:
    for row in rows:
        for problem in row["problems"]:
            echo(f"{row['source']}: {problem}", err=True)
        for note in row["notes"] if row["state"] != "unchanged" else ():
            echo(f"note: {row['source']}: {note}", err=True)
    for row in rows:
        if row["state"] in ("imported", "updated"):
            echo(f"{row['state']} {row['path']} ({shown(row['name'])})")
    counts = Counter(row["state"] for row in rows)
    parts = ", ".join(f"{count:,} {state}" for state, count in counts.items())
    echo(f"{count_text(len(rows), 'run')}: {parts}")
