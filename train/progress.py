"""Shows progress while the job runs: one live line on a terminal, plain lines otherwise.

training.log gets the plain lines in either case.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import mlflow_track as mt

_PLAIN_SECONDS = 10.0


class Progress:
    """Use as a context; `update` may be called every step.

    Args:
        first_step: The first step of the job.
        max_steps: The number of steps of the whole run.
        run: Says the plain lines.
        is_shown: Whether this process may draw on the terminal: of several ranks only one.
    """

    def __init__(self, first_step: int, max_steps: int, run: mt.Run, is_shown: bool = True) -> None:
        self._is_shown = is_shown
        self._first, self._last, self._run = first_step, max_steps, run
        self._said = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        if self._is_shown and sys.stderr.isatty():
            self._bar = _make_bar()
            self._bar.start()
            self._task = self._bar.add_task("", total=self._last, completed=self._first, facts="")
        return self

    def __exit__(self, *unused: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, step: int, metrics: dict[str, float]) -> None:
        """`step` is done."""
        facts = (
            f"loss {metrics['train/loss']:.3f}  lr {metrics['train/lr']:.2e}  "
            f"{metrics['perf/tokens_per_second']:,.0f} tokens/s"
        )
        if self._bar is not None:
            self._bar.update(self._task, completed=step + 1, facts=facts)
        if time.monotonic() - self._said >= _PLAIN_SECONDS:
            self._said = time.monotonic()
            line = f"step {step}/{self._last - 1}  {facts}"
            self._run.print(line, is_shown=self._bar is None)


def _make_bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("step {task.completed}/{task.total}"),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[facts]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
