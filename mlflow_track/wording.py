"""Counts and sizes as people read them."""

from __future__ import annotations

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def count_text(count: int, noun: str) -> str:
    """1 run, 2 runs, 1,000 runs.

    Args:
        count: How many.
        noun: What is counted, in the singular; its plural must end in s.
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def size_text(size: int) -> str:
    """A number of bytes: 0 B, 999 B, 1.5 kB, 2.0 GB."""
    if size < 1000:
        return f"{size} B"
    value, unit = float(size), 0
    # What would be rounded to 1000.0 belongs to the next unit.
    while value >= 999.95 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:,.1f} {_UNITS[unit]}"
