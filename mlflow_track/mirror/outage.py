"""When to try again, and what to say: one warning for each outage, pauses that grow and vary."""

from __future__ import annotations

import random
from collections.abc import Callable

_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 60.0


class Outage:
    """Counts failures until something succeeds.

    Args:
        report: Takes one line for a person.
        pending: What has not arrived, in words.
    """

    def __init__(self, report: Callable[[str], None], pending: Callable[[], str]) -> None:
        self._report = report
        self._pending = pending
        self._failures = 0
        self._said = ""

    def failed(self, why: str) -> float:
        """Returns how many seconds to wait before the next attempt."""
        self._failures += 1
        if self._failures == 1:
            pending = self._pending()
            self._report(
                f"WARNING: MLflow cannot be reached, training goes on: {why}. "
                f"{f'Pending: {pending}' if pending else 'Nothing is pending yet'}; it is kept in "
                "the record and sent later"
            )
        # Many runs wait for one server: they must not come back all at once.
        grown = _FIRST_PAUSE_SECONDS * 2.0 ** min(self._failures - 1, 10)
        return min(_LONGEST_PAUSE_SECONDS, grown) * random.uniform(0.75, 1.25)

    def ended(self) -> None:
        """Something has arrived."""
        if self._failures:
            self._report("the MLflow server answers again; what was pending is on its way")
        self._failures = 0
