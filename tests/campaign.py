"""How many cases a fault campaign tries, and which: few in CI, many with `make faults`."""

from __future__ import annotations

import os
import random


def seeds(few: int) -> list[int]:
    """Seeds of a campaign: `few` of them, or FAULT_COUNT; they follow from FAULT_SEED."""
    count = int(os.environ.get("FAULT_COUNT") or few)
    generator = random.Random(int(os.environ.get("FAULT_SEED") or 0))
    return [generator.randrange(2**32) for _ in range(count)]
