"""The parts of a report about where runs come from: params, artifacts, provenance."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from mlflow_track.analysis.compare import differing_params
from mlflow_track.analysis.differences import code_difference, package_difference
from mlflow_track.analysis.summary import Summary
from mlflow_track.draw.artifacts import pictures, texts
from mlflow_track.record.params import param_text
from mlflow_track.record.schema import Attempt, Git
from mlflow_track.wording import command_text, count_text

# Of more runs the page would be too large to send.
_MOST_RUNS = 20


def params_as_html(runs: Sequence[Summary]) -> str:
    """The params that are the same in all runs."""
    differing = set(differing_params(runs))
    common = {k: v for run in runs for k, v in run.params.items() if k not in differing}
    rows = "".join(
        f'<tr><td>{escape(name)}</td><td class="text">{escape(param_text(value))}</td></tr>'
        for name, value in sorted(common.items())
    )
    if not rows:
        return ""
    count = count_text(len(common), "param")
    return (
        f"<h2>Params</h2><details><summary>{count} with the same value in all runs</summary>"
        f"<table>{rows}</table></details>"
    )


def artifacts_as_html(
    runs: Sequence[Summary], names: Sequence[str], order: Sequence[int], marks: Sequence[str]
) -> str:
    """The pictures and texts of the first runs.

    Args:
        runs: The runs.
        names: A label for each.
        order: Their places, the most important first.
        marks: For each run its spot of colour, as HTML.
    """
    parts = []
    for number in order[:_MOST_RUNS]:
        run, name = runs[number], names[number]
        inside = [
            f'<h3>{escape(p.name)}</h3><img alt="{escape(p.name)}" src="{p.content}">'
            for p in pictures(run.path)
        ]
        inside += [
            f"<h3>{escape(t.name)}</h3><pre>{escape(t.content)}</pre>" for t in texts(run.path)
        ]
        if inside:
            parts.append(
                f"<details{' open' if len(runs) <= 3 else ''}><summary>{marks[number]} "
                f"{escape(name)}</summary>{''.join(inside)}</details>"
            )
    return f"<h2>Samples and pictures</h2>{''.join(parts)}" if parts else ""


def provenance_as_html(
    runs: Sequence[Summary], names: Sequence[str], order: Sequence[int], marks: Sequence[str]
) -> str:
    """The commit, command and machine of the first runs, and how their code differs."""
    header = ("run", "commit", "command", "machine", "versions", "data", "attempts")
    rows = []
    for number in order[:_MOST_RUNS]:
        run, name = runs[number], names[number]
        provenance, attempt = run.info.provenance, run.info.trained
        git = provenance.git or Git()
        changed = {True: " + uncommitted changes", None: " (uncommitted changes: unknown)"}
        cells = (
            f"{git.commit[:12]}{changed.get(git.is_dirty, '')}" if git.commit else "",
            command_text(run.info.command),
            f"{attempt.host or ''} {provenance.platform or ''}",
            f"Python {attempt.python or '?'}, torch {attempt.torch or '?'}",
            ", ".join(f"{item.name} {item.sha256[:12]}" for item in run.info.inputs),
            "; ".join(_attempt(a) for a in run.info.attempts),
        )
        texts = "".join(f'<td class="text">{escape(cell)}</td>' for cell in cells)
        rows.append(f"<tr><td>{marks[number]} {escape(name)}</td>{texts}</tr>")
    differences = []
    first, *others = order[:_MOST_RUNS]
    for number in others:
        old, new = runs[first], runs[number]
        lines = code_difference(old, new, is_full=False) + package_difference(old, new)
        if lines:
            text = escape("\n".join(lines[:200]))
            title = f"{escape(names[first])} and {escape(names[number])}"
            differences.append(f"<h3>{title}</h3><pre>{text}</pre>")
    left = len(order) - _MOST_RUNS
    more = f"<p>The first {_MOST_RUNS} of {len(order):,} runs.</p>" if left > 0 else ""
    head = "".join(f"<th>{name}</th>" for name in header)
    return (
        f'<h2>Provenance</h2><div class="wide"><table><tr>{head}</tr>{"".join(rows)}</table></div>'
        + more
        + "".join(differences)
    )


def _attempt(attempt: Attempt) -> str:
    return " ".join(filter(None, (attempt.status, attempt.error)))
