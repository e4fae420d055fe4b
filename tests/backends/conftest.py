"""Backends of other packages, installed as anybody would install them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mirror.conftest import wait_for, wide_awake_mirror
from tests.once import made_once

__all__ = ["wait_for", "wide_awake_mirror"]

HERE = Path(__file__).resolve().parent


def install(target: Path, *packages: Path) -> None:
    """Install packages from their folders, of which copies are built, into one for PYTHONPATH."""
    copies = [target.with_name(f"{package.name}-source") for package in packages]
    for package, copy in zip(packages, copies, strict=True):
        shutil.copytree(package, copy)
    options = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    options += ["--target", str(target), *map(str, copies)]
    command = [sys.executable, "-m", "pip", "install", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the packages with the backends jsonl, blocked and down are installed."""

    def make(folder: Path) -> None:
        install(folder / "site", HERE / "jsonl", HERE / "faulty")

    return made_once(tmp_path_factory, "packages", make) / "site"


@pytest.fixture
def installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The packages are there, in this process and in those that it starts."""
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", f"{site}:{HERE.parent.parent}")
    return site
