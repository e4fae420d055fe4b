"""`mlflow-track tail`: follows a run."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from pathlib import Path

import click

from mlflow_track.cli import exit_codes
from mlflow_track.cli.output import cell_text, echo, json_option, print_json
from mlflow_track.cli.select import one_run, run_or_last_argument
from mlflow_track.record import layout
from mlflow_track.record.files import open_regular
from mlflow_track.record.schema import RUNNING

# The newest step is looked for in so much of each file, and so much of it is shown.
_END_BYTES = 64 << 10
_MOST_CELLS = 20
_MOST_LINE_BYTES, _MOST_BYTES = 1000, 64 << 20


@click.command()
@run_or_last_argument
@click.option(
    "-n", "--lines", default=10, show_default=True, help="Lines of the log to begin with."
)
@click.option("--metric", "metrics", multiple=True, help="Only these metrics.")
@click.option("--no-follow", is_flag=True, help="Print once and exit.")
@json_option
def tail(
    run: str, root: Path, lines: int, metrics: tuple[str, ...], no_follow: bool, as_json: bool
) -> None:
    """Follow a live RUN (default: the newest): its log, and once a second its newest metrics.

    Ends when the run does: with 0 if it is FINISHED, with 1 if it is FAILED or KILLED; --no-follow
    ends with 4 while it is RUNNING. --json prints a JSON document on each line.

    \b
    Examples:
      mlflow-track tail
      mlflow-track tail @last --lines 3 --metric train/loss
    """
    from mlflow_track.record.info import read_info, true_status

    found = one_run(root, run)
    follower = _Follower(found.path, metrics, as_json)
    follower.print_end(lines)
    status = found.status
    while not no_follow:
        # The status first: so everything before the end is printed.
        status = true_status(found.path, read_info(found.path))
        follower.print_new()
        if status != RUNNING:
            break
        time.sleep(1)
    if as_json:
        print_json({"type": "status", "status": status}, is_line=True)
    elif not no_follow:
        echo(f"run {cell_text(found.name)} {status}")
    raise click.exceptions.Exit(exit_codes.of_status(status))


class _Follower:
    """Prints new lines of the log and new metrics of a run."""

    def __init__(self, path: Path, metrics: tuple[str, ...], as_json: bool) -> None:
        self._log, self._file, self._metrics = path / layout.LOG, path / layout.METRICS, metrics
        self._as_json = as_json
        self._at = 0
        self._last: tuple[float, int] | None = None

    def print_end(self, lines: int) -> None:
        # A log may have grown for weeks; as much of its end as the lines can need.
        most = _MOST_LINE_BYTES * max(lines, 1)
        with contextlib.suppress(OSError):
            self._at = max(0, os.lstat(self._log).st_size - most)
        read = self._read_log()
        self._print_log(read[-lines:] if lines > 0 else [])
        self._print_newest_step()

    def print_new(self) -> None:
        self._print_log(self._read_log())
        self._print_newest_step()

    def _print_log(self, lines: Iterable[str]) -> None:
        for line in lines:
            if self._as_json:
                print_json({"type": "log", "text": line}, is_line=True)
            else:
                echo(line)

    def _read_log(self) -> list[str]:
        try:
            with open_regular(self._log) as file:
                file.seek(self._at)
                data = file.read(_MOST_BYTES)
        except OSError:
            return []
        data = data[: data.rfind(b"\n") + 1]
        self._at += len(data)
        # Not splitlines, which ends a line at other characters as well.
        return data.decode(errors="replace").split("\n")[:-1]

    def _print_newest_step(self) -> None:
        from mlflow_track.record.rows import files_of, read_end

        ends = []
        for file in files_of(self._file):
            with contextlib.suppress(OSError, ValueError):
                ends.append(read_end(file, _END_BYTES)[0])
        newest = max(((c.times[-1], c.steps[-1]) for c in ends if c.steps), default=None)
        if newest is None or newest == self._last:
            return
        self._last = newest
        values: dict[str, tuple[float, float]] = {}
        for columns in ends:
            for name, (rows, column) in columns.metrics.items():
                if rows and columns.steps[rows[-1]] == newest[1]:
                    point = (columns.times[rows[-1]], column[-1])
                    values[name] = max(values.get(name, point), point, key=lambda p: p[0])
        wanted = {
            name: value
            for name, (_, value) in values.items()
            if not self._metrics or name in self._metrics
        }
        if self._as_json and wanted:
            document = {"type": "metrics", "step": newest[1], "time": newest[0], "metrics": wanted}
            print_json(document, is_line=True)
        elif wanted:
            shown = list(wanted.items())[:_MOST_CELLS]
            cells = [f"{cell_text(name)} {value:.6g}" for name, value in shown]
            if len(wanted) > _MOST_CELLS:
                cells.append(f"and {len(wanted) - _MOST_CELLS} more")
            echo(f"step {newest[1]}  " + "  ".join(cells))
