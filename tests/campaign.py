"""How many cases a fault campaign tries, and which: few in CI, many with `make faults`."""

from __future__ import annotations

import os
import random
from typing import Any

import pytest


def seeds(few: int) -> list[int]:
    """Seeds of a campaign: `few` of them, or FAULT_COUNT if that is more; FAULT_SEED says which.

    FAULT_CASE is one of them, as the message of a failure names it: then it is the only one.
    """
    if os.environ.get("FAULT_CASE"):
        return [int(os.environ["FAULT_CASE"])]
    count = max(few, int(os.environ.get("FAULT_COUNT") or 0))
    generator = random.Random(int(os.environ.get("FAULT_SEED") or 0))
    return [generator.randrange(2**32) for _ in range(count)]


def sampled(few: int, many: int) -> list[Any]:
    """`seeds(many)` as parameters: the suite tries the first `few`, `make faults` all of them."""
    return [
        pytest.param(seed, marks=[] if number < few else [pytest.mark.slow])
        for number, seed in enumerate(seeds(many))
    ]


def again(case: int, words: str) -> str:
    """The line that tries one case again, in the tests that `-k words` selects."""
    return f'FAULT_CASE={case} make faults ARGS="-k {words}"'
