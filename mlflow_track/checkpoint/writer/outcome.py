"""A save in flight, and how one ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of one save.

    Attributes:
        size_bytes: Bytes of tensors.
        stall_seconds: The time that `save` blocked the training loop.
        durable_seconds: The time from the call until the checkpoint was durable or failed.
    """

    step: int
    error: OSError | None
    size_bytes: int
    stall_seconds: float
    durable_seconds: float


@dataclass
class Pending:
    """A request that the writer has not answered."""

    request: dict[str, Any]
    step: int
    size_bytes: int
    started: float
    stall_seconds: float = 0.0
    writers: int = 1


def as_error(problem: list[Any] | None) -> OSError | None:
    if problem is None:
        return None
    number, text, path = problem
    return OSError(text) if number is None else OSError(number, text, path)
