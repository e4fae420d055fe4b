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
    """Follow a live RUN: its log, and its newest row of metrics about once a second.

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
        self._last: tuple[int, float] | None = None

    def print_end(self, lines: int) -> None:
        # A log may have grown for weeks; as much of its end as the lines can need.
        most = _MOST_LINE_BYTES * max(lines, 1)
        with contextlib.suppress(OSError):
            self._at = max(0, os.lstat(self._log).st_size - most)
        text = self._read_log()
        for line in text.splitlines()[-lines:] if lines > 0 else []:
            click.echo(line)
        self._print_newest_row()

    def print_new(self) -> None:
        click.echo(self._read_log(), nl=False)
        self._print_newest_row()

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

    def _print_newest_row(self) -> None:
        from mlflow_track.record.rows import parse_columns, read_piece

        try:
            piece = read_piece(self._file, -(4 << 10))
        except (OSError, ValueError):
            return
        columns = parse_columns(piece.names, piece.body)
        if not columns.steps or (columns.steps[-1], columns.times[-1]) == self._last:
            return
        self._last = (columns.steps[-1], columns.times[-1])
        cells = [
            f"{name} {values[-1]:.6g}"
            for name, values in columns.values.items()
            if values[-1] is not None and (not self._metrics or name in self._metrics)
        ]
        if cells:
            click.echo(f"step {columns.steps[-1]}  " + "  ".join(cells))
