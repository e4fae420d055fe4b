"""`mlflow-track import`: runs of other trackers as records."""

from __future__ import annotations

import errno
import os
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
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
_ONLY_HELP = "Only runs of this experiment of the source; can be given more than once."
_RECORDED_HELP = "Confirm folders of artifacts elsewhere on this machine that SOURCE names."
_FORMAT_HELP = "What SOURCE is; else that is found out."
_MOST_NAMED = 3


def _formats() -> tuple[str, ...]:
    from mlflow_track.importers.formats import FORMATS

    return tuple(FORMATS)


@click.command("import")
@click.argument("source")
@click.option("--to", "root", type=click.Path(path_type=Path), default=default_root, help=_TO_HELP)
@click.option("--only", multiple=True, metavar="EXPERIMENT", help=_ONLY_HELP)
@click.option("--experiment", help=_EXPERIMENT_HELP)
@click.option("--no-artifacts", is_flag=True, help="Leave their files where they are.")
@click.option("--as-recorded", is_flag=True, help=_RECORDED_HELP)
@click.option("--format", "form", type=click.Choice(_formats()), help=_FORMAT_HELP)
@json_option
def import_(
    source: str,
    root: Path,
    only: tuple[str, ...],
    experiment: str | None,
    no_artifacts: bool,
    as_recorded: bool,
    form: str | None,
    as_json: bool,
) -> None:
    """Import the runs of another tracker: SOURCE is a folder, a file, or the URI of a server.

    They become ordinary records, with their times. Importing again changes nothing; a run that has
    grown at its source is imported again, and its earlier record goes to the trash. What is
    damaged is named, and everything else imported; the command ends with 1 then.

    \b
    Examples:
      mlflow-track import lightning_logs --to runs
      mlflow-track import sqlite:///mlflow.db --only digits
    """
    from mlflow_track.backends.protocol import Unavailable
    from mlflow_track.importers.writer import RecordWriter

    if experiment is not None and not experiment.strip():
        raise click.UsageError("--experiment must be a name of at least one character")
    _name_single_files(source, root)
    place = _place(source, form)
    place.as_recorded = as_recorded
    try:
        found = [run for run in place.find() if _is_wanted(run.experiment, only)]
    except Unavailable as error:
        raise click.ClickException(f"{mask_password(source)} cannot be read: {error}") from None
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    task = _Import(RecordWriter(root, place.format, experiment), only, no_artifacts)
    task.run(_with_progress(found, hidden=as_json))
    if not task.rows:
        of = f" of {' or '.join(only)}" if only else ""
        raise exit_codes.NotFound(f"there is no run{of} in {source}: looked for {place.what}")
    if as_json:
        print_json({"source": mask_password(source), "format": place.format, "runs": task.rows})
    else:
        _report(task.rows)
    if any(row["problems"] for row in task.rows):
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
        what = ", ".join(descriptions(form))
        raise exit_codes.NotFound(f"there is no run in {where}: looked for {what}")
    return sources[0]


def _name_single_files(where: str, root: Path) -> None:
    from mlflow_track.importers.csv import single_files

    folder = Path(where).expanduser()
    files = single_files(folder) if folder.is_dir() else []
    for file in files[:_MOST_NAMED]:
        echo(
            f"note: {file} is not imported: in a folder the name must be metrics.csv; to import "
            f"it: mlflow-track import {shlex.quote(str(file))} --to {shlex.quote(str(root))}",
            err=True,
        )
    if (more := len(files) - _MOST_NAMED) > 0:
        echo(f"note: {count_text(more, 'more file')} like this in {where}", err=True)


def _is_wanted(experiment: str | None, only: tuple[str, ...]) -> bool:
    """Whether a run of an experiment is to be imported; of an unknown one it may be."""
    return not only or experiment is None or experiment in only


class _Import:
    """Imports runs one by one.

    Args:
        only: The experiments to import; empty for all.
        no_artifacts: Whether files stay at the source.

    Attributes:
        rows: What became of each run.
    """

    def __init__(self, writer: RecordWriter, only: tuple[str, ...], no_artifacts: bool) -> None:
        self._writer, self._only, self._no_artifacts = writer, only, no_artifacts
        self.rows: list[dict[str, Any]] = []

    def run(self, runs: Iterable[FoundRun]) -> None:
        from mlflow_track.backends.protocol import Unavailable

        for found in runs:
            row: dict[str, Any] = {"source": found.label, "state": "failed", "problems": []}
            row |= {"notes": [], **dict.fromkeys(("id", "name", "experiment", "path"))}
            try:
                run = found.read()
                if self._no_artifacts:
                    run = replace(run, files=(), media=())
                if not _is_wanted(run.experiment, self._only):
                    continue
                outcome = self._writer.write(run)
                row |= {**outcome._asdict(), "path": str(outcome.path.absolute())}
            except (OSError, ValueError) as error:
                if _is_of_disk(error):
                    raise
                row["problems"] = [str(error)]
            except Unavailable as error:
                # The others cannot be read either.
                row["problems"] = [f"{error}; this run and those after it are not imported"]
                self.rows.append(row)
                return
            self.rows.append(row)


def _is_of_disk(error: Exception) -> bool:
    """Whether nothing else can be written either."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def _with_progress(found: list[FoundRun], *, hidden: bool) -> Iterator[FoundRun]:
    """The runs one by one, with a bar on a terminal."""
    if hidden or not sys.stderr.isatty():
        yield from found
        return
    with click.progressbar(found, label="importing", file=sys.stderr, show_pos=True) as bar:
        yield from bar


def _report(rows: list[dict[str, Any]]) -> None:
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
