"""Whatever the tests start ends with them: what outlives the suite is a failure, and is ended.

A pytest plugin. Each process that the suite starts, directly or not, carries the session's name in
its environment, however it is detached; so those of another suite on this machine do not count.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.forked import SESSION, ForkServer

# A mirror that has just been told that its trainer ended may need this long to notice.
_GRACE_SECONDS = 5.0
_server = pytest.StashKey[ForkServer]()
_left = pytest.StashKey[dict[int, str]]()


def processes_of(session: str) -> dict[int, str]:
    """The command lines, by process id, of the live processes that `session` has started."""
    mark, found = f"{SESSION}={session}".encode(), {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                words = (folder / "cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ")
                found[int(folder.name)] = words.decode(errors="replace")
        except OSError:
            continue  # it has ended, or is another user's
    return found


def end_processes_of(session: str, grace_seconds: float) -> dict[int, str]:
    """End what is alive after so many seconds; returns what that was."""
    deadline = time.monotonic() + grace_seconds
    while (left := processes_of(session)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in left:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    return left


def pytest_configure(config: pytest.Config) -> None:
    # The workers of a parallel run have it from the process that starts them.
    if not hasattr(config, "workerinput"):
        config.stash[_server] = ForkServer()
        os.environ[SESSION] = config.stash[_server].address


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[Any]:
    """After the fixtures of the session and the workers, before the summary."""
    result = yield
    if (server := session.config.stash.get(_server, None)) is not None:
        server.stop()
        left = end_processes_of(server.address, _GRACE_SECONDS)
        session.config.stash[_left] = left
        if left:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
    return result


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if left := terminalreporter.config.stash.get(_left, {}):
        terminalreporter.section("processes that outlived the tests", red=True, bold=True)
        for pid, command in left.items():
            terminalreporter.line(f"{pid}: {command}", red=True)


def pytest_unconfigure(config: pytest.Config) -> None:
    # Where there was no session, nothing has stopped it.
    if (server := config.stash.get(_server, None)) is not None:
        server.stop()
