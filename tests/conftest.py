"""Fixtures that every test may use: no test sees the environment's backend or the user's runs."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from hypothesis import settings

from tests import forked
from tests.environment import (
    as_from_a_terminal,
    ctrl_c,
    pytest_sessionstart,
    pytest_terminal_summary,
)
from tests.servers.fixtures import (
    migrated_database,
    postgres,
    postgres_server,
    s3,
    sqlite_server,
    store,
)

pytest_plugins = ["tests.leftovers", "tests.cpu_budget"]
__all__ = [
    "as_from_a_terminal",
    "ctrl_c",
    "migrated_database",
    "postgres",
    "postgres_server",
    "pytest_sessionstart",
    "pytest_terminal_summary",
    "s3",
    "sqlite_server",
    "store",
]

# What sends runs elsewhere, or says that this process is one of several.
NOT_OURS = ("MLFLOW_", "EXPERIMENT_NAME", "RANK", "WORLD_SIZE", "NODE_RANK", "LOCAL_")
NOT_OURS += ("SLURM_", "OMPI_", "PMI_")

# How long an example takes says something of the machine, nothing of the code. One failure is
# reported as what it is: several would come as a group, which no negative control waits for.
settings.register_profile("any machine", deadline=None, report_multiple_bugs=False)
settings.load_profile("any machine")


def _forget_variables() -> None:
    for name in list(os.environ):
        if name.startswith(NOT_OURS):
            del os.environ[name]


# Now: fixtures of a module or a session come before those of a test.
_forget_variables()


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Each test works in a folder of its own, with none of our variables set."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    # MLflow sets one where it is told a URI: what the next test starts would go there.
    _forget_variables()


@pytest.fixture(autouse=True)
def forked_mirrors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mirrors, and members of a sweep, that the package starts in this process need no import."""
    monkeypatch.setattr(subprocess, "Popen", forked.PopenOfThePackage)


@pytest.fixture
def run_script(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a Python script in a process of its own; it finds the packages of this checkout."""
    return partial(_run, forked.run, tmp_path)


@pytest.fixture
def run_interpreter(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """As `run_script`, in an interpreter that starts with nothing imported."""
    return partial(_run, subprocess.run, tmp_path)


def _run(
    start: Callable[..., subprocess.CompletedProcess[str]],
    folder: Path,
    code: str,
    *arguments: str,
    **variables: str,
) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(forked.ROOT), os.environ.get("PYTHONPATH")]))
    return start(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, **variables},
        capture_output=True,
        text=True,
        timeout=100,
    )
