"""Tables: on a terminal in colours and no wider than it, as plain text, and for a paper."""

from __future__ import annotations

import re
import shutil
import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence

import click

_STATUS_STYLES = {"RUNNING": "green", "FAILED": "red", "KILLED": "yellow"}
_GAP = "  "
_LEAST_WIDTH, _NAME_WIDTH = 12, 16
# Text that is a number, a date, a duration or a size: nobody can guess the rest of it.
_RIGID = re.compile(r"[-+]?(\d|nan\b|inf\b)", re.IGNORECASE)
# Names are text in Markdown and LaTeX, too.
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "…": r"\ldots{}",
    **{letter: "\\" + letter for letter in "&%$#_{}"},
}
_NUMBER = re.compile(r"[-+]?(\d[\d.]*(e[-+]?\d+)?|nan|inf)", re.IGNORECASE)


def print_styled(
    titles: Sequence[str],
    texts: Sequence[Sequence[str]],
    is_number: Sequence[bool],
    marked: Callable[[int, int], bool],
    spare: Sequence[str],
) -> list[str]:
    """Print a table on a terminal; see `output.print_rows`.

    Returns:
        The titles of the columns that were left out.
    """
    columns = shutil.get_terminal_size().columns
    kept = list(range(len(titles)))
    left_out = []
    for title in spare:
        # A name that is cut costs more than a column that can be spared.
        if title in titles and len(_pieces(titles, texts, kept, columns, _NAME_WIDTH)) > 1:
            left_out.append(title)
            kept.remove(titles.index(title))
    pieces = _pieces(titles, texts, kept, columns, _LEAST_WIDTH)
    for number, piece in enumerate(pieces):
        if number:
            click.echo()
        _print_piece(titles, texts, is_number, piece, marked)
    return [title for title in left_out if title]


def plain_lines(
    titles: Sequence[str], texts: Sequence[Sequence[str]], marked: Callable[[int, int], bool]
) -> list[str]:
    """The lines of a table where it is not printed on a terminal: whole, with a star for marks."""
    rows = [
        [cell + " *" * marked(r, c) for c, cell in enumerate(row)] for r, row in enumerate(texts)
    ]
    widths = _widths(titles, rows)
    return [_GAP.join(map(_padded, row, widths)).rstrip() for row in (titles, *rows)]


def _widths(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(text_width, column)) for column in zip(header, *rows, strict=True)]


def _pieces(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    kept: Sequence[int],
    columns: int,
    least_width: int,
) -> list[dict[int, int]]:
    """The table as one piece or several: by column its width in that piece.

    The first column names the row and is in each piece.

    Args:
        least_width: As short as this a text may become.
    """
    wide = _widths(header, rows)
    least = [min(width, least_width) for width in wide]
    for number in kept:
        rigid = [text_width(row[number]) for row in rows if _RIGID.match(row[number])]
        least[number] = max([least[number], *rigid])
    # What names the row stays whole where a third of the line is enough for it.
    least[0] = max(least[0], min(wide[0], columns // 3))
    pieces: list[list[int]] = [[kept[0]]]
    for number in kept[1:]:
        own = [*pieces[-1], number]
        if _total([least[n] for n in own]) > columns and len(pieces[-1]) > 1:
            pieces.append([kept[0], number])
        else:
            pieces[-1] = own
    found = []
    for piece in pieces:
        widths = {number: wide[number] for number in piece}
        while _total(widths.values()) > columns:
            # Of those that can give way the widest; of equals the last.
            elastic = [n for n in piece if widths[n] > least[n]]
            if not elastic:
                break
            widths[max(elastic, key=lambda n: (widths[n], n))] -= 1
        found.append(widths)
    return found


def _total(widths: Collection[int]) -> int:
    return sum(widths) + len(_GAP) * (len(widths) - 1)


def _print_piece(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    is_number: Sequence[bool],
    widths: Mapping[int, int],
    marked: Callable[[int, int], bool],
) -> None:
    for r, row in enumerate((header, *rows), -1):
        cells = []
        for c, width in widths.items():
            text = row[c]
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
    """The text in a width: of a long one the beginning and the end, which tells names apart."""
    if text_width(text) <= width:
        return text
    end = max(1, (width - 1) // 2)
    last = ""
    for letter in reversed(text):
        if text_width(letter + last) > end:
            break
        last = letter + last
    first = text
    while text_width(first) + 1 + text_width(last) > width:
        first = first[:-1]
    return f"{first}…{last}"


def _padded(text: str, width: int, right: bool = False) -> str:
    space = " " * (width - text_width(text))
    return space + text if right else text + space


def markup(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    form: str,
    marked: Callable[[int, int], bool],
) -> str:
    """A table as text of another program.

    Args:
        form: "md", or "latex" for a tabular of the package booktabs.
        marked: Whether a cell (row, column) is the best of its kind: it is bold.
    """
    numeric = [
        bool(rows) and all(not row[n] or _NUMBER.fullmatch(row[n]) for row in rows)
        for n in range(len(header))
    ]
    if form == "latex":
        return _latex(header, rows, numeric, marked)
    lines = [
        _row([_markdown(cell) for cell in header]),
        _row(["---:" if is_number else "---" for is_number in numeric]),
    ]
    for r, row in enumerate(rows):
        cells = [_markdown(cell) for cell in row]
        bold = [f"**{c}**" if c and marked(r, n) else c for n, c in enumerate(cells)]
        lines.append(_row(bold))
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>|$#])", r"\\\1", text)


def _latex(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    numeric: Sequence[bool],
    marked: Callable[[int, int], bool],
) -> str:
    lines = [
        r"\begin{tabular}{" + "".join("r" if is_number else "l" for is_number in numeric) + "}",
        r"\toprule",
        _latex_row([_latex_text(cell) for cell in header]),
        r"\midrule",
    ]
    for r, row in enumerate(rows):
        cells = [_latex_text(cell) for cell in row]
        bold = [rf"\textbf{{{c}}}" if c and marked(r, n) else c for n, c in enumerate(cells)]
        lines.append(_latex_row(bold))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _latex_text(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)
