"""Prints the results of commands: text for people, JSON and CSV for programs.

Everything printed for people goes through `echo`, which escapes control characters.
"""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mlflow_track.cli.tables import markup, plain_lines, print_styled
from mlflow_track.record.files import legible
from mlflow_track.wording import UNSAFE, escaped

if TYPE_CHECKING:
    from mlflow_track.analysis.aggregates import MetricSummary
    from mlflow_track.analysis.summary import Summary

_F = TypeVar("_F", bound=Callable[..., Any])
_JSON_HELP = "Print one JSON document (docs/schemas)."


def output_options(command: _F) -> _F:
    """`--json` and `--csv`, for programs; `--format`, where a command has it, is the same."""
    command = click.option("--csv", "form", flag_value="csv", help="Print CSV.")(command)
    return click.option("--json", "form", flag_value="json", help=_JSON_HELP)(command)


def json_option(command: _F) -> _F:
    return click.option("--json", "as_json", is_flag=True, help=_JSON_HELP)(command)


def echo(text: object = "", *, nl: bool = True, err: bool = False, bold: bool = False) -> None:
    """Print text for people.

    Args:
        nl: Whether a new line follows.
        err: Print to stderr, for people, while a program reads stdout.
        bold: Whether it stands out.
    """
    shown = escaped(str(text))
    click.echo(click.style(shown, bold=True) if bold else shown, nl=nl, err=err)


def echo_skipped(skipped: Iterable[tuple[Path, str]]) -> None:
    """Name the folders that could not be read, with the reason."""
    for path, reason in skipped:
        echo(f"skipped {path}: {reason}", err=True)


def print_rows(
    header: Sequence[str],
    rows: Sequence[Sequence[Any]],
    form: str | None = None,
    *,
    data: Any = None,
    marked: Callable[[int, int], bool] = lambda row, column: False,
    spare: Sequence[str] = (),
) -> None:
    """Print rows in the requested form.

    On a terminal nothing is wider than it: text is shortened, then the columns that can be spared
    are left out and named, then the table is printed in pieces below one another. Numbers, dates
    and durations are never cut.

    Args:
        header: Names of the columns.
        rows: Their values; None prints as nothing.
        form: "json", "csv", "md", "latex", or None for people: a table with colours on a terminal,
            plain text otherwise.
        data: The content of the JSON instead of the rows.
        marked: Whether a cell (row, column) is the best of its kind.
        spare: Titles of columns that a narrow terminal may leave out, the first of them first.
    """
    if form == "json":
        print_json(data if data is not None else [dict(zip(header, r, strict=True)) for r in rows])
    elif form in ("md", "latex"):
        echo(markup(header, [[cell_text(cell) for cell in row] for row in rows], form, marked))
    elif form == "csv":
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([["" if cell is None else cell for cell in row] for row in rows])
        click.echo(legible(buffer.getvalue()), nl=False)
    else:
        titles = [cell_text(name) for name in header]
        texts = [[cell_text(cell) for cell in row] for row in rows]
        is_number = [
            all(isinstance(row[n], int | float | None) for row in rows) for n in range(len(header))
        ]
        if is_terminal():
            left_out = print_styled(titles, texts, is_number, marked, spare)
            if left_out:
                text = f"columns that do not fit: {', '.join(left_out)}; use a wider terminal, "
                width = shutil.get_terminal_size().columns
                for line in textwrap.wrap(f"{text}--csv or --json", width):
                    echo(line, err=True)
        else:
            for line in plain_lines(titles, texts, marked):
                echo(line)


def print_json(document: Any, *, is_line: bool = False) -> None:
    """Print one JSON document; see `number_as_json` for what JSON has no number for.

    Args:
        document: The document, of plain values.
        is_line: Whether it must be on one line, as one of several.
    """
    text = json_text(document, is_line=is_line)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(json.loads(text), indent=None if is_line else 2)
    click.echo(text)


def json_text(document: Any, *, is_line: bool = False) -> str:
    """The text that `print_json` prints."""
    text = json.dumps(_encodable(document), indent=None if is_line else 2, ensure_ascii=False)
    # Only strings can hold such characters, and there this is the same character.
    return UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def number_as_json(value: float) -> float | str:
    """A number, or the words NaN, Infinity and -Infinity, for which JSON has no number.

    null means that there is no value: it was never logged.
    """
    if math.isnan(value):
        return "NaN"
    return value if math.isfinite(value) else "Infinity" if value > 0 else "-Infinity"


def is_terminal() -> bool:
    return sys.stdout.isatty()


def cell_text(value: Any) -> str:
    """A value as a person reads it in a table."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | dict):
        return json.dumps(value)
    return " ".join(escaped(str(value)).split())


def time_text(seconds: float) -> str:
    """Unix seconds as a date and a time of this time zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def duration_text(seconds: float) -> str:
    """90 seconds are 1 min 30 s."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _encodable(content: Any) -> Any:
    if isinstance(content, float):
        return number_as_json(content)
    if isinstance(content, Mapping):
        return {str(key): _encodable(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_encodable(item) for item in content]
    return content


def _metric_as_data(metric: MetricSummary) -> dict[str, Any]:
    found: dict[str, Any] = {
        name: getattr(metric, name) if metric.count or name in ("count", "finite") else None
        for name in metric.__slots__
    }
    if metric.nonfinite_step < 0:
        found["nonfinite_step"] = None
    if not metric.finite:
        found["mean"] = None
    return found


def as_data(run: Summary) -> dict[str, Any]:
    """A run as programs want it."""
    from mlflow_track.analysis.machine import usage

    return {
        "id": run.id,
        "name": run.name,
        "experiment": run.experiment,
        "status": run.status,
        "path": str(run.path.absolute()),
        "created": run.created,
        "ended": run.ended,
        "seconds": run.seconds,
        "wall_seconds": run.wall_seconds,
        "rows": run.rows,
        "last_step": run.last_step if run.last_step >= 0 else None,
        "steps_per_second": run.steps_per_second,
        "params": run.params,
        "tags": run.tags,
        "metrics": {name: _metric_as_data(metric) for name, metric in run.metrics.items()},
        "summary": run.summary_values,
        "machine": usage(run)._asdict(),
        "problems": list(run.problems),
    }
