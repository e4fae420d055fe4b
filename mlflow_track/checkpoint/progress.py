"""What a person at a terminal sees while a run that ends waits for its last checkpoint."""

from __future__ import annotations

from collections.abc import Callable

from mlflow_track.record.console import is_terminal, say


def progress_on_terminal(step: int | None) -> Callable[[int, int], None] | None:
    """Shows the bytes written of the save of `step` on one line; None where nobody looks."""
    if step is None or not is_terminal():
        return None

    def show(written: int, total: int) -> None:
        text = f"writing step {step}: {written / 1e6:,.0f} of {total / 1e6:,.0f} MB"
        say(f"\r{text}\x1b[K", end="")
        if written >= total:
            say("\r\x1b[K", end="")

    return show
