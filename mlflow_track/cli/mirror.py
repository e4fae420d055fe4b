"""Commands about the mirror: send records to an MLflow server, and say how far it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mlflow_track.cli import exit_codes
from mlflow_track.cli.output import echo, json_option, print_json
from mlflow_track.cli.select import runs_named
from mlflow_track.record.schema import RUNNING

if TYPE_CHECKING:
    from mlflow_track.analysis.load import LoadedRun

_URI_HELP = "The server; else the one that the run began with, else MLFLOW_TRACKING_URI."
_ENDS = {
    "complete": exit_codes.YES,
    "pending": exit_codes.PENDING,
    "failed": exit_codes.NO,
}


@click.command()
@click.argument("runs", nargs=-1)
@click.option("--all", "is_all", is_flag=True, help="Import every run below the folders RUNS.")
@click.option("--tracking-uri", help=_URI_HELP)
@json_option
def sync(runs: tuple[str, ...], is_all: bool, tracking_uri: str | None, as_json: bool) -> None:
    """Send to an MLflow server what it lacks of RUNS: ids, folders of runs, or folders of many.

    Without RUNS: every run in MLFLOW_TRACK_DIR that was meant for a server which lacks something;
    with --all also those that were recorded without one. May be repeated at any time, from any
    process: what the server has is not sent twice, and times are those of the record.

    Ends with 0 if the server has everything, with 4 if something is pending that the run's own
    mirror will send, and with 1 if something could not be sent.

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
    states = _States(as_json)
    for run in chosen:
        try:
            uri = server_of(run, tracking_uri)
            status = sync_run(run.path.absolute(), uri, open_mlflow)
        except AlreadyMirrored:
            states.add(run, "pending", f"{run.id}: already being synced by its own mirror process")
        except (Unavailable, LookupError) as error:
            states.add(run, "failed", f"{run.id}: {error}", err=True)
        except Exception as error:
            reason = mask_password(" ".join(str(error).split()))
            states.add(run, "failed", f"{run.id}: {type(error).__name__}: {reason}", err=True)
        else:
            is_pending = not status.is_complete and run.status == RUNNING
            state = "complete" if status.is_complete else "pending" if is_pending else "failed"
            states.add(run, state, f"{run.id}: {status}")
    states.end()


@click.command()
@click.argument("runs", nargs=-1)
@click.option("--tracking-uri", help=_URI_HELP)
@json_option
def doctor(runs: tuple[str, ...], tracking_uri: str | None, as_json: bool) -> None:
    """Say how far the MLflow server is with RUNS (ids or folders), and what keeps it.

    Without RUNS: every run in MLFLOW_TRACK_DIR that was meant for a server which lacks something.
    Ends with 0 if the server has everything, with 4 if something is pending that is about to be
    sent, and with 1 if nothing is about to send it.

    \b
    Example:
      mlflow-track doctor runs
    """
    from mlflow_track.mirror.doctor import examine, probe
    from mlflow_track.mirror.status import read_status

    chosen = runs_named(runs)
    if not runs:
        chosen = [run for run in chosen if _lacks_something(run)]
    answers: dict[str, str | None] = {}
    states = _States(as_json)
    for run in chosen:
        try:
            uri = server_of(run, tracking_uri)
        except LookupError as error:
            # It was recorded without a server, or its password is unknown here.
            state = "pending" if _lacks_something(run) else "complete"
            states.add(run, state, f"{run.id}: {error}")
            continue
        except ValueError as error:
            states.add(run, "failed", f"{run.id}: {error}")
            continue
        if uri not in answers:
            answers[uri] = probe(uri)
        try:
            diagnosis = examine(run.path.absolute(), answers[uri])
            is_complete = read_status(run.path).is_complete
        except (OSError, ValueError) as error:
            states.add(run, "failed", f"{run.id}: the record cannot be read: {error}")
            continue
        state = "complete" if is_complete else "pending" if diagnosis.is_well else "failed"
        states.add(run, state, "\n".join(diagnosis.lines))
    states.end()


class _States:
    """What the server has of each run: printed at once for people, at the end for programs."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._rows: list[dict[str, str]] = []

    def add(self, run: LoadedRun, state: str, text: str, *, err: bool = False) -> None:
        self._rows.append({"id": run.id, "state": state, "text": text})
        if not self._as_json:
            echo(text, err=err)

    def end(self) -> None:
        """End the command by the worst state: failed, then pending."""
        if self._as_json:
            print_json(self._rows)
        elif not self._rows:
            echo("nothing is pending")
        states = {row["state"] for row in self._rows}
        worst = next((state for state in ("failed", "pending") if state in states), "complete")
        raise click.exceptions.Exit(_ENDS[worst])


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
