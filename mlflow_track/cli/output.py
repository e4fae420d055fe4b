"""Prints the results of commands: text for people, JSON and CSV for programs.

Everything printed for people goes through `echo`, which escapes control characters.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shutil
import sys
import time
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mlflow_track.record.files import legible

if TYPE_CHECKING:
    from mlflow_track.analysis.summary import Summary

_F = TypeVar("_F", bound=Callable[..., Any])
_STATUS_STYLES = {"RUNNING": "green", "FAILED": "red", "KILLED": "yellow"}
_GAP = "  "
_LEAST_WIDTH = 8
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
    r"""The text with control characters as escapes like `\x1b`."""
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def echo(text: object = "", *, nl: bool = True, err: bool = False, bold: bool = False) -> None:
    """Print text for people.

    Args:
        text: The text to print.
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
) -> None:
    """Print rows in the form that was asked for.

    Args:
        header: Names of the columns.
        rows: Their values; None prints as nothing.
        form: "json", "csv", or None for people: a table with colours on a terminal, plain text
            otherwise.
        data: The content of the JSON instead of the rows.
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
            widths = _fit(_widths(titles, texts), is_number, shutil.get_terminal_size().columns)
            left_out = titles[len(widths) :]
            _print_styled(titles, texts, is_number, widths, marked)
            if left_out:
                names = ", ".join(left_out)
                echo(
                    f"columns that do not fit: {names}; use a wider terminal, --csv or --json",
                    err=True,
                )
        else:
            texts = [
                [cell + " *" * marked(r, c) for c, cell in enumerate(row)]
                for r, row in enumerate(texts)
            ]
            for row in (titles, *texts):
                cells = map(_padded, row, _widths(titles, texts))
                echo("  ".join(cells).rstrip())


def _widths(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    """The width of the longest cell of each column."""
    return [max(map(text_width, column)) for column in zip(header, *rows, strict=True)]


def _fit(widths: Sequence[int], is_number: Sequence[bool], columns: int) -> list[int]:
    """Widths that fit into a line: text gives way first, then the last columns; numbers never.

    Args:
        widths: The widths that the columns need; the first one names the row and is never cut.
        is_number: Whether each column holds numbers.
        columns: The width of the line.
    """
    fitted = list(widths)
    while sum(fitted) + len(_GAP) * (len(fitted) - 1) > columns and len(fitted) > 1:
        texts = [
            number
            for number in range(1, len(fitted))
            if not is_number[number] and fitted[number] > _LEAST_WIDTH
        ]
        if texts:
            fitted[max(texts, key=lambda number: fitted[number])] -= 1
        else:
            fitted.pop()
    return fitted


def _print_styled(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    is_number: Sequence[bool],
    widths: Sequence[int],
    marked: Callable[[int, int], bool],
) -> None:
    for r, row in enumerate((header, *rows), -1):
        cells = []
        for c, (text, width) in enumerate(zip(row, widths, strict=False)):
            shown = _padded(_cut(text, width), width, right=is_number[c])
            if r < 0:
                shown = click.style(shown, bold=True)
            elif marked(r, c):
                shown = click.style(shown, bold=True, fg="green")
            elif text in _STATUS_STYLES:
                shown = click.style(shown, fg=_STATUS_STYLES[text])
            cells.append(shown)
        click.echo(_GAP.join(cells))


def text_width(text: str) -> int:
    """The width of a text in columns of a terminal."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(letter) else 1 + (unicodedata.east_asian_width(letter) in "WF")
        for letter in text
    )


def _cut(text: str, width: int) -> str:
    if text_width(text) <= width:
        return text
    while text_width(text) >= width:
        text = text[:-1]
    return f"{text}…"


def _padded(text: str, width: int, right: bool = False) -> str:
    space = " " * (width - text_width(text))
    return space + text if right else text + space


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
