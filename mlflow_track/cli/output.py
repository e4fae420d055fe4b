"""How the commands print: tables for people, JSON and CSV for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from mlflow_track.record.files import legible

if TYPE_CHECKING:
    from mlflow_track.analysis.summary import Summary

import csv
import io
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

_F = TypeVar("_F", bound=Callable[..., Any])
_STATUS_STYLES = {"RUNNING": "green", "FAILED": "red", "KILLED": "yellow"}


def output_options(command: _F) -> _F:
    """`--json` and `--csv`, for programs."""
    command = click.option("--csv", "form", flag_value="csv", help="Print CSV.")(command)
    return click.option("--json", "form", flag_value="json", help="Print JSON.")(command)


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
        click.echo(buffer.getvalue(), nl=False)
    else:
        texts = [[cell_text(cell) for cell in row] for row in rows]
        is_number = [
            all(isinstance(row[n], int | float | None) for row in rows) for n in range(len(header))
        ]
        if is_terminal():
            _print_rich(header, texts, is_number, marked)
        else:
            texts = [
                [cell + " *" * marked(r, c) for c, cell in enumerate(row)]
                for r, row in enumerate(texts)
            ]
            print_table(header, texts)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print `header` and `rows` as plain text, each column as wide as its longest cell."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


def print_json(content: Any) -> None:
    """Print JSON; what it has no number for (NaN, infinities) becomes null."""
    click.echo(legible(json.dumps(_legal(content), indent=2, ensure_ascii=False, default=str)))


def number_as_json(value: float) -> float | str:
    """A number, or the words NaN, Infinity and -Infinity, for which JSON has no number."""
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
    return " ".join(str(value).split())


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


def _legal(content: Any) -> Any:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {str(key): _legal(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_legal(item) for item in content]
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
