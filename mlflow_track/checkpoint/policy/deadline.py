"""Deadlines of a machine: parsed from a text, and checked at a step boundary."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from datetime import datetime

from mlflow_track.wording import shown, value_error

# Below this a bare number is not a recent Unix time, but a duration without a unit.
_FIRST_UNIX_TIME = 1_000_000_000
_UNIT_SECONDS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
_FORMS = (
    "Unix seconds (1767225600), ISO 8601 (2026-01-01T00:00:00Z; "
    "without a zone it is local time), or a duration from the start of the run (90m, 1h30m, 2d)"
)
# A save that was never measured, and the time a process needs to end cleanly.
_UNKNOWN_SAVE_SECONDS = 30.0
_END_SECONDS = 5.0
_MARGIN = 2.0


def parse_deadline(text: str, *, now: float) -> float:
    """The Unix time that `text` names.

    Args:
        text: Unix seconds, ISO 8601, or a duration.
        now: Unix time from which a duration counts.

    Raises:
        ValueError: It is not one of them; the message lists what is valid.
    """
    text = text.strip()
    if re.fullmatch(r"\d+(\.\d+)?", text):
        if float(text) < _FIRST_UNIX_TIME:
            raise value_error(
                "MLFLOW_TRACK_DEADLINE", _FORMS, f"{text!r}, too small for Unix seconds"
            )
        return float(text)
    parts = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?", text)
    if text and parts:
        return now + sum(
            float(count) * seconds
            for count, seconds in zip(parts.groups(), _UNIT_SECONDS.values(), strict=True)
            if count
        )
    try:
        # Python 3.10 does not know the Z.
        return datetime.fromisoformat(re.sub(r"[zZ]$", "+00:00", text)).timestamp()
    except ValueError:
        raise value_error("MLFLOW_TRACK_DEADLINE", _FORMS, shown(text)) from None


@dataclass(frozen=True)
class Deadline:
    """The Unix time `at` by which the process must have ended."""

    at: float

    def reason_to_stop(
        self, now: float, *, step_seconds: float, save_seconds: float | None
    ) -> str | None:
        """The reason to save and stop now: one more step and a save might not finish in time.

        Args:
            now: Unix time.
            step_seconds: The longest of the recent steps, evaluation included.
            save_seconds: The longest of the recent saves until durable; None if none is known,
                which counts as 30 s.
        """
        save = _UNKNOWN_SAVE_SECONDS if save_seconds is None else save_seconds
        needed = _MARGIN * (step_seconds + save) + _END_SECONDS
        if self.at - now > needed:
            return None
        return (
            f"the deadline {time.strftime('%H:%M:%S', time.localtime(self.at))} is "
            f"{self.at - now:.0f} s away, and one more step and a save may take {needed:.0f} s"
        )
