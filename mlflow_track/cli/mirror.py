"""Commands about the mirror: send records to an MLflow server, and say how far it is."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from mlflow_track.cli.select import runs_named

if TYPE_CHECKING:
    from mlflow_track.analysis.load import LoadedRun

_URI_HELP = "The server; else the one that the run began with, else MLFLOW_TRACKING_URI."


@click.command()
@click.argument("runs", nargs=-1)
@click.option("--all", "is_all", is_flag=True, help="Import every run below the folders RUNS.")
@click.option("--tracking-uri", help=_URI_HELP)
def sync(runs: tuple[str, ...], is_all: bool, tracking_uri: str | None) -> None:
    """Send to an MLflow server what it lacks of RUNS: ids, folders of runs, or folders of many.

    Without RUNS: every run in MLFLOW_TRACK_DIR that was meant for a server which lacks something;
    with --all also those that were recorded without one. May be repeated at any time, from any
    process: what the server has is not sent twice, and times are those of the record.

    \b
    Example:
      mlflow-track sync --all runs/ --tracking-uri http://127.0.0.1:5000
    """
    from mlflow_track.backends.protocol import Unavailable
    from mlflow_track.mirror.process import AlreadyMirrored, open_mlflow, sync_run
    from mlflow_track.record.masking import mask_password

    chosen = runs_named(runs)
    if not runs and not is_all:
        chosen = [run for run in chosen if _lacks_something(run)]
    if not chosen:
        click.echo("nothing is pending")
    failed = False
    for run in chosen:
        try:
            uri = server_of(run, tracking_uri)
            status = sync_run(run.path.absolute(), uri, open_mlflow)
        except AlreadyMirrored:
            click.echo(f"{run.id}: its own mirror is sending it")
        except (Unavailable, LookupError) as error:
            click.echo(f"{run.id}: {error}", err=True)
            failed = True
        except Exception as error:
            reason = mask_password(" ".join(str(error).split()))
            click.echo(f"{run.id}: {type(error).__name__}: {reason}", err=True)
            failed = True
        else:
            click.echo(f"{run.id}: {status}")
            failed = failed or not (status.is_complete or run.status == "RUNNING")
    sys.exit(failed)


@click.command()
@click.argument("runs", nargs=-1)
@click.option("--tracking-uri", help=_URI_HELP)
def doctor(runs: tuple[str, ...], tracking_uri: str | None) -> None:
    """Say how far the MLflow server is with RUNS (ids or folders), and what keeps it.

    Without RUNS: every run in MLFLOW_TRACK_DIR that was meant for a server which lacks something.
    Ends with status 1 where something is pending and nothing is about to send it.

    \b
    Example:
      mlflow-track doctor runs
    """
    from mlflow_track.mirror.doctor import examine, probe

    chosen = runs_named(runs)
    if not runs:
        chosen = [run for run in chosen if _lacks_something(run)]
    if not chosen:
        click.echo("nothing is pending")
    answers: dict[str, str | None] = {}
    is_well = True
    for run in chosen:
        try:
            uri = server_of(run, tracking_uri)
        except (LookupError, ValueError) as error:
            click.echo(f"{run.id}: {error}")
            is_well = is_well and isinstance(error, LookupError)
            continue
        if uri not in answers:
            answers[uri] = probe(uri)
        try:
            diagnosis = examine(run.path.absolute(), answers[uri])
        except (OSError, ValueError) as error:
            click.echo(f"{run.id}: the record cannot be read: {error}")
            is_well = False
            continue
        click.echo("\n".join(diagnosis.lines))
        is_well = is_well and diagnosis.is_well
    sys.exit(not is_well)


def server_of(run: LoadedRun, tracking_uri: str | None) -> str:
    """The URI of the server that gets the run.

    Raises:
        LookupError: Nothing names one, or its password is not known.
    """
    from mlflow_track.record.masking import mask_password
    from mlflow_track.settings import absolute_uri, read_settings

    if tracking_uri:
        return absolute_uri(tracking_uri)
    own = run.mirror.tracking_uri if run.mirror is not None else ""
    if own and mask_password(own) == own and "***" not in own:
        return own
    named = read_settings(backend="mlflow").named_tracking_uri
    if not named or (own and mask_password(named) != own):
        raise LookupError(
            f"the password of {own} is not in the record; give --tracking-uri or set "
            "MLFLOW_TRACKING_URI"
            if own
            else "no server is known; give --tracking-uri or set MLFLOW_TRACKING_URI"
        )
    return named


def _lacks_something(run: LoadedRun) -> bool:
    from mlflow_track.mirror.status import read_status

    return run.mirror is not None and not read_status(run.path).is_complete
