"""What the suite costs: CPU-seconds of each folder of tests, with all the processes it starts.

A pytest plugin. Each process of a parallel run measures its own tests, and the reports carry the
numbers to the one that prints them.
"""

from __future__ import annotations

import os
import resource
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests import forked

# What the tests of the dearest folders may cost at most.
BUDGETS: dict[str, float] = {
    "run": 80,
    "mirror": 80,
    "checkpoint": 80,
    "test_docs.py": 80,
    "train": 50,
    "record": 50,
    "cli": 45,
    "backends": 40,
    "browser": 35,
    "damage": 25,
}
_PROPERTY = "cpu_seconds"
_costs: Counter[str] = Counter()
_mark = 0.0


def cpu_seconds() -> float:
    """What this process, the children it waited for, and those of the fork server have used."""
    return sum(os.times()[:4]) + forked.cpu_seconds()


def folder_of(nodeid: str) -> str:
    """The part of the suite that a test belongs to: a folder of tests/, or a file there."""
    words = nodeid.partition("::")[0].split("/")
    return words[1] if len(words) > 1 else words[0]


def lines_of(costs: Counter[str], budgets: Mapping[str, float], whole: float) -> list[str]:
    """One line for each folder, the dearest first; what is of no test is in the last."""
    lines = []
    for folder, seconds in costs.most_common():
        budget = budgets.get(folder)
        limit = "" if budget is None else f" of {budget:g}"
        over = "  OVER" if budget is not None and seconds > budget else ""
        lines.append(f"{seconds:8.1f}{limit:<8} {folder}{over}")
    rest = whole - sum(costs.values())
    return [*lines, f"{rest:8.1f}{'':<8} start, collection, servers", f"{whole:8.1f}{'':<8} in all"]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[Any]:
    global _mark
    report = yield
    if call.when == "teardown":
        # From the end of the test before, so that fixtures of more than one test count as well.
        before, _mark = _mark, cpu_seconds()
        report.user_properties.append((_PROPERTY, _mark - before))
    return report


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    global _mark
    _mark = cpu_seconds()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "teardown":
        _costs[folder_of(report.nodeid)] += dict(report.user_properties).get(_PROPERTY, 0.0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _costs:
        terminalreporter.section("CPU-seconds, with all processes")
        for line in lines_of(_costs, BUDGETS, _whole()):
            terminalreporter.line(line)


def _whole() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)
