"""What a mirror waits for: the end of the trainer, and a destination that is away."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

LONGEST_PAUSE_SECONDS = 60.0
_FIRST_PAUSE_SECONDS = 1.0
# A server that asks for more is asked once in this time all the same.
MOST_RETRY_AFTER_SECONDS = 3600.0


class End:
    """The end of the trainer; `at` is its Unix time, where it is known already."""

    def __init__(self, at: float | None = None) -> None:
        self._has_come = threading.Event()
        self.at = at
        if at is not None:
            self._has_come.set()

    @property
    def is_set(self) -> bool:
        return self._has_come.is_set()

    def set(self) -> None:
        self.at = time.time()
        self._has_come.set()

    def seconds_ago(self) -> float:
        return time.time() - self.at if self.at is not None else 0.0

    def wait(self, seconds: float) -> bool:
        """Wait so long, or until it comes; whether it came just now."""
        if self.is_set:
            time.sleep(seconds)
            return False
        return self._has_come.wait(seconds)


class Outage:
    """Counts failures until something succeeds.

    Args:
        name: The backend's name.
        report: Takes one readable line.
        pending: The missing parts, readable.
        failures: Those before; the user has been told of them.
    """

    def __init__(
        self, name: str, report: Callable[[str], None], pending: Callable[[], str], failures: int
    ) -> None:
        self._name = name
        self._report = report
        self._pending = pending
        self.failures = failures

    def failed(self, why: str, retry_after_seconds: float = 0.0) -> float:
        """Returns how many seconds to wait before the next attempt: at least those asked for."""
        self.failures += 1
        if self.failures == 1:
            pending = self._pending()
            self._report(
                f"WARNING: {self._name} cannot be reached, training continues: {why}. "
                f"{f'Pending: {pending}' if pending else 'Nothing is pending yet'}; it is kept in "
                "the record and sent later"
            )
        # Many runs wait for one server: they must not come back all at once.
        grown = _FIRST_PAUSE_SECONDS * 2.0 ** min(self.failures - 1, 10)
        own = min(LONGEST_PAUSE_SECONDS, grown) * random.uniform(0.75, 1.25)
        asked = min(retry_after_seconds, MOST_RETRY_AFTER_SECONDS) * random.uniform(1.0, 1.25)
        return max(own, asked)

    def ended(self) -> None:
        """Something has arrived."""
        if self.failures:
            self._report(f"{self._name} is reachable again; sending what was pending")
        self.failures = 0
