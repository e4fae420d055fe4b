"""Collects logged values of the metrics that policies watch, for the next step boundary."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Collection, Sequence

from mlflow_track.record.device_values import Arriving

_MOST_KNOWN = 1024


class WatchedValues:
    """Gets the values that go into the record, in the same order.

    Args:
        names: The metrics that policies look at.

    Attributes:
        places: For tuples of names that were logged before, where among them watched ones are.
        new: The values since the last call of `take`.
    """

    def __init__(self, names: Collection[str]) -> None:
        self.names = frozenset(names)
        self.places: dict[tuple[str, ...], tuple[int, ...]] = {}
        self.new: deque[tuple[str, int, float | Arriving]] = deque()

    def find(self, names: tuple[str, ...]) -> tuple[int, ...]:
        """The positions of watched metrics in `names`."""
        if len(self.places) >= _MOST_KNOWN:
            self.places.clear()
        return self.places.setdefault(
            names, tuple(at for at, name in enumerate(names) if name in self.names)
        )

    def add(
        self,
        step: int,
        names: Sequence[str],
        values: Sequence[float | Arriving],
        places: Sequence[int],
    ) -> None:
        """Take the watched ones of the values that were recorded."""
        for at in places:
            self.new.append((names[at], step, values[at]))

    def take(self, log: Callable[[str, int, float], None]) -> None:
        """Hand over the values since the last call; waits for those still on a device."""
        while self.new:
            name, step, value = self.new.popleft()
            if type(value) is float or isinstance(value, int | float):
                log(name, step, value)
                continue
            # Where its device failed the record does not have it either.
            with contextlib.suppress(RuntimeError):
                log(name, step, value.wait())
