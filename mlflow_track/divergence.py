"""Finds metrics that were finite, are NaN or infinite from some step on, and stay so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mlflow_track.record.rows import files_of, read_end
from mlflow_track.wording import count_text

# So many in a row are reported at once; checked at the tenth, hundredth, … value of a metric.
_MANY = 10
_END_BYTES = 1 << 20
_MOST_NAMES = 3


class Turn(NamedTuple):
    """Where a metric ceased to be finite.

    Attributes:
        step: The step of the first value that is not finite.
        last: The newest value.
        count: How many values there are from there on.
        was_finite: Whether a finite value stands before it, as far back as was read.
    """

    step: int
    last: float
    count: int
    was_finite: bool


class Divergence:
    """Counts values that are not finite: the writer of metrics hands them over, and no others."""

    def __init__(self, path: Path, announce: Callable[[str], None]) -> None:
        self._path, self._announce = path, announce
        self._counts: dict[str, int] = {}
        self._said: dict[str, Turn] = {}

    def note(self, step: int, names: Sequence[str], values: Sequence[Any]) -> None:
        """Take a row that holds a value that is not finite. It is not in the file yet."""
        for name, value in zip(names, values, strict=True):
            if value - value == 0:
                continue
            count = self._counts[name] = self._counts.get(name, 0) + 1
            if count >= _MANY and str(count).strip("0") == "1" and name not in self._said:
                turn = self._turn_of(name)
                if turn is not None and turn.was_finite and turn.count >= _MANY - 1:
                    self._said[name] = turn
                    self._announce(f"WARNING: {name} is {turn.last} since step {turn.step}")

    def ending(self) -> str:
        """The metrics that are not finite at the end of the run; empty where there are none."""
        turns: dict[str, Turn] = {}
        for name, count in self._counts.items():
            turn = self._turn_of(name)
            if turn is None:
                continue
            if turn.was_finite and (turn.count >= _MANY or turn.count == count):
                turns[name] = turn
            elif not turn.was_finite and name in self._said:
                turns[name] = self._said[name]
        found = sorted(turns, key=lambda name: (turns[name].step, name))
        said = [f"{n} is {turns[n].last} since step {turns[n].step}" for n in found[:_MOST_NAMES]]
        if len(found) > _MOST_NAMES:
            said.append(f"as are {count_text(len(found) - _MOST_NAMES, 'more metric')}")
        return ", ".join(said)

    def _turn_of(self, name: str) -> Turn | None:
        """Where the newest values of a metric ceased to be finite; None where the last one is."""
        values: list[tuple[float, int, float]] = []
        try:
            for file in files_of(self._path):
                columns, _ = read_end(file, _END_BYTES)
                rows, found = columns.metrics.get(name, ((), ()))
                values += [
                    (columns.times[row], columns.steps[row], value)
                    for row, value in zip(rows, found, strict=True)
                ]
        except (OSError, ValueError):
            return None  # The rows are there; a reader can report on them later.
        values.sort(key=lambda value: value[0])
        count = 0
        while count < len(values) and values[-1 - count][2] - values[-1 - count][2] != 0:
            count += 1
        if not count:
            return None
        return Turn(values[-count][1], values[-1][2], count, count < len(values))
