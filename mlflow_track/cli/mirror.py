"""Commands about the mirror: send records to backends, and say how far these are."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from mlflow_track.cli.select import runs_named

if TYPE_CHECKING:
    from mlflow_track.analysis.load import LoadedRun

_URI_HELP = "The MLflow server; else that of the run, else MLFLOW_TRACKING_URI."
_BACKEND_HELP = "A backend, can be given more than once; else those of the run."


def _with_backends(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say which backends are meant."""
    for option in (
        click.option("--tracking-uri", help=_URI_HELP),
        click.option("--backend", "backends", multiple=True, help=_BACKEND_HELP),
    ):
        command = option(command)
    return command


@click.command()
@click.argument("runs", nargs=-1)
@click.option("--all", "is_all", is_flag=True, help="Import every run below the folders RUNS.")
@_with_backends
def sync(
    runs: tuple[str, ...], is_all: bool, backends: tuple[str, ...], tracking_uri: str | None
) -> None:
    """Send to backends what they lack of RUNS: ids, folders of runs, or folders of many.

    Without RUNS: every run in MLFLOW_TRACK_DIR that was meant for a backend which lacks something;
    with --all also those that were recorded without one. May be repeated at any time, from any
    process: what a backend has is not sent twice, and times are those of the record.

    \b
    Example:
      mlflow-track sync --all runs/ --tracking-uri http://127.0.0.1:5000
    """
    from mlflow_track.backends.protocol import Unavailable
    from mlflow_track.mirror.process import AlreadyMirrored, sync_run
    from mlflow_track.record.masking import mask_password

    chosen = runs_named(runs)
    if not runs and not is_all:
        chosen = [run for run in chosen if _lacks_something(run)]
    if not chosen:
        click.echo("nothing is pending")
    failed = False
    there = _Backends()
    for run, name in _pairs(chosen, backends, tracking_uri):
        try:
            backend = there.open(name, options_for(run, name, tracking_uri))
            status = sync_run(run.path.absolute(), name, backend)
        except AlreadyMirrored:
            click.echo(f"{run.id}: already being sent to {name} by its own mirror process")
        except (Unavailable, LookupError) as error:
            click.echo(f"{run.id}: {name}: {error}", err=True)
            failed = True
        except Exception as error:
            reason = mask_password(" ".join(str(error).split()))
            click.echo(f"{run.id}: {name}: {type(error).__name__}: {reason}", err=True)
            failed = True
        else:
            click.echo(f"{run.id}: {status}")
            failed = failed or not (status.is_complete or run.status == "RUNNING")
    sys.exit(failed)


@click.command()
@click.argument("runs", nargs=-1)
@_with_backends
def doctor(runs: tuple[str, ...], backends: tuple[str, ...], tracking_uri: str | None) -> None:
    """Say how far each backend is with RUNS (ids or folders), and what keeps it.

    Without RUNS: every run in MLFLOW_TRACK_DIR that was meant for a backend which lacks something.
    Ends with status 1 where something is pending and nothing is about to send it.

    \b
    Example:
      mlflow-track doctor runs
    """
    from mlflow_track.backends.protocol import Unavailable
    from mlflow_track.mirror.doctor import examine, head, probe

    chosen = runs_named(runs)
    if not runs:
        chosen = [run for run in chosen if _lacks_something(run)]
    if not chosen:
        click.echo("nothing is pending")
    there = _Backends()
    is_well = True
    said = ""
    for run, name in _pairs(chosen, backends, tracking_uri):
        if run.id != said:
            said = run.id
            click.echo(head(run.path))
        try:
            options = options_for(run, name, tracking_uri)
            trouble = there.ask(name, options, probe)
        except (LookupError, ValueError) as error:
            click.echo(f"  {name}: {error}")
            is_well = is_well and isinstance(error, LookupError)
            continue
        except Unavailable as error:
            options, trouble = {}, str(error)
        try:
            # The server is named beside whether it answers.
            shown = {key: text for key, text in options.items() if key != "tracking_uri"}
            diagnosis = examine(run.path.absolute(), name, shown, trouble)
        except (OSError, ValueError) as error:
            click.echo(f"{run.id}: the record cannot be read: {error}")
            is_well = False
            continue
        click.echo("\n".join(diagnosis.lines))
        is_well = is_well and diagnosis.is_well
    sys.exit(not is_well)


class _Backends:
    """Each backend with each set of options is opened, and asked, once."""

    def __init__(self) -> None:
        self._open: dict[tuple[Any, ...], Any] = {}
        self._answers: dict[tuple[Any, ...], str | None] = {}

    def open(self, name: str, options: dict[str, str]) -> Any:
        """The backend; raises Unavailable where it is not installed."""
        from mlflow_track.mirror.process import open_backend

        key = (name, *sorted(options.items()))
        if key not in self._open:
            self._open[key] = open_backend(name, options)
        return self._open[key]

    def ask(
        self, name: str, options: dict[str, str], probe: Callable[[Any], str | None]
    ) -> str | None:
        """What `probe` says of the backend; see `open`."""
        key = (name, *sorted(options.items()))
        if key not in self._answers:
            self._answers[key] = probe(self.open(name, options))
        return self._answers[key]


def _pairs(
    runs: list[LoadedRun], backends: tuple[str, ...], tracking_uri: str | None
) -> list[tuple[LoadedRun, str]]:
    """Each run with each backend that is meant."""
    from mlflow_track.settings import read_settings

    named = backends or (("mlflow",) if tracking_uri else ())
    if not named and any(run.mirror is None for run in runs):
        default = read_settings().backends or ("mlflow",)
    else:
        default = ()
    return [
        (run, name)
        for run in runs
        for name in named or (run.mirror.backends if run.mirror is not None else default)
    ]


def options_for(run: LoadedRun, name: str, tracking_uri: str | None) -> dict[str, str]:
    """The options of a backend for a run: those of the environment, else those that it began with.

    Raises:
        LookupError: One is secret, so that the record does not have it, and nothing else does.
    """
    from mlflow_track.plugins import options_of
    from mlflow_track.record.masking import MASK
    from mlflow_track.settings import read_settings

    dotenv = read_settings(backend="local").mirror_environment
    recorded = run.mirror.options.get(name, {}) if run.mirror is not None else {}
    options = {**recorded, **options_of(name, {**dotenv, **os.environ})}
    for option, value in options.items():
        if MASK in value:
            raise LookupError(
                f"the record does not store {option} of {name}, which is secret; set "
                + f"MLFLOW_TRACK_{name}_{option}".upper()
            )
    if name == "mlflow":
        options["tracking_uri"] = server_of(run, tracking_uri)
    return options


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
            f"the record does not store the password for {own}; give --tracking-uri or set "
            "MLFLOW_TRACKING_URI"
            if own
            else "no server is known; give --tracking-uri or set MLFLOW_TRACKING_URI"
        )
    return named


def _lacks_something(run: LoadedRun) -> bool:
    from mlflow_track.mirror.status import read_statuses

    mirror = run.mirror
    return mirror is not None and not read_statuses(run.path, mirror.backends).is_complete
