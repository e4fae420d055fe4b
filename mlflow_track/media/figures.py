"""Draws figures of matplotlib."""

from __future__ import annotations

import io
from typing import Any

from mlflow_track.media.values import Encodable
from mlflow_track.wording import expected, shown


def figure_of(figure: Any, name: str, kind: str = "png") -> Encodable:
    """A figure as a file; it is drawn here, as matplotlib allows for one thread only.

    Args:
        figure: A figure of matplotlib.
        name: The file's name, for a message.
        kind: The format: png, svg, pdf.

    Raises:
        TypeError: It is not a figure.
    """
    if not hasattr(figure, "savefig"):
        what = f"the figure for {shown(name)}"
        raise TypeError(expected(what, "a matplotlib Figure", type(figure).__name__))
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=150, bbox_inches="tight")
    return Encodable(buffer.tell(), buffer.getvalue)
