"""Takes texts."""

from __future__ import annotations

from typing import Any

from mlflow_track.media.values import Encodable
from mlflow_track.record.files import legible
from mlflow_track.wording import expected, shown


def text_of(text: Any, name: str) -> Encodable:
    """A text as UTF-8; half characters become legible.

    Args:
        text: The text.
        name: The file's name, for a message.

    Raises:
        TypeError: It is not a string.
    """
    if not isinstance(text, str):
        raise TypeError(expected(f"the text for {shown(name)}", "a string", type(text).__name__))
    return Encodable(len(text), lambda: legible(text).encode())
