"""Prints lines to a console that may be closed: that must not end a training."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable

from mlflow_track.wording import size_text


def occupy_standard_descriptors() -> None:
    """Let no file get a number below 3, where libraries in C write: what is closed leads nowhere.

    Jobs of cron and daemons start with them closed.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def is_terminal() -> bool:
    """Whether stderr is a terminal."""
    try:
        return sys.stderr.isatty()
    except (AttributeError, ValueError):
        return False


def say(line: str, end: str = "\n") -> None:
    """Print to stderr if there still is one."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        if sys.stderr is not sys.__stderr__:
            print(line, end=end, file=sys.stderr, flush=True)
            return
        sys.stderr.flush()
        text = f"{line}{end}".encode(sys.stderr.encoding, sys.stderr.errors or "strict")
        # Past Python's buffer: what cannot be written would stay there, and at its end Python would
        # fail to write it again and turn the exit status of a whole training into 120.
        while text:
            text = text[os.write(sys.stderr.fileno(), text) :]


def progress_on_terminal(step: int | None) -> Callable[[int, int], None] | None:
    """Shows the bytes written of the save of `step` on one line; None where nobody looks."""
    if step is None or not is_terminal():
        return None

    def show(written: int, total: int) -> None:
        text = f"writing step {step}: {size_text(written)} of {size_text(total)}"
        say(f"\r{text}\x1b[K", end="")
        if written >= total:
            say("\r\x1b[K", end="")

    return show
