"""Commands about the mirror: send records to backends, and show their status."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from mlflow_track.cli import exit_codes
from mlflow_track.cli.exchange.destination import NotConfirmed, options_for, sends_elsewhere
from mlflow_track.cli.output import echo, json_option, print_json
from mlflow_track.cli.select import runs_named
from mlflow_track.record.schema import RUNNING
from mlflow_track.wording import expected

if TYPE_CHECKING:
    from mlflow_track.analysis.load import LoadedRun
    from mlflow_track.mirror.status import BackendStatus

_URI_HELP = "The MLflow server; else MLFLOW_TRACKING_URI."
_RECORDED_HELP = "Confirm the server and the options that the folders of RUNS name."
_BACKEND_HELP = "A backend, can be given more than once; else those of the run."
# The fields of a row of a run and a backend, beside those of its status.
_NAMED_ABOVE = ("backend", "path")
# The worst one decides how the command ends.
_ENDS = {"failed": exit_codes.NO, "pending": exit_codes.PENDING, "complete": exit_codes.YES}


def _with_backends(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--as-recorded", is_flag=True, help=_RECORDED_HELP),
        click.option("--tracking-uri", help=_URI_HELP),
        click.option("--backend", "backends", multiple=True, help=_BACKEND_HELP),
    ):
        command = option(command)
    return command


@click.command()
@click.argument("runs", nargs=-1)
@click.option("--all", "is_all", is_flag=True, help="Send every run below the folders RUNS.")
@_with_backends
@json_option
def sync(
    runs: tuple[str, ...],
    is_all: bool,
    backends: tuple[str, ...],
    tracking_uri: str | None,
    as_recorded: bool,
    as_json: bool,
) -> None:
    """Send to backends what they lack of RUNS: ids, folders of runs, or folders of many.

    Without RUNS: every run in MLFLOW_TRACK_DIR that was meant for a backend which lacks something;
    with --all also those that were recorded without one. With --backend they are sent to one that
    they never had, also when they are finished or imported. May be repeated at any time, from any
    process: what a backend has is not sent twice, and times are those of the record. A mirror that
    waits for its server lets this command have the run. What was refused is tried once more.

    A folder may come from anybody, and what is sent may carry your token. So the server and the
    options are those of the command line and of the environment; where a record names others, that
    must be confirmed with --as-recorded.

    Ends with 0 if the backends have everything, with 4 if something is pending that the run's own
    mirror will send, and with 1 if something could not be sent.

    \b
    Examples:
      mlflow-track sync --all runs/ --tracking-uri http://127.0.0.1:5000
      mlflow-track sync @last --backend mlflow --tracking-uri sqlite:///mlflow.db
    """
    from mlflow_track.backends.protocol import Unavailable
    from mlflow_track.mirror.process import AlreadyMirrored, sync_run
    from mlflow_track.record.masking import mask_password

    chosen = runs_named(runs)
    if not runs and not is_all:
        chosen = [run for run in chosen if _lacks_something(run)]
    there, states = _Backends(), _States(as_json)
    for run, name in _pairs(chosen, backends, tracking_uri):
        try:
            backend = there.open(name, options_for(run, name, tracking_uri, as_recorded))
            status = sync_run(run.path.absolute(), name, backend)
        except AlreadyMirrored:
            text = f"{run.id}: already being sent to {name} by its own mirror process"
            is_elsewhere = sends_elsewhere(run, name, tracking_uri)
            if is_elsewhere:
                text = f"{text}, and not to {tracking_uri}: wait for it, or end it first"
            states.add(run, name, "failed" if is_elsewhere else "pending", text)
        except (Unavailable, LookupError) as error:
            states.add(run, name, "failed", f"{run.id}: {name}: {error}", err=True)
        except Exception as error:
            reason = mask_password(" ".join(str(error).split()))
            text = f"{run.id}: {name}: {type(error).__name__}: {reason}"
            states.add(run, name, "failed", text, err=True)
        else:
            state = "pending" if run.status == RUNNING else "failed"
            state = "complete" if status.is_complete else state
            states.add(run, name, state, f"{run.id}: {status}", status)
    states.end()


@click.command()
@click.argument("runs", nargs=-1)
@_with_backends
@json_option
def doctor(
    runs: tuple[str, ...],
    backends: tuple[str, ...],
    tracking_uri: str | None,
    as_recorded: bool,
    as_json: bool,
) -> None:
    """Show how far each backend is with RUNS (ids or folders), and what delays it.

    Without RUNS: every run in MLFLOW_TRACK_DIR that was meant for a backend which lacks something.
    Ends with 0 if the backends have everything, with 4 if something is pending that is about to be
    sent, and with 1 if nothing is about to send it.

    \b
    Example:
      mlflow-track doctor runs
    """
    from mlflow_track.backends.protocol import Unavailable
    from mlflow_track.mirror.doctor import examine, head, probe
    from mlflow_track.mirror.status import read_status

    chosen = runs_named(runs)
    if not runs:
        chosen = [run for run in chosen if _lacks_something(run)]
    there, states = _Backends(), _States(as_json)
    said = ""
    for run, name in _pairs(chosen, backends, tracking_uri):
        if run.id != said:
            said = run.id
            if not as_json:
                echo(head(run.path))
        try:
            options = options_for(run, name, tracking_uri, as_recorded)
            trouble = there.ask(name, options, probe)
        except NotConfirmed as error:
            options, trouble = {}, f"not asked ({error})"
        except LookupError as error:
            # It was recorded without a server, or a secret is unknown here.
            state = "pending" if _lacks_something(run) else "complete"
            states.add(run, name, state, f"  {name}: {error}")
            continue
        except ValueError as error:
            states.add(run, name, "failed", f"  {name}: {error}")
            continue
        except Unavailable as error:
            options, trouble = {}, str(error)
        try:
            # The server is named beside whether it answers.
            shown = {key: text for key, text in options.items() if key != "tracking_uri"}
            diagnosis = examine(run.path.absolute(), name, shown, trouble)
            status = read_status(run.path.absolute(), name)
        except (OSError, ValueError) as error:
            states.add(run, name, "failed", f"{run.id}: the record cannot be read: {error}")
            continue
        state = "pending" if diagnosis.is_well else "failed"
        state = "complete" if status.is_complete else state
        states.add(run, name, state, "\n".join(diagnosis.lines), status)
    states.end()


class _States:
    """The status of each run at each backend: printed at once, or at the end as JSON."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._rows: list[dict[str, Any]] = []

    def add(
        self,
        run: LoadedRun,
        backend: str,
        state: str,
        text: str,
        status: BackendStatus | None = None,
        *,
        err: bool = False,
    ) -> None:
        row: dict[str, Any] = {"id": run.id, "backend": backend, "state": state, "text": text}
        fields = {} if status is None else asdict(status)
        row["status"] = {k: v for k, v in fields.items() if k not in _NAMED_ABOVE} or None
        self._rows.append(row)
        if not self._as_json:
            echo(text, err=err)

    def end(self) -> None:
        """End the command as the worst state says."""
        if self._as_json:
            print_json(self._rows)
        elif not self._rows:
            echo("nothing is pending")
        found = {row["state"] for row in self._rows}
        raise click.exceptions.Exit(next((_ENDS[s] for s in _ENDS if s in found), exit_codes.YES))


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
        """The result of `probe` of the backend; see `open`."""
        key = (name, *sorted(options.items()))
        if key not in self._answers:
            self._answers[key] = probe(self.open(name, options))
        return self._answers[key]


def _pairs(
    runs: list[LoadedRun], backends: tuple[str, ...], tracking_uri: str | None
) -> list[tuple[LoadedRun, str]]:
    from mlflow_track.settings import read_settings

    _require_backends(backends)
    named, default = backends or (("mlflow",) if tracking_uri else ()), ()
    if not named and any(run.mirror is None for run in runs):
        default = read_settings().backends or ("mlflow",)
    return [
        (run, name)
        for run in runs
        for name in named or (run.mirror.backends if run.mirror is not None else default)
    ]


def _require_backends(names: tuple[str, ...]) -> None:
    """
    Raises:
        click.UsageError: No installed package has a backend of this name.
    """
    from mlflow_track.checks import did_you_mean
    from mlflow_track.plugins import backend_names, find_backend

    for name in names:
        if find_backend(name) is None:
            known = backend_names()
            wanted = f"one of {', '.join(known)}"
            raise click.UsageError(
                expected("--backend", wanted, repr(name)) + did_you_mean(name, known)
            )


def _lacks_something(run: LoadedRun) -> bool:
    from mlflow_track.mirror.status import read_statuses

    mirror = run.mirror
    return mirror is not None and not read_statuses(run.path, mirror.backends).is_complete
