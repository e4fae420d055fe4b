"""What tests see of the machine: no habits of the user, no ignored signals; and what it lacks.

A plugin of pytest: `conftest.py` takes its hooks and fixtures.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator
from typing import NoReturn

import pytest

# Where programs and libraries are, what language and time zone, how much of the hardware; all else
# (the user's MLflow server, Slurm's ranks, a proxy, the way git shall work) is none of a test's.
_KEPT = {
    *("PATH", "LD_LIBRARY_PATH", "LD_PRELOAD", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE"),
    *("TMPDIR", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "CI", "OMP_NUM_THREADS"),
    # What these tests set themselves.
    *("HOME", "GIT_CONFIG_NOSYSTEM"),
}
_KEPT_PREFIXES = (
    "SUITE_",
    "LC_",
    "PYTEST_",
    "COV_",
    "COVERAGE_",
    "FAULT_",
    "ATEN_",
    "CUDA_",
    "NVIDIA_",
)

_CAN_BE_IGNORED = (
    *(signal.SIGHUP, signal.SIGINT, signal.SIGQUIT),
    *(signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2),
)


def foreign_variables() -> list[str]:
    """The names in the environment that no test may depend on."""
    return [n for n in os.environ if n not in _KEPT and not n.startswith(_KEPT_PREFIXES)]


def lack(what: str) -> NoReturn:
    """Skip the test because this machine lacks something; in CI, fail.

    Args:
        what: What is missing, and how it is installed.
    """
    if os.environ.get("CI") == "true":
        pytest.fail(what)
    pytest.skip(what)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    # Here and not at import: pytest has read what it wants of NO_COLOR and COLUMNS. The processes
    # that xdist starts after this get a clean environment, and the home of the first one.
    for name in foreign_variables():
        del os.environ[name]
    if not hasattr(session.config, "workerinput"):
        home = tempfile.mkdtemp(prefix="home-of-tests-")
        session.config.add_cleanup(lambda: shutil.rmtree(home, ignore_errors=True))
        os.environ |= {"HOME": home, "GIT_CONFIG_NOSYSTEM": "1"}


@pytest.fixture(scope="session", autouse=True)
def as_from_a_terminal(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The tests' children start with no signal ignored, and in nobody's repository.

    What was inherited as ignored (nohup, cron, `&` in a script) gets a handler that does nothing,
    not the default: handlers end with exec, and this process still ignores what it should.
    """
    os.environ["GIT_CEILING_DIRECTORIES"] = str(tmp_path_factory.getbasetemp().resolve().parent)
    for number in _CAN_BE_IGNORED:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """SIGINT to this process raises KeyboardInterrupt."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = Counter(
        report.longrepr[2].removeprefix("Skipped: ")
        for report in terminalreporter.stats.get("skipped", [])
    )
    if skipped:
        reasons = "; ".join(f"{number}: {reason}" for reason, number in skipped.most_common())
        terminalreporter.write_line(f"skipped {skipped.total()} tests ({reasons})")
