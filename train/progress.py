"""Shows progress while the job runs: one live line on a terminal, plain lines otherwise.

training.log gets the plain lines in either case.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import mlflow_track as mt

_PLAIN_SECONDS = 10.0
# On the live line: two numbers of steps, the bar, the time.
_BAR, _BESIDE_THE_FACTS = 10, 42


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
        self._memory: list[str] = []
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
        """`step` is done; `metrics` is its row."""
        facts = [
            f"loss {metrics['train/loss']:.3f}",
            f"{metrics['perf/tokens_per_second']:,.0f} tokens/s",
            f"data {metrics['perf/data_share']:.0%}",
            f"saves {metrics['perf/save_share']:.0%}",
        ]
        if "perf/mfu" in metrics:
            facts.append(f"MFU {metrics['perf/mfu']:.0%}")
        if "perf/peak_memory_mb" in metrics:
            self._memory = [f"peak {metrics['perf/peak_memory_mb']:,.0f} MB"]
        facts += [*self._memory, f"lr {metrics['train/lr']:.2e}"]
        if self._bar is not None:
            shown = _fitting(facts, self._bar.console.width - _BESIDE_THE_FACTS)
            self._bar.update(self._task, completed=step + 1, facts=shown)
        if time.monotonic() - self._said >= _PLAIN_SECONDS:
            self._said = time.monotonic()
            line = "  ".join([f"step {step}/{self._last - 1}", *facts])
            self._run.print(line, is_shown=self._bar is None)


def _fitting(facts: list[str], width: int) -> str:
    """As many of the facts as there are columns for."""
    line = facts[0]
    for fact in facts[1:]:
        if len(line) + 2 + len(fact) <= width:
            line += f"  {fact}"
    return line


def _make_bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("step {task.completed}/{task.total}"),
        BarColumn(bar_width=_BAR),
        TextColumn("{task.fields[facts]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
