"""Saves that write nothing: of the backend `off`, and of ranks that do not write."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mlflow_track.checkpoint.state.flatten import SaveRequest, take_apart
from mlflow_track.checkpoint.writer.outcome import Outcome


class DiscardingSaver:
    """Has the methods of `Saver`.

    Args:
        is_checking: Whether a state that cannot be saved is refused; rank 0 of a job does that for
            the others.
    """

    in_flight: int | None = None

    def __init__(self, *, is_checking: bool) -> None:
        self._is_checking = is_checking
        self._memory: dict[str, Any] = {}

    def prepare(self, state: Mapping[str, Any]) -> int | None: ...

    def save(self, request: SaveRequest) -> float:
        if self._is_checking:
            take_apart(request, self._memory)
        return 0.0

    def outcomes(self) -> list[Outcome]:
        return []

    def wait(self, progress: Callable[[int, int], None] | None = None) -> None: ...

    def close(self) -> None: ...
