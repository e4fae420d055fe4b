"""Values as MLflow's stores take them, and back."""

from __future__ import annotations

_LARGEST = 1.7976931348623157e308


def clean(text: str) -> str:
    """Text that every database takes: PostgreSQL has no NUL, and half a surrogate is no UTF-8."""
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


def storable(value: float) -> float:
    """SQL has no infinity; MLflow's own substitute is the largest finite number."""
    return min(max(value, -_LARGEST), _LARGEST) if value == value else value


def as_logged(value: float) -> float:
    return (
        value if abs(value) < _LARGEST or value != value else float("inf" if value > 0 else "-inf")
    )
