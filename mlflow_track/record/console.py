"""Lines for a person, who may be gone: a closed console must not end a training."""

from __future__ import annotations

import contextlib
import sys


def is_terminal() -> bool:
    """Whether somebody may be looking."""
    try:
        return sys.stderr.isatty()
    except (AttributeError, ValueError):
        return False


def say(line: str, end: str = "\n") -> None:
    """Print to stderr if there still is one."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        print(line, end=end, file=sys.stderr, flush=True)
