"""`mlflow-track wait`: until runs have ended, however they end."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlflow_track.cli import exit_codes
from mlflow_track.cli.output import cell_text, echo, json_option, print_json
from mlflow_track.cli.select import runs_argument, some_runs
from mlflow_track.record import layout
from mlflow_track.record.schema import RUNNING

if TYPE_CHECKING:
    from mlflow_track.analysis.summary import Summary
    from mlflow_track.record.schema import RunInfo

_POLL_SECONDS = 0.5


class _Seconds(click.FloatRange):
    """A time to wait; no comparison refuses NaN."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        seconds = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail("it must be a number of seconds, got nan", param, ctx)
        return seconds


@click.command()
@runs_argument
@click.option(
    "--timeout",
    type=_Seconds(min=0),
    default=math.inf,
    metavar="SECONDS",
    help="Give up after this long; 0 checks once. By default there is no limit.",
)
@json_option
def wait(runs: tuple[str, ...], root: Path, timeout: float, as_json: bool) -> None:
    """Wait until RUNs (default: the newest) have ended.

    Ends with 0 if all are FINISHED, with 1 if one is FAILED or KILLED, and with 4 if one is still
    RUNNING after --timeout.

    \b
    Examples:
      mlflow-track wait
      mlflow-track wait lr-1e-3 @last --timeout 3600 --json
    """
    deadline = time.monotonic() + timeout
    found = some_runs(root, runs or ("@last",))
    rows: list[dict[str, Any] | None] = [None] * len(found)
    while True:
        for number, run in enumerate(found):
            if rows[number] is None and (row := _ended(run)):
                rows[number] = row
                if not as_json:
                    _print(row)
        left = deadline - time.monotonic()
        if all(rows) or left <= 0:
            break
        time.sleep(min(_POLL_SECONDS, left))
    ended = [row or _row(run, run.info, RUNNING) for row, run in zip(rows, found, strict=True)]
    if as_json:
        print_json(ended)
    else:
        for row in ended:
            if row["status"] == RUNNING:
                _print(row)
    codes = {exit_codes.of_status(row["status"]) for row in ended}
    # One that runs may still end either way; the question has no answer yet.
    raise click.exceptions.Exit(max(codes))


def _ended(run: Summary) -> dict[str, Any] | None:
    """The row of a run that has ended; None while it runs.

    Raises:
        NotFound: Its folder was moved or removed.
    """
    from mlflow_track.record.info import UnreadableRun, read_info, true_status

    try:
        info = read_info(run.path)
    except UnreadableRun:
        if (run.path / layout.RUN).exists():
            raise
        raise exit_codes.NotFound(f"{run.path} was moved or removed") from None
    status = true_status(run.path, info)
    return None if status == RUNNING else _row(run, info, status)


def _row(run: Summary, info: RunInfo, status: str) -> dict[str, Any]:
    return {
        "id": run.id,
        "name": run.name,
        "experiment": run.experiment,
        "path": str(run.path.absolute()),
        "status": status,
        "error": None if status == RUNNING else info.newest.error,
    }


def _print(row: dict[str, Any]) -> None:
    error = f": {cell_text(row['error'])}" if row["error"] else ""
    echo(f"run {row['name']} {row['status']}{error}")
