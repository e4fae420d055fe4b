"""What the parts of a report have in common: its runs, their labels, and tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

from mlflow_track.analysis.summary import Summary


class Page(NamedTuple):
    """The runs of a report.

    Attributes:
        runs: The runs.
        names: A label for each.
        order: Their places, the most important first.
        marks: For each its spot of colour, as HTML.
    """

    runs: Sequence[Summary]
    names: Sequence[str]
    order: Sequence[int]
    marks: Sequence[str]

    def label(self, number: int) -> str:
        """The spot and the label of a run, as HTML."""
        return f"{self.marks[number]} {escape(self.names[number])}"

    def limited(self, most: int) -> str:
        """A note where only the first `most` runs are shown."""
        count = len(self.order)
        return f"<p>The first {most} of {count:,} runs.</p>" if count > most else ""


def table(head: Iterable[str], rows: Iterable[str]) -> str:
    """A table that scrolls sideways: titles of columns, and rows as HTML."""
    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    return f'<div class="wide"><table><tr>{titles}</tr>{"".join(rows)}</table></div>'
