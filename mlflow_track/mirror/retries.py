"""Files that a destination does not take now: each waits for its own next attempt."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from mlflow_track.backends.protocol import Unavailable
from mlflow_track.mirror.outage import MOST_RETRY_AFTER_SECONDS

_MOST_ATTEMPTS = 8
_MOST_DOUBTS = 3
_LONGEST_PAUSE_SECONDS = 60.0


class Retries:
    """Remembers attempts at items, so that one that fails holds up nothing else."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._attempts: dict[str, int] = {}
        self._due: dict[str, float] = {}
        self._why: dict[str, str] = {}

    @property
    def waiting(self) -> str | None:
        """What waits for another attempt, and why; None where nothing does."""
        if not self._why:
            return None
        item, why = next(iter(self._why.items()))
        more = f" (and {len(self._why) - 1} more)" if len(self._why) > 1 else ""
        return f"{item} is not accepted yet{more}: {why}"

    def is_due(self, item: str) -> bool:
        return self._clock() >= self._due.get(item, 0.0)

    def attempts(self, item: str) -> int:
        """How often it has failed."""
        return self._attempts.get(item, 0)

    def failed(self, item: str, error: Unavailable, is_there: Callable[[], bool]) -> bool:
        """Note a failed attempt; returns whether another one is useless.

        Args:
            item: The item.
            error: The answer to it.
            is_there: Asks whether the destination answers something else: where it refuses all that
                it is asked, that says nothing of the item.
        """
        attempts = self._attempts[item] = self._attempts.get(item, 0) + 1
        if attempts >= _MOST_ATTEMPTS and is_there():
            self.done(item)
            return True
        pause = min(_LONGEST_PAUSE_SECONDS, 2.0 ** min(attempts - 1, 10))
        asked = min(error.retry_after, MOST_RETRY_AFTER_SECONDS)
        self._due[item] = self._clock() + max(pause, asked)
        self._why[item] = str(error)
        return False

    def done(self, item: str) -> None:
        """It has arrived, or is refused, or gone."""
        for memory in (self._attempts, self._due, self._why):
            memory.pop(item, None)

    def keep_only(self, items: set[str]) -> None:
        """Forget those that are not pending any more."""
        for item in [item for item in self._attempts if item not in items]:
            self.done(item)


class Doubts:
    """What was set aside while the destination took no other file: it may have taken none at all.

    Each is tried again when one arrives, a few times.
    """

    def __init__(self) -> None:
        self._arrived = 0
        # How many had arrived when a file failed first; what was set aside; how often.
        self._since: dict[str, int] = {}
        self._aside: list[str] = []
        self._times: Counter[str] = Counter()

    def failed(self, name: str) -> None:
        """An attempt at a file has failed."""
        self._since.setdefault(name, self._arrived)

    def set_aside(self, name: str) -> None:
        """A file is not tried any more."""
        is_doubtful = self._since.pop(name, self._arrived) == self._arrived
        if is_doubtful and self._times[name] < _MOST_DOUBTS:
            self._times[name] += 1
            self._aside.append(name)

    def arrived(self, name: str) -> list[str]:
        """A file has arrived; returns those to try again."""
        self._arrived += 1
        self._since.pop(name, None)
        again, self._aside = self._aside, []
        return again
