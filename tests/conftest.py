"""Fixtures that every test may use: no test sees the environment's backend or the user's runs."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from tests.environment import (
    as_from_a_terminal,
    ctrl_c,
    pytest_sessionstart,
    pytest_terminal_summary,
)
from tests.servers.fixtures import postgres, postgres_server, s3, sqlite_server

__all__ = [
    "as_from_a_terminal",
    "ctrl_c",
    "postgres",
    "postgres_server",
    "pytest_sessionstart",
    "pytest_terminal_summary",
    "s3",
    "sqlite_server",
]

# The workers of a parallel run share the cores: threads of torch that wait for each other on a
# core that somebody else has cost more than they bring. Read when torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# What sends runs elsewhere, or says that this process is one of several.
NOT_OURS = ("MLFLOW_", "EXPERIMENT_NAME", "RANK", "WORLD_SIZE", "NODE_RANK", "LOCAL_")
NOT_OURS += ("SLURM_", "OMPI_", "PMI_")

# How long an example takes says something of the machine, nothing of the code.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test works in a folder of its own, with none of our variables set."""
    for name in list(os.environ):
        if name.startswith(NOT_OURS):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run_script(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a Python script in a process of its own; it finds the packages of this checkout."""
    root = Path(__file__).resolve().parent.parent

    def run(code: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(root), **variables},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    return run
