"""`mlflow-track show`: one run, all of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlflow_track.cli.checkpoint.rows import checkpoint_rows, metrics_text
from mlflow_track.cli.output import (
    as_data,
    cell_text,
    duration_text,
    echo,
    output_options,
    print_json,
    print_rows,
    time_text,
)
from mlflow_track.cli.select import one_run, run_or_last_argument
from mlflow_track.record import layout
from mlflow_track.record.files import files_below
from mlflow_track.record.info import read_plain
from mlflow_track.record.media.index import listed_files, read_media
from mlflow_track.record.schema import Attempt, Git, RunInfo
from mlflow_track.wording import command_text, count_text

if TYPE_CHECKING:
    from mlflow_track.analysis.summary import Summary


@click.command()
@run_or_last_argument
@output_options
def show(run: str, root: Path, form: str | None) -> None:
    """Show one RUN: status, attempts, params, tags, provenance, metrics, checkpoints, artifacts.

    A run is named by its id or the beginning of it, its name, its path, experiment/name, @last,
    or @best:METRIC; the default is the newest. --csv prints the summary of its metrics.

    \b
    Examples:
      mlflow-track show
      mlflow-track show @best:val/loss --json
    """
    found = one_run(root, run)
    if form == "json":
        print_json(
            {**as_data(found), "run": read_plain(found.path), "checkpoints": _checkpoints(found)}
        )
        return
    if form is None:
        _print_facts(found)
    _print_metrics(found, form)


def _print_facts(run: Summary) -> None:
    from mlflow_track.analysis.machine import usage, usage_text
    from mlflow_track.wording import size_text

    rate = f", {run.steps_per_second:.4g} steps/s" if run.steps_per_second else ""
    echo(cell_text(f"{run.experiment}/{run.name}"), bold=True)
    facts = [
        ("id", run.id),
        ("status", run.status),
        ("started", time_text(run.created)),
        ("duration", _duration(run)),
        ("steps", f"{run.last_step + 1}{rate}"),
        ("size", _size(run)),
        *([("machine", used)] if (used := usage_text(usage(run))) else []),
        ("folder", str(run.path)),
        *[("problem", problem) for problem in run.problems],
    ]
    _print_pairs("", facts)
    attempts = run.info.attempts
    if len(attempts) > 1 or any(attempt.error for attempt in attempts):
        _print_pairs("attempts", [(str(a.attempt), _attempt(a, run.info)) for a in attempts])
    _print_pairs("params", [(name, cell_text(value)) for name, value in run.params.items()])
    values = run.summary_values.items()
    _print_pairs("summary", [(name, cell_text(value)) for name, value in values])
    _print_pairs("tags", list(run.tags.items()))
    _print_pairs("provenance", _provenance(run))
    _print_pairs("checkpoints", [(str(c["step"]), _checkpoint(c)) for c in _checkpoints(run)])
    root = run.path / layout.ARTIFACTS
    listed = listed_files(run.path)
    files = [(p.relative_to(root).as_posix(), p) for p in files_below(root)]
    _print_pairs(
        "artifacts",
        [(name, size_text(p.lstat().st_size)) for name, p in files if name not in listed],
    )
    _print_pairs("over steps", _media(run))


def _media(run: Summary) -> list[tuple[str, str]]:
    """The images, texts and histograms of steps: for each name what there is."""
    try:
        entries = read_media(run.path)
    except OSError as error:
        return [("problem", str(error))]
    steps: dict[tuple[str, str], list[int]] = {}
    for entry in entries:
        steps.setdefault((entry.key, entry.kind), []).append(entry.step)
    return [
        (key, f"{count_text(len(of), kind)}, step {min(of)} to {max(of)}")
        for (key, kind), of in steps.items()
    ]


def _duration(run: Summary) -> str:
    pause = run.wall_seconds - run.seconds
    if pause <= 1:
        return duration_text(run.seconds)
    return f"{duration_text(run.seconds)}, and {duration_text(pause)} of pauses"


def _size(run: Summary) -> str:
    from mlflow_track.analysis.sizes import sizes
    from mlflow_track.wording import size_text

    found = sizes(run.path)
    parts = [f"{size_text(size)} {name}" for name, size in found._asdict().items() if size]
    return f"{size_text(found.total)} ({', '.join(parts)})"


def _print_metrics(run: Summary, form: str | None) -> None:
    from mlflow_track.analysis.compare import best, judged, why_no_best
    from mlflow_track.analysis.curves import Curve, read_all_curves
    from mlflow_track.draw.terminal import sparkline

    logged = {name: metric for name, metric in run.metrics.items() if metric.count}
    verdicts = {name: judged(name, [run]) for name in logged}
    header = ["metric", "last", "best", "step of best", "min", "max", "mean", "count"]
    has_odd = any(m.nonfinite_step >= 0 for m in logged.values())
    if has_odd:
        header.append("not finite at")
    rows: list[list[Any]] = [
        [
            *(name, m.last),
            *(best(run, name, verdicts[name].direction) or (None, None)),
            *(m.min, m.max, m.mean if m.finite else None, m.count),
            *([m.nonfinite_step if m.nonfinite_step >= 0 else None] if has_odd else []),
        ]
        for name, m in logged.items()
    ]
    if form is None:
        if not rows:
            return
        echo()
        header.append("")
        curves, none = read_all_curves(run), Curve("", [], [])
        for row in rows:
            row.append(sparkline(curves.get(row[0], none).ys))
    print_rows(header, rows, form, spare=("", "min", "max", "mean"))
    if form is None:
        for line in why_no_best(verdicts, "run.define_metric gives one"):
            echo(line)


def _print_pairs(title: str, pairs: list[tuple[str, str]]) -> None:
    if not pairs:
        return
    if title:
        echo()
        echo(title, bold=True)
    cells = [(cell_text(name), " ".join(text.splitlines())) for name, text in pairs]
    width = max(len(name) for name, _ in cells)
    for name, text in cells:
        echo(f"  {name.ljust(width)}  {text}")


def _attempt(attempt: Attempt, info: RunInfo) -> str:
    parts = [attempt.status]
    if attempt.started is not None:
        parts.append(time_text(attempt.started))
        if attempt.ended is not None:
            parts.append(duration_text(attempt.ended - attempt.started))
    command = attempt.command if attempt.command != info.command else None
    parts += filter(None, (attempt.host, command_text(command), attempt.error))
    return "  ".join(parts)


def _provenance(run: Summary) -> list[tuple[str, str]]:
    provenance, attempt = run.info.provenance, run.info.trained
    git = provenance.git or Git()
    changed = {True: f"yes ({layout.PATCH})", None: f"unknown {git.unknown}".strip()}
    facts = [
        ("command", command_text(run.info.command)),
        ("commit", f"{git.commit[:12]} of {git.branch}" if git.commit else ""),
        ("uncommitted changes", changed.get(git.is_dirty, "") if git.commit else ""),
        *[("not in the patch", f"{path}: {why}") for path, why in git.left_out.items()],
        ("not in git", ", ".join(git.untracked)),
        *[("unknown", f"{name}: {why}") for name, why in provenance.missing.items()],
        ("python", attempt.python),
        ("torch", attempt.torch),
        ("host", attempt.host),
        ("platform", provenance.platform),
        *[("data", f"{item.name} sha256 {item.sha256[:12]}") for item in run.info.inputs],
    ]
    return [(name, str(text)) for name, text in facts if text]


def _checkpoints(run: Summary) -> list[dict[str, Any]]:
    from mlflow_track.checkpoint.disk.store import CheckpointStore

    return checkpoint_rows(CheckpointStore(run.path / layout.CHECKPOINTS))


def _checkpoint(row: dict[str, Any]) -> str:
    if row["problem"] is not None:
        return f"damaged: {row['problem']}"
    return metrics_text(row) + "  (best)" * row["is_best"]
