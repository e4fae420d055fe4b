"""A comparison as one HTML file that needs nothing else: no script, no request, any screen."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from mlflow_track.analysis.compare import (
    best,
    best_run,
    compare_rows,
    differing_params,
    judged,
    main_metric,
    metric_names,
    why_no_best,
)
from mlflow_track.analysis.curves import Axis, labels, read_curve, smoothed
from mlflow_track.analysis.differences import code_difference, package_difference
from mlflow_track.analysis.importance import FEWEST_RUNS, param_importance
from mlflow_track.analysis.summary import Summary
from mlflow_track.draw.artifacts import pictures, texts
from mlflow_track.draw.svg import bars, color, line_chart
from mlflow_track.record.files import legible
from mlflow_track.record.metric import Direction, Verdict
from mlflow_track.record.params import param_text
from mlflow_track.record.schema import Attempt, Git
from mlflow_track.wording import count_text

_MOST_CHARTS = 24
_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --page: #fff; --ink: #1c2024;
  --best: #0a7d4f; }
@media (prefers-color-scheme: dark) { :root { --page: #15181c; --ink: #e6e8ea; --best: #4cc38a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1rem 0 .25rem; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .88rem; }
th, td { padding: .25rem .6rem; text-align: left; border-bottom: 1px solid var(--soft);
  white-space: nowrap; }
td.text { white-space: normal; overflow-wrap: anywhere; }
.best { color: var(--best); font-weight: 700; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr));
  gap: 1rem; }
.chart { width: 100%; height: auto; font: 12px system-ui, sans-serif; }
.chart polyline:hover { stroke-width: 4; }
.key { display: flex; flex-wrap: wrap; gap: .25rem 1rem; list-style: none; padding: 0; }
.key span, .mark { display: inline-block; width: .8em; height: .8em; border-radius: 2px; }
img { max-width: 100%; height: auto; background: #fff; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--soft); padding: .6rem;
  border-radius: 4px; font-size: .82rem; max-height: 24rem; overflow-y: auto; }
summary { cursor: pointer; }
"""
# Nothing in a run can make the browser fetch anything.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def render_report(
    runs: Sequence[Summary],
    *,
    metrics: Sequence[str] | None = None,
    directions: Mapping[str, Direction] | None = None,
    title: str = "",
    axis: Axis = "step",
    smooth: float = 0.0,
    now: float | None = None,
) -> str:
    """The HTML of a report.

    Args:
        runs: At least one.
        metrics: The metrics to show, the most important first; None shows all.
        directions: By metric "min" or "max": which value is the best, where the runs and its name
            do not tell, or tell otherwise.
        title: The title of the page; by default the names of the experiments.
        axis: The horizontal axis of the curves.
        smooth: Weight of the past in their moving average.
        now: Unix seconds of the making; None takes the clock.

    Raises:
        ValueError: There are no runs, or they have no such axis.
    """
    if not runs:
        raise ValueError("a report needs at least one run")
    names = labels(runs)
    shown = list(metrics) if metrics is not None else metric_names(runs)
    main = shown[0] if metrics else main_metric(runs)
    if main in shown:
        shown.remove(main)
        shown.insert(0, main)
    verdicts = {name: judged(name, runs, (directions or {}).get(name)) for name in shown}
    title = title or ", ".join(dict.fromkeys(run.experiment for run in runs))
    made = time.strftime("%Y-%m-%d %H:%M", time.localtime(now))
    count = count_text(len(runs), "run")
    sections = [
        f"<h1>{escape(title)}</h1><p>{count}, made {made} by mlflow_track</p>",
        _winner(runs, names, main, verdicts),
        _table(runs, names, main, verdicts),
        _charts(runs, names, shown[:_MOST_CHARTS], axis, smooth),
        _importance(runs, main, verdicts),
        _params(runs),
        _artifacts(runs, names),
        _provenance(runs, names),
    ]
    return legible(
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        # Without its own icon a page asks the server for one.
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body>{''.join(sections)}</body></html>\n"
    )


def _winner(
    runs: Sequence[Summary],
    names: Sequence[str],
    metric: str | None,
    verdicts: Mapping[str, Verdict],
) -> str:
    if metric is None or len(runs) == 1:
        return ""
    direction = verdicts[metric].direction
    winner = best_run(runs, metric, direction)
    reached = best(runs[winner], metric, direction) if winner is not None else None
    if winner is None or reached is None:
        return ""
    run, (value, step) = runs[winner], reached
    params = ", ".join(f"{n} {param_text(run.params.get(n))}" for n in differing_params(runs)[:8])
    word = "largest" if direction == "max" else "smallest"
    return (
        f'<p>Best (the {word}) {escape(metric)}: <b class="best">{escape(names[winner])}</b>, '
        f"{value:.6g} at step {step}" + (f", with {escape(params)}" if params else "") + ".</p>"
    )


def _table(
    runs: Sequence[Summary],
    names: Sequence[str],
    main: str | None,
    verdicts: Mapping[str, Verdict],
) -> str:
    known: dict[str, Direction] = {
        name: verdict.direction for name, verdict in verdicts.items() if verdict.direction
    }
    rows = compare_rows(runs, list(verdicts), known)
    hidden = {f"{n} {word}" for n in verdicts.keys() - known for word in ("best", "best step")}
    columns = [name for name in rows[0] if name != "name" and name not in hidden]
    if len({run.experiment for run in runs}) == 1:
        columns.remove("experiment")
    winners = {f"{name} best": best_run(runs, name, known[name]) for name in known}
    order = list(range(len(runs)))
    if main in known:
        sign = -1 if known[main] == "max" else 1
        key = f"{main} best"
        order.sort(key=lambda n: sign * rows[n][key] if _is_number(rows[n][key]) else float("inf"))
    body = []
    for number in order:
        cells = "".join(
            f"<td{_best_class(winners.get(name) == number)}>{escape(_cell(value))}</td>"
            for name, value in rows[number].items()
            if name in columns
        )
        body.append(f"<tr><td>{_mark(number)} {escape(names[number])}</td>{cells}</tr>")
    header = "".join(f"<th>{escape(name)}</th>" for name in columns)
    advice = "--min METRIC, --max METRIC or run.define_metric gives one"
    notes = "".join(f"<p>{escape(line)}</p>" for line in why_no_best(verdicts, advice))
    return (
        '<h2>Runs</h2><div class="wide"><table>'
        f"<tr><th>run</th>{header}</tr>{''.join(body)}</table></div>{notes}"
    )


def _charts(
    runs: Sequence[Summary], names: Sequence[str], metrics: Sequence[str], axis: Axis, smooth: float
) -> str:
    charts = []
    label = {"step": "step", "time": "seconds", "tokens": "tokens"}[axis]
    for metric in metrics:
        curves = [
            smoothed(read_curve(run, metric, axis, name), smooth)
            for run, name in zip(runs, names, strict=True)
        ]
        charts.append(f"<div><h3>{escape(metric)}</h3>{line_chart(curves, x_label=label)}</div>")
    key = "".join(f"<li>{_mark(n)} {escape(name)}</li>" for n, name in enumerate(names))
    note = f"<p>Moving average with weight {smooth:g}.</p>" if smooth else ""
    panels = f'<div class="charts">{"".join(charts)}</div>'
    return f'<h2>Curves</h2>{note}<ul class="key">{key}</ul>{panels}'


def _importance(
    runs: Sequence[Summary], metric: str | None, verdicts: Mapping[str, Verdict]
) -> str:
    direction = verdicts[metric].direction if metric else None
    found = param_importance(runs, metric, direction) if metric else []
    if not found or metric is None:
        return ""
    signs = {1: "more of it, larger", -1: "more of it, smaller", 0: "words"}
    chart = bars(
        [f"{i.param} ({signs[i.sign]})" for i in found[:12]], [i.value for i in found[:12]]
    )
    return (
        f"<h2>Which params go with {escape(metric)}</h2><p>Absolute rank correlation (Spearman; "
        f"for words the correlation ratio of ranks) of each param with the "
        f"{'best' if direction else 'last'} {escape(metric)}, "
        f"over {found[0].runs} runs: one param at a time, and with few runs partly chance (from "
        f"{FEWEST_RUNS} runs on it is shown).</p>{chart}"
    )


def _params(runs: Sequence[Summary]) -> str:
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


def _artifacts(runs: Sequence[Summary], names: Sequence[str]) -> str:
    parts = []
    for number, (run, name) in enumerate(zip(runs, names, strict=True)):
        inside = [
            f'<h3>{escape(p.name)}</h3><img alt="{escape(p.name)}" src="{p.content}">'
            for p in pictures(run.path)
        ]
        inside += [
            f"<h3>{escape(t.name)}</h3><pre>{escape(t.content)}</pre>" for t in texts(run.path)
        ]
        if inside:
            parts.append(
                f"<details{' open' if len(runs) <= 3 else ''}><summary>{_mark(number)} "
                f"{escape(name)}</summary>{''.join(inside)}</details>"
            )
    return f"<h2>Samples and pictures</h2>{''.join(parts)}" if parts else ""


def _provenance(runs: Sequence[Summary], names: Sequence[str]) -> str:
    header = ("run", "commit", "command", "machine", "versions", "data", "attempts")
    rows = []
    for number, (run, name) in enumerate(zip(runs, names, strict=True)):
        provenance, attempt = run.info.provenance, run.info.trained
        git = provenance.git or Git()
        changed = {True: " + uncommitted changes", None: " (uncommitted changes: unknown)"}
        cells = (
            f"{git.commit[:12]}{changed.get(git.is_dirty, '')}" if git.commit else "",
            shlex.join(run.info.command),
            f"{attempt.host or ''} {provenance.platform or ''}",
            f"Python {attempt.python or '?'}, torch {attempt.torch or '?'}",
            ", ".join(f"{item.name} {item.sha256[:12]}" for item in run.info.inputs),
            "; ".join(_attempt(a) for a in run.info.attempts),
        )
        texts = "".join(f'<td class="text">{escape(cell)}</td>' for cell in cells)
        rows.append(f"<tr><td>{_mark(number)} {escape(name)}</td>{texts}</tr>")
    differences = []
    for run, name in zip(runs[1:], names[1:], strict=True):
        lines = code_difference(runs[0], run, is_full=False) + package_difference(runs[0], run)
        if lines:
            text = escape("\n".join(lines[:200]))
            differences.append(f"<h3>{escape(names[0])} and {escape(name)}</h3><pre>{text}</pre>")
    head = "".join(f"<th>{name}</th>" for name in header)
    return (
        f'<h2>Provenance</h2><div class="wide"><table><tr>{head}</tr>{"".join(rows)}</table></div>'
        + "".join(differences)
    )


def _attempt(attempt: Attempt) -> str:
    return " ".join(filter(None, (attempt.status, attempt.error)))


def _mark(number: int) -> str:
    return f'<span class="mark" style="background:{color(number)}"></span>'


def _best_class(is_best: bool) -> str:
    return ' class="best"' if is_best else ""


def _is_number(value: Any) -> bool:
    return isinstance(value, float) and value == value


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    return "" if value is None else param_text(value)[:120]
