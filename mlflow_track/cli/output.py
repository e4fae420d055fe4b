"""How the commands print: text for people, JSON and CSV for programs.

Everything printed for people goes through `echo`: what a terminal would obey is shown escaped.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mlflow_track.record.files import legible

if TYPE_CHECKING:
    from mlflow_track.analysis.summary import Summary

_F = TypeVar("_F", bound=Callable[..., Any])
_STATUS_STYLES = {"RUNNING": "green", "FAILED": "red", "KILLED": "yellow"}
_JSON_HELP = "Print one JSON document (docs/schemas)."
# Control characters but tab and newline, changes of the direction of writing, separators of lines,
# and half characters, which no encoding has.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def output_options(command: _F) -> _F:
    """`--json` and `--csv`, for programs."""
    command = click.option("--csv", "form", flag_value="csv", help="Print CSV.")(command)
    return click.option("--json", "form", flag_value="json", help=_JSON_HELP)(command)


def json_option(command: _F) -> _F:
    """`--json` alone."""
    return click.option("--json", "as_json", is_flag=True, help=_JSON_HELP)(command)


def escaped(text: str) -> str:
    r"""The text with what a terminal would obey, rather than show, as escapes like `\x1b`."""
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def echo(text: object = "", *, nl: bool = True, err: bool = False, bold: bool = False) -> None:
    """Print text for people.

    Args:
        text: What to print.
        nl: Whether a new line follows.
        err: Print to stderr, where words for people belong while a program reads stdout.
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
) -> None:
    """Print rows in the form that was asked for.

    Args:
        header: Names of the columns.
        rows: Their values; None prints as nothing.
        form: "json", "csv", or None for people: a table with colours on a terminal, plain text
            otherwise.
        data: What JSON prints instead of the rows.
        marked: Whether a cell (row, column) is the best of its kind.
    """
    if form == "json":
        print_json(data if data is not None else [dict(zip(header, r, strict=True)) for r in rows])
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
            _print_rich(titles, texts, is_number, marked)
        else:
            texts = [
                [cell + " *" * marked(r, c) for c, cell in enumerate(row)]
                for r, row in enumerate(texts)
            ]
            _print_table(titles, texts)


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print `header` and `rows` as plain text, each column as wide as its longest cell."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        echo("  ".join(cells).rstrip())


def print_json(document: Any, *, is_line: bool = False) -> None:
    """Print one JSON document; see `number_as_json` for what JSON has no number for.

    Args:
        document: The document, of plain values.
        is_line: Whether it must be on one line, as one of several.
    """
    click.echo(json_text(document, is_line=is_line))


def json_text(document: Any, *, is_line: bool = False) -> str:
    """The text that `print_json` prints."""
    text = json.dumps(_encodable(document), indent=None if is_line else 2, ensure_ascii=False)
    # Only strings can hold such characters, and there this is the same character.
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


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


def _print_rich(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    is_number: Sequence[bool],
    marked: Callable[[int, int], bool],
) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, (name, right) in enumerate(zip(header, is_number, strict=True)):
        table.add_column(
            Text(name),
            justify="right" if right else "left",
            overflow="fold",
            # What names the row must be there to be copied.
            no_wrap=number == 0,
        )
    for r, row in enumerate(rows):
        table.add_row(
            *[
                Text(cell, style="bold green" if marked(r, c) else _STATUS_STYLES.get(cell, ""))
                for c, cell in enumerate(row)
            ]
        )
    Console().print(table)


def _encodable(content: Any) -> Any:
    if isinstance(content, float):
        return number_as_json(content)
    if isinstance(content, Mapping):
        return {str(key): _encodable(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_encodable(item) for item in content]
    return content


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
        "last_step": run.last_step if run.last_step >= 0 else None,
        "steps_per_second": run.steps_per_second,
        "params": run.params,
        "tags": run.tags,
        "metrics": {
            name: {f: getattr(m, f) if m.count or f == "count" else None for f in m.__slots__}
            for name, m in run.metrics.items()
        },
        "problems": list(run.problems),
    }
