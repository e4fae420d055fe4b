"""`mlflow-track show`: one run, all of it. `mlflow-track tail`: what it does now."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlflow_track.cli.output import cell_text, duration_text, output_options, print_json, print_rows
from mlflow_track.cli.select import directory_option, one_run, run_or_last_argument

if TYPE_CHECKING:
    from mlflow_track.analysis.summary import Summary


@click.command()
@run_or_last_argument
@directory_option
@output_options
def show(run: str, root: Path, form: str | None) -> None:
    """Show one RUN: status, attempts, params, tags, provenance, metrics, checkpoints, artifacts.

    A run is named by its id or the beginning of it, its name, its path, experiment/name, @last,
    or @best:METRIC; without one it is the newest. --csv prints the summary of its metrics.

    \b
    Examples:
      mlflow-track show
      mlflow-track show @best:val/loss --json
    """
    found = one_run(root, run)
    if form == "json":
        print_json({**as_data(found), "run": found.info, "checkpoints": _checkpoints(found)})
        return
    if form is None:
        _print_facts(found)
    _print_metrics(found, form)


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
    from mlflow_track.record.info import read_info, read_status

    found = one_run(root, run)
    follower = _Follower(found.path, metrics)
    follower.print_end(lines)
    status = found.status
    while not no_follow:
        # The status first: what came before the end is then printed in any case.
        status = read_status(found.path, read_info(found.path))
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
        self._log, self._file, self._metrics = path / "training.log", path / "metrics.csv", metrics
        self._at = 0
        self._last: tuple[int, float] | None = None

    def print_end(self, lines: int) -> None:
        text = self._read_log()
        for line in text.splitlines()[-lines:] if lines > 0 else []:
            click.echo(line)
        self._print_newest_row()

    def print_new(self) -> None:
        click.echo(self._read_log(), nl=False)
        self._print_newest_row()

    def _read_log(self) -> str:
        try:
            with open(self._log, "rb") as file:
                file.seek(self._at)
                data = file.read()
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


def as_data(run: Summary) -> dict[str, Any]:
    """A run as programs want it."""
    return {
        "id": run.id,
        "name": run.name,
        "experiment": run.experiment,
        "status": run.status,
        "path": str(run.path.absolute()),
        "created": run.created,
        "ended": run.ended,
        "seconds": run.seconds,
        "rows": run.rows,
        "last_step": run.last_step,
        "steps_per_second": run.steps_per_second,
        "params": run.params,
        "tags": run.tags,
        "metrics": {
            name: {field: getattr(m, field) for field in m.__slots__}
            for name, m in run.metrics.items()
        },
        "problems": list(run.problems),
    }


def _print_facts(run: Summary) -> None:
    rate = f", {run.steps_per_second:.4g} steps/s" if run.steps_per_second else ""
    started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(run.created))
    click.secho(f"{run.experiment}/{run.name}", bold=True)
    facts = [
        ("id", run.id),
        ("status", run.status),
        ("started", started),
        ("duration", duration_text(run.seconds)),
        ("steps", f"{run.last_step + 1}{rate}"),
        ("folder", str(run.path)),
        *[("problem", problem) for problem in run.problems],
    ]
    _print_pairs("", facts)
    attempts = run.info["attempts"]
    if len(attempts) > 1 or any(attempt.get("error") for attempt in attempts):
        _print_pairs("attempts", [(str(a.get("attempt")), _attempt(a)) for a in attempts])
    _print_pairs("params", [(name, cell_text(value)) for name, value in run.params.items()])
    _print_pairs("tags", list(run.tags.items()))
    _print_pairs("provenance", _provenance(run))
    _print_pairs("checkpoints", [(str(c["step"]), c["text"]) for c in _checkpoints(run)])
    files = sorted(p for p in (run.path / "artifacts").rglob("*") if p.is_file())
    _print_pairs(
        "artifacts",
        [(str(p.relative_to(run.path / "artifacts")), f"{p.stat().st_size:,} B") for p in files],
    )


def _print_metrics(run: Summary, form: str | None) -> None:
    from mlflow_track.analysis.compare import best, has_best
    from mlflow_track.analysis.curves import Curve, read_all_curves
    from mlflow_track.draw.terminal import sparkline

    logged = {name: metric for name, metric in run.metrics.items() if metric.count}
    header = ["metric", "last", "best", "step of best", "min", "max", "count"]
    rows: list[list[Any]] = [
        [
            *(name, m.last),
            *(best(name, m) if has_best(name) else (None, None)),
            *(m.min, m.max, m.count),
        ]
        for name, m in logged.items()
    ]
    if form is None:
        if not rows:
            return
        click.echo()
        header.append("")
        curves, none = read_all_curves(run), Curve("", [], [])
        for row in rows:
            row.append(sparkline(curves.get(row[0], none).ys))
    print_rows(header, rows, form)


def _print_pairs(title: str, pairs: list[tuple[str, str]]) -> None:
    if not pairs:
        return
    if title:
        click.echo()
        click.secho(title, bold=True)
    width = max(len(name) for name, _ in pairs)
    for name, text in pairs:
        click.echo(f"  {name.ljust(width)}  {text}")


def _attempt(attempt: dict[str, Any]) -> str:
    started, ended = attempt.get("started"), attempt.get("ended")
    parts = [str(attempt.get("status", ""))]
    if isinstance(started, int | float):
        parts.append(time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(started)))
        if isinstance(ended, int | float):
            parts.append(duration_text(ended - started))
    parts += [str(attempt[key]) for key in ("host", "error") if attempt.get(key)]
    return "  ".join(parts)


def _provenance(run: Summary) -> list[tuple[str, str]]:
    provenance = run.info["provenance"]
    git = provenance.get("git") or {}
    attempt = (run.info["attempts"] or [{}])[-1]
    changed = " with uncommitted changes (code.patch)" if git.get("is_dirty") else ""
    facts = [
        ("command", shlex.join(map(str, attempt.get("command") or []))),
        ("commit", f"{git.get('commit', '')[:12]} of {git.get('branch')}{changed}" if git else ""),
        ("python", attempt.get("python")),
        ("torch", attempt.get("torch")),
        ("host", attempt.get("host")),
        ("platform", provenance.get("platform")),
        *[
            ("data", f"{i.get('name')} sha256 {str(i.get('sha256'))[:12]}")
            for i in run.info["inputs"]
            if isinstance(i, dict)
        ],
    ]
    return [(name, str(text)) for name, text in facts if text]


def _checkpoints(run: Summary) -> list[dict[str, Any]]:
    """What the manifests say; a folder without one is no checkpoint."""
    from mlflow_track.record.files import read_json

    found = []
    for manifest in sorted((run.path / "checkpoints").glob("step-*/manifest.json")):
        try:
            content = read_json(manifest)
            metrics = content.get("metrics") or {}
            text = "  ".join(f"{name} {cell_text(value)}" for name, value in metrics.items())
            found.append({"step": content["step"], "metrics": metrics, "text": text})
        except (OSError, ValueError, KeyError, AttributeError):
            found.append({"step": manifest.parent.name, "metrics": {}, "text": "damaged manifest"})
    return found
