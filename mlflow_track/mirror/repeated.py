"""Values that the server has and that a rewind took out of the record, in little memory."""

from __future__ import annotations

from array import array
from bisect import bisect_left


class Repeated:
    """(metric, step) to value: 16 bytes for each, and the first value of a step counts."""

    def __init__(self) -> None:
        self._steps: dict[str, array[int]] = {}
        self._values: dict[str, array[float]] = {}
        self._unsorted: set[str] = set()

    def add(self, name: str, step: int, value: float) -> None:
        steps = self._steps.setdefault(name, array("q"))
        values = self._values.setdefault(name, array("d"))
        if steps and step < steps[-1]:
            self._unsorted.add(name)
        steps.append(step)
        values.append(value)

    def get(self, name: str, step: int) -> float | None:
        """The value that the server has; None where it has none."""
        steps = self._steps.get(name)
        if not steps:
            return None
        if name in self._unsorted:
            values = self._values[name]
            # Stable: of one step the value that was added first stays first.
            order = sorted(range(len(steps)), key=steps.__getitem__)
            steps = self._steps[name] = array("q", (steps[i] for i in order))
            self._values[name] = array("d", (values[i] for i in order))
            self._unsorted.discard(name)
        at = bisect_left(steps, step)
        return self._values[name][at] if at < len(steps) and steps[at] == step else None

    def clear(self) -> None:
        self._steps.clear()
        self._values.clear()
        self._unsorted.clear()
