"""The step boundaries of one loop: how long steps take, and whether they go back."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from mlflow_track.wording import count_text, value_error

_STEPS_REMEMBERED = 1000


class StepTimes:
    """Measures how long steps take, from one boundary to the next.

    Attributes:
        count: The number of boundaries.
    """

    def __init__(self) -> None:
        self.count = 0
        self._before = self._longest = 0.0
        self._seconds: deque[float] = deque(maxlen=_STEPS_REMEMBERED)

    def boundary(self, now: float) -> None:
        if self.count:
            seconds = now - self._before
            has_gone = self.count > _STEPS_REMEMBERED and self._seconds[0] == self._longest
            self._seconds.append(seconds)
            if seconds >= self._longest:
                self._longest = seconds
            elif has_gone:
                self._longest = max(self._seconds)
        self.count += 1
        self._before = now

    @property
    def longest(self) -> float:
        """The longest of the last 1000 steps, in seconds, with any evaluation in it."""
        return self._longest


class StepOrder:
    """Follows the steps of the loop, which must not go back: a resume takes the largest.

    Args:
        saves_by_itself: Whether a policy saves.
        knows_its_end: Whether it is known which step is the last, so that it is saved.
    """

    def __init__(self, saves_by_itself: bool, knows_its_end: bool) -> None:
        self._saves_by_itself, self._knows_its_end = saves_by_itself, knows_its_end
        self._boundary = self._saved = -1
        self._has_warned = False

    @property
    def next_step(self) -> int:
        """The first step that may come."""
        return max(self._boundary, self._saved) + 1

    def restart(self, step: int) -> None:
        """The run continues after `step`; -1 is its start."""
        self._boundary = self._saved = step

    def boundary(self, step: int) -> None:
        """Take the step of a boundary.

        Raises:
            ValueError: A later one was there before.
        """
        if step < self._boundary:
            raise value_error(
                "step",
                f"{self._boundary} or more, because {self._boundary} is done already",
                f"{step}: count the steps of the whole run (epoch * steps_per_epoch + i), or "
                "go back with restore(state, step=…)",
            )
        self._boundary = step

    def save(self, step: int, announce: Callable[[str], None]) -> None:
        """Take the step of a requested save; warns once where a later one was there before."""
        newest = max(self._boundary, self._saved)
        if step < newest and not self._has_warned:
            self._has_warned = True
            announce(
                f"WARNING: steps go back: saving step {step} after step {newest}. A resume takes "
                "the largest step, and a step that is saved already is not saved again; count the "
                "steps of the whole run"
            )
        self._saved = max(self._saved, step)

    def tell_age(self, newest: int | None, announce: Callable[[str], None]) -> None:
        """At the end, report steps after the newest checkpoint, which policies did not save."""
        if not self._saves_by_itself or self._boundary <= (-1 if newest is None else newest):
            return
        hint = "" if self._knows_its_end else "; run.checkpoints(max_steps=…) saves the last step"
        if newest is None:
            announce(f"no checkpoint was saved up to step {self._boundary}{hint}")
        else:
            age = count_text(self._boundary - newest, "step")
            announce(f"the last checkpoint is {age} old (step {newest} of {self._boundary}){hint}")
