"""`mlflow-track tail`: what a run does now."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import click

from mlflow_track.cli.select import directory_option, one_run, run_or_last_argument
from mlflow_track.record import layout
from mlflow_track.record.files import open_regular

# The newest step is looked for in so much of each file, and so much of it is shown.
_END_BYTES = 64 << 10
_MOST_CELLS = 20
_MOST_LINE_BYTES, _MOST_BYTES = 1000, 64 << 20


@click.command()
@run_or_last_argument
@directory_option
@click.option(
    "-n", "--lines", default=10, show_default=True, help="Lines of the log to begin with."
)
@click.option("--metric", "metrics", multiple=True, help="Only these metrics.")
@click.option("--no-follow", is_flag=True, help="Print what is there, and end.")
def tail(run: str, root: Path, lines: int, metrics: tuple[str, ...], no_follow: bool) -> None:
    """Follow a live RUN: its log, and its newest step of metrics about once a second.

    Without RUN the newest. Ends when the run does; with status 1 where it FAILED or was KILLED.

    \b
    Examples:
      mlflow-track tail
      mlflow-track tail @last --lines 3 --metric train/loss
    """
    from mlflow_track.record.info import read_info, true_status

    found = one_run(root, run)
    follower = _Follower(found.path, metrics)
    follower.print_end(lines)
    status = found.status
    while not no_follow:
        # The status first: what came before the end is then printed in any case.
        status = true_status(found.path, read_info(found.path))
        follower.print_new()
        if status != "RUNNING":
            click.echo(f"run {found.name} {status}")
            break
        time.sleep(1)
    if status in ("FAILED", "KILLED"):
        raise click.exceptions.Exit(1)


class _Follower:
    """Prints what comes to the log and to the metrics of a run."""

    def __init__(self, path: Path, metrics: tuple[str, ...]) -> None:
        self._log, self._file, self._metrics = path / layout.LOG, path / layout.METRICS, metrics
        self._at = 0
        self._last: tuple[float, int] | None = None

    def print_end(self, lines: int) -> None:
        # A log may have grown for weeks; as much of its end as the lines can need.
        most = _MOST_LINE_BYTES * max(lines, 1)
        with contextlib.suppress(OSError):
            self._at = max(0, os.lstat(self._log).st_size - most)
        text = self._read_log()
        for line in text.splitlines()[-lines:] if lines > 0 else []:
            click.echo(line)
        self._print_newest_step()

    def print_new(self) -> None:
        click.echo(self._read_log(), nl=False)
        self._print_newest_step()

    def _read_log(self) -> str:
        try:
            with open_regular(self._log) as file:
                file.seek(self._at)
                data = file.read(_MOST_BYTES)
        except OSError:
            return ""
        data = data[: data.rfind(b"\n") + 1]
        self._at += len(data)
        return data.decode(errors="replace")

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
        wanted = [name for name in values if not self._metrics or name in self._metrics]
        cells = [f"{name} {values[name][1]:.6g}" for name in wanted[:_MOST_CELLS]]
        if len(wanted) > _MOST_CELLS:
            cells.append(f"and {len(wanted) - _MOST_CELLS} more")
        if cells:
            click.echo(f"step {newest[1]}  " + "  ".join(cells))
