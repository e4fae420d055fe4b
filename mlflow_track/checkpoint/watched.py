"""What is logged of the metrics that policies look at, on its way to the next step boundary."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Sequence

from mlflow_track.record.device_values import Arriving


class WatchedValues:
    """Gets the values that go into the record, in the same order.

    Args:
        names: The metrics that policies look at.
    """

    def __init__(self, names: Collection[str]) -> None:
        self.names = frozenset(names)
        self._new: deque[tuple[str, int, float | Arriving]] = deque()

    def add(self, step: int, names: Sequence[str], values: Sequence[float | Arriving]) -> None:
        """Take a row that the record has taken; other metrics in it are left out."""
        for name, value in zip(names, values, strict=True):
            if name in self.names:
                self._new.append((name, step, value))

    def take(self) -> Iterator[tuple[str, int, float]]:
        """What came since the last call; one whose device is not done yet is waited for."""
        while self._new:
            name, step, value = self._new.popleft()
            try:
                yield name, step, value if isinstance(value, int | float) else value.wait()
            except RuntimeError:
                continue  # Its device failed; the record does not have it either.
