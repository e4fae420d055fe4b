"""When the attempts of a run were at work: its active time, without the pauses between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from mlflow_track.record.info import last_sign_of_life
from mlflow_track.record.rows import last_row_time
from mlflow_track.record.schema import RunInfo


class Span(NamedTuple):
    """The time of one attempt, in Unix seconds."""

    began: float
    ended: float


def spans(path: Path, info: RunInfo) -> list[Span]:
    """The times of the attempts, oldest first; one from the run's start on where none has a time.

    An attempt that was killed, and followed by another one, ended with its last row.
    """
    last = last_sign_of_life(path, info)
    attempts = [attempt for attempt in info.attempts if attempt.started]
    if not attempts:
        return [Span(info.created, max(info.created, last))]
    found: list[Span] = []
    for attempt, following in zip(attempts, [*attempts[1:], None], strict=True):
        began, ended = attempt.started or 0.0, attempt.ended
        if following is None:
            ended = last if ended is None else ended
        else:
            most = following.started or 0.0
            ended = last_row_time(path, most) if ended is None else min(ended, most)
        # A clock that was set back must not make time negative, or count it twice.
        began = max(began, found[-1].ended) if found else began
        found.append(Span(began, max(began, ended)))
    return found


def active_seconds(found: Sequence[Span]) -> float:
    """The seconds in which an attempt was at work."""
    return math.fsum(span.ended - span.began for span in found)


def active_at(found: Sequence[Span], times: Sequence[float]) -> list[float]:
    """For each Unix time how many seconds the run had been at work until then."""
    pauses = [(after.began, after.began - span.ended) for span, after in pairwise(found)]
    began = found[0].began
    if not pauses:
        return [time - began for time in times]
    return [time - began - sum(pause for at, pause in pauses if time >= at) for time in times]
