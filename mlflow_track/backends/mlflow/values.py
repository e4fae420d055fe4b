"""A run as MLflow has it, and values as its stores take them, and back."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

_MOST_NAME = 250
_LARGEST = 1.7976931348623157e308


def clean(text: str) -> str:
    """Text that every database takes: PostgreSQL has no NUL, and half a surrogate is not UTF-8."""
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


def shortened(name: str) -> str:
    """The name of a run as its column holds it."""
    return clean(name)[:_MOST_NAME]


def storable(value: float) -> float:
    """SQL has no infinity; MLflow's own substitute is the largest finite number."""
    return min(max(value, -_LARGEST), _LARGEST) if value == value else value


def as_logged(value: float) -> float:
    return (
        value if abs(value) < _LARGEST or value != value else float("inf" if value > 0 else "-inf")
    )


class Target(NamedTuple):
    """A run as the server has it.

    Attributes:
        url: Its page in the UI; None where there is no server with a UI.
        params, tags: The existing ones, by key.
        status: Its status.
        metrics: The last step of each key that it has values of.
        name: Its name.
    """

    experiment_id: str
    run_id: str
    url: str | None
    params: Mapping[str, str]
    tags: Mapping[str, str]
    status: str
    metrics: Mapping[str, int] = MappingProxyType({})
    name: str = ""
