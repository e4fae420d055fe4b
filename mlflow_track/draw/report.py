"""A comparison as one HTML file that needs nothing else: no script, no request, any screen."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from mlflow_track.analysis.compare import (
    Column,
    best,
    best_run,
    compare_columns,
    differing_params,
    judged,
    main_metric,
    metric_names,
    why_no_best,
)
from mlflow_track.analysis.groups import grouped, spread_text, statistics, verdict
from mlflow_track.analysis.importance import FEWEST_RUNS, param_importance
from mlflow_track.analysis.naming import labels
from mlflow_track.analysis.summary import Summary
from mlflow_track.draw.colors import GREY
from mlflow_track.draw.figure import Figure
from mlflow_track.draw.matplotlib_plot import as_svg
from mlflow_track.draw.media import media_as_html
from mlflow_track.draw.origin import artifacts_as_html, params_as_html, provenance_as_html
from mlflow_track.draw.page import Page, table
from mlflow_track.draw.params import importance_as_svg, parallel_as_svg
from mlflow_track.draw.picture import Drawn, Options, figure_of, read_series
from mlflow_track.record.files import legible
from mlflow_track.record.metric import Direction, Verdict
from mlflow_track.record.params import param_text
from mlflow_track.wording import count_text

# With many runs charts and tables are large.
_MOST_CHARTS, _MOST_CHARTS_OF_MANY, _MANY = 24, 8, 100
# The curves must not be below a screen of rows.
_MOST_ROWS, _ROWS_AT_ONCE = 200, 20
_PLAIN = Options()
_OF_MACHINE = ("utilization_percentage", "memory_usage_megabytes")
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
.chart { width: 100%; height: auto; max-width: 44rem; stroke-linejoin: round; }
.chart text { font-family: system-ui, sans-serif !important; }
.chart g:hover > path { stroke-width: 3 !important; }
.key { display: flex; flex-wrap: wrap; gap: .25rem 1rem; list-style: none; padding: 0; }
.scale { display: inline-block; width: 8rem; height: .8em; border-radius: 2px; }
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
    options: Options = _PLAIN,
    is_sorted: bool = False,
    now: float | None = None,
) -> str:
    """The HTML of a report.

    Args:
        runs: At least one.
        metrics: The metrics to show, the most important first; None shows all.
        directions: By metric "min" or "max": which value is the best, where the runs and its name
            do not tell, or tell otherwise.
        title: The title of the page; by default the names of the experiments.
        options: How the curves are drawn.
        is_sorted: Whether the table has the runs in the order given; else the best come first.
        now: Unix seconds of the making; None takes the clock.

    Raises:
        ValueError: There are no runs, or they have no such axis.
        UnknownGroup: No run has what they are to be grouped or coloured by.
    """
    if not runs:
        raise ValueError("a report needs at least one run")
    names = labels(runs)
    shown = list(metrics) if metrics is not None else metric_names(runs)
    main = shown[0] if metrics else main_metric(runs)
    if main in shown:
        shown.remove(main)
        shown.insert(0, main)
    known = directions or {}
    verdicts = {name: judged(name, runs, known.get(name)) for name in shown}
    most = _MOST_CHARTS if len(runs) <= _MANY else _MOST_CHARTS_OF_MANY
    drawn = read_series(runs, shown[:most], options, known)
    figure = figure_of(runs, drawn, options, known)
    order = list(range(len(runs))) if is_sorted else _best_first(runs, main, verdicts)
    page = Page(runs, names, order, _marks(runs, drawn, figure))
    title = title or ", ".join(dict.fromkeys(run.experiment for run in runs))
    made = time.strftime("%Y-%m-%d %H:%M", time.localtime(now))
    count = count_text(len(runs), "run")
    sections = [
        f"<h1>{escape(title)}</h1><p>{count}, made {made} by mlflow_track</p>",
        _winner(page, main, verdicts),
        _groups(runs, options.group_by, shown[:most], verdicts),
        _table(page, verdicts),
        _charts("Curves", figure, options, "c"),
        _importance(runs, main, verdicts),
        _machine(runs),
        params_as_html(runs),
        media_as_html(page),
        artifacts_as_html(page),
        provenance_as_html(page),
    ]
    return legible(
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        # Without its own icon a page asks the server for one.
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body>{''.join(sections)}</body></html>\n"
    )


def _marks(runs: Sequence[Summary], drawn: Drawn, figure: Figure) -> list[str]:
    """For each run a spot in the colour of its curve."""
    colors = {line.number: line.color for panel in figure.panels for line in panel.lines}
    series = {run: n for n, members in enumerate(drawn.members) for run in members}
    return [_spot(colors.get(series[run], GREY)) for run in range(len(runs))]


def _spot(color: str) -> str:
    return f'<span class="mark" style="background:{color}"></span>'


def _best_first(
    runs: Sequence[Summary], main: str | None, verdicts: Mapping[str, Verdict]
) -> list[int]:
    direction = verdicts[main].direction if main else None
    if main is None or direction is None:
        return list(range(len(runs)))
    reached = [best(run, main, direction) for run in runs]
    sign = -1 if direction == "max" else 1
    worst = float("inf")
    values = [worst if found is None else sign * found[0] for found in reached]
    return sorted(range(len(runs)), key=values.__getitem__)


def _winner(page: Page, metric: str | None, verdicts: Mapping[str, Verdict]) -> str:
    runs = page.runs
    if metric is None or len(runs) == 1:
        return ""
    direction = verdicts[metric].direction
    winner = best_run(runs, metric, direction)
    reached = best(runs[winner], metric, direction) if winner is not None else None
    if winner is None or reached is None:
        return ""
    run, (value, step) = runs[winner], reached
    differing = [name for name in differing_params(runs) if name in run.params]
    params = ", ".join(f"{name} {param_text(run.params[name])}" for name in differing[:8])
    word = "largest" if direction == "max" else "smallest"
    return (
        f"<p>Best (the {word}) {escape(metric)}: "
        f'<b class="best">{escape(page.names[winner])}</b>, '
        f"{value:.6g} at step {step}" + (f", with {escape(params)}" if params else "") + ".</p>"
    )


def _groups(
    runs: Sequence[Summary],
    by: str | None,
    metrics: Sequence[str],
    verdicts: Mapping[str, Verdict],
) -> str:
    """Mean and deviation of each group, and whether the best is more than noise."""
    if by is None:
        return ""
    groups = grouped(runs, by)
    found = {
        name: [
            (label, statistics([runs[n] for n in members], name, verdicts[name].direction))
            for label, members in groups
        ]
        for name in metrics
    }
    rows = [
        f"<tr><td>{escape(label)}</td><td>{len(members)}</td>"
        + "".join(f"<td>{escape(spread_text(found[name][at][1]))}</td>" for name in metrics)
        + "</tr>"
        for at, (label, members) in enumerate(groups)
    ]
    lines = "".join(
        f"<p>{escape(verdict(found[name], name, direction))}</p>"
        for name in metrics[:1]
        if (direction := verdicts[name].direction)
    )
    return f"<h2>Groups</h2>{table((by, 'runs', *metrics), rows)}{lines}"


def _table(page: Page, verdicts: Mapping[str, Verdict]) -> str:
    runs = page.runs
    known: dict[str, Direction] = {
        name: verdict.direction for name, verdict in verdicts.items() if verdict.direction
    }
    columns = [c for c in compare_columns(runs, list(verdicts), known) if _is_shown(c, runs, known)]
    winners = {name: best_run(runs, name, known[name]) for name in known}
    rows = []
    for number in page.order[:_MOST_ROWS]:
        cells = ""
        for column in columns:
            is_best = column.kind == "best" and winners[column.name] == number
            text = escape(_cell(column.values[number]))
            cells += f'<td class="best">{text}</td>' if is_best else f"<td>{text}</td>"
        rows.append(f"<tr><td>{page.label(number)}</td>{cells}</tr>")
    advice = "--min METRIC, --max METRIC or run.define_metric gives one"
    notes = "".join(f"<p>{escape(line)}</p>" for line in why_no_best(verdicts, advice))
    notes += page.limited(_MOST_ROWS)
    head = ["run", *(column.title for column in columns)]
    first, more = table(head, rows[:_ROWS_AT_ONCE]), ""
    if others := rows[_ROWS_AT_ONCE:]:
        count = count_text(len(others), "run")
        more = f"<details><summary>{count} more</summary>{table(head, others)}</details>"
    return f"<h2>Runs</h2>{first}{more}{notes}"


def _is_shown(column: Column, runs: Sequence[Summary], known: Mapping[str, Direction]) -> bool:
    if column.title == "experiment":
        return len({run.experiment for run in runs}) > 1
    if column.kind in ("best", "best step"):
        return column.name in known
    if column.title == "wall_seconds":
        return any(run.wall_seconds - run.seconds > 1 for run in runs)
    # The memory of the machine is that of all its processes.
    return column.title not in ("id", "name", "system.memory_megabytes_peak")


def _charts(title: str, figure: Figure, options: Options, name: str) -> str:
    if not any(panel.lines for panel in figure.panels):
        return ""
    bare = figure._replace(legend=[], scale=None, notes=[])
    charts = "".join(
        f"<div>{as_svg(bare._replace(panels=[panel]), f'{name}{n}')}</div>"
        for n, panel in enumerate(figure.panels)
        if panel.lines
    )
    key = "".join(f"<li>{_spot(entry.color)} {escape(entry.label)}</li>" for entry in figure.legend)
    scale = figure.scale
    if scale is not None:
        low, high = scale.ends
        gradient = f"linear-gradient(90deg,{','.join(scale.colors)})"
        key += (
            f"<li>{escape(scale.title)}: {escape(low)} "
            f'<span class="scale" style="background:{gradient}"></span> {escape(high)}</li>'
        )
    notes = [*figure.notes]
    if options.smooth:
        notes.append(f"moving average with weight {options.smooth:g}")
    text = "".join(f"<p>{escape(note)}</p>" for note in notes)
    return f'<h2>{title}</h2>{text}<ul class="key">{key}</ul><div class="charts">{charts}</div>'


def _machine(runs: Sequence[Summary]) -> str:
    """The use of the machine over time: of GPUs where there are some, else of the CPU."""
    known = list(dict.fromkeys(name for run in runs for name in run.system_metrics))
    names = [n for n in known if "/gpu_" in n and n.endswith(_OF_MACHINE)]
    names = names or [n for n in known if n.endswith("cpu_utilization_percentage")]
    if not names:
        return ""
    options = Options(axis="seconds", clip=1.0)
    figure = figure_of(runs, read_series(runs, names[:6], options), options)
    return _charts("Machine", figure._replace(legend=[]), options, "m")


def _importance(
    runs: Sequence[Summary], metric: str | None, verdicts: Mapping[str, Verdict]
) -> str:
    direction = verdicts[metric].direction if metric else None
    found = param_importance(runs, metric, direction) if metric else []
    if not found or metric is None:
        return ""
    return (
        f"<h2>Which params go with {escape(metric)}</h2><p>Absolute rank correlation (Spearman; "
        f"for words the correlation ratio of ranks) of each param with the "
        f"{'best' if direction else 'last'} {escape(metric)}, "
        f"over {found[0].runs} runs: one param at a time, and with few runs partly chance (from "
        f"{FEWEST_RUNS} runs on it is shown).</p>{importance_as_svg(found)}"
        f"{parallel_as_svg(runs, metric, direction)}"
    )


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    return "" if value is None else param_text(value)[:120]
