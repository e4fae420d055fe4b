"""`mlflow-track show`: one run, all of it. `mlflow-track tail`: what it does now."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlflow_track.cli.output import (
    as_data,
    cell_text,
    duration_text,
    output_options,
    print_json,
    print_rows,
)
from mlflow_track.cli.select import directory_option, one_run, run_or_last_argument
from mlflow_track.record import layout

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
    root = run.path / layout.ARTIFACTS
    files = sorted(p for p in root.rglob("*") if p.is_file())
    _print_pairs(
        "artifacts",
        [(str(p.relative_to(root)), f"{p.stat().st_size:,} B") for p in files],
    )


def _print_metrics(run: Summary, form: str | None) -> None:
    from mlflow_track.analysis.compare import best, judged, why_no_best
    from mlflow_track.analysis.curves import Curve, read_all_curves
    from mlflow_track.draw.terminal import sparkline

    logged = {name: metric for name, metric in run.metrics.items() if metric.count}
    verdicts = {name: judged(name, [run]) for name in logged}
    header = ["metric", "last", "best", "step of best", "min", "max", "count"]
    rows: list[list[Any]] = [
        [
            *(name, m.last),
            *(best(run, name, verdicts[name].direction) or (None, None)),
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
    if form is None:
        for line in why_no_best(verdicts, "run.define_metric gives one"):
            click.echo(line)


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
    for manifest in sorted((run.path / layout.CHECKPOINTS).glob(f"step-*/{layout.MANIFEST}")):
        try:
            content = read_json(manifest)
            metrics = content.get("metrics") or {}
            text = "  ".join(f"{name} {cell_text(value)}" for name, value in metrics.items())
            found.append({"step": content["step"], "metrics": metrics, "text": text})
        except (OSError, ValueError, KeyError, AttributeError):
            found.append({"step": manifest.parent.name, "metrics": {}, "text": "damaged manifest"})
    return found
