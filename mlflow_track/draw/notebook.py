"""Shows a run or a comparison in a notebook: an HTML table and a small plot."""

from __future__ import annotations

import time
from collections.abc import Sequence
from html import escape

from mlflow_track.analysis.compare import best, compare_rows, judged, main_metric, why_no_best
from mlflow_track.analysis.curves import Curve, read_all_curves
from mlflow_track.analysis.summary import Summary
from mlflow_track.draw.colors import GREY
from mlflow_track.draw.matplotlib_plot import as_svg
from mlflow_track.draw.picture import Options, figure_of, read_series
from mlflow_track.draw.terminal import sparkline
from mlflow_track.record.params import param_text
from mlflow_track.wording import count_text

_MOST_ROWS = 30
_ADVICE = "run.define_metric gives one"


def run_as_html(run: Summary) -> str:
    """One run: its heading, its params, and each metric with a small curve."""
    started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(run.created))
    curves, none = read_all_curves(run), Curve("", [], [])
    logged = [name for name, found in run.metrics.items() if found.count][:_MOST_ROWS]
    verdicts = {name: judged(name, [run]) for name in logged}
    metrics = "".join(
        f"<tr><td>{escape(name)}</td><td>{run.metrics[name].last:.6g}</td>"
        f"<td>{_best(best(run, name, verdict.direction))}</td>"
        f"<td>{escape(sparkline(curves.get(name, none).ys))}</td></tr>"
        for name, verdict in verdicts.items()
    )
    params = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(param_text(value)[:200])}</td></tr>"
        for name, value in list(run.params.items())[:_MOST_ROWS]
    )
    return (
        f"<div><p><b>{escape(run.experiment)}/{escape(run.name)}</b> {run.status}, started "
        f"{started}, {run.seconds:.0f} s, "
        f"{count_text(run.last_step + 1, 'step')}<br>"
        f"<code>{escape(str(run.path))}</code></p>"
        "<table><tr><th>metric</th><th>last</th><th>best</th><th></th></tr>"
        f"{metrics}</table>{_notes(why_no_best(verdicts, _ADVICE))}"
        f"<details><summary>{count_text(len(run.params), 'param')}</summary>"
        f"<table>{params}</table></details>"
        "</div>"
    )


def comparison_as_html(runs: Sequence[Summary]) -> str:
    """Runs as a table of what differs, with the curves of the metric that a person looks at."""
    if not runs:
        return "<p>no runs</p>"
    shown = list(runs)[-_MOST_ROWS:]
    metric = main_metric(shown)
    rows = compare_rows(shown, [metric] if metric else [])
    verdicts = {metric: judged(metric, shown)} if metric else {}
    header = "".join(f"<th>{escape(name)}</th>" for name in rows[0])
    colors: dict[int, str] = {}
    chart = ""
    if metric:
        options = Options()
        figure = figure_of(shown, read_series(shown, [metric], options), options)
        colors = {line.number: line.color for line in figure.panels[0].lines}
        chart = f'<div style="max-width:640px">{as_svg(figure, "chart")}</div>'
    body = "".join(
        f'<tr><td style="color:{colors.get(number, GREY)}">■</td>'
        + "".join(f"<td>{escape(_cell(value))}</td>" for value in row.values())
        + "</tr>"
        for number, row in enumerate(rows)
    )
    more = f"<p>the newest {len(shown)} of {len(runs)} runs</p>" if len(shown) < len(runs) else ""
    notes = _notes(why_no_best(verdicts, _ADVICE))
    return f"<div>{more}<table><tr><th></th>{header}</tr>{body}</table>{notes}{chart}</div>"


def _best(reached: tuple[float, int] | None) -> str:
    return "" if reached is None else f"{reached[0]:.6g} at {reached[1]}"


def _notes(lines: Sequence[str]) -> str:
    return "".join(f"<p>{escape(line)}</p>" for line in lines)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else param_text(value)
