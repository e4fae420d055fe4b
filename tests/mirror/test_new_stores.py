"""Do runs that start at once on a database that does not exist yet all arrive there whole?"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlflow_track.backends.mlflow import creation
from mlflow_track.backends.mlflow.creation import one_at_a_time
from mlflow_track.backends.protocol import Unavailable
from tests import forked
from tests.mirror.conftest import ROOT, history, runs_of

pytestmark = pytest.mark.faults

# `make faults` starts as many as an array of jobs does.
RUNS = 20 if int(os.environ.get("FAULT_COUNT") or 0) > 1 else 4
CODE = """
import mlflow_track as mt
with mt.start_run(experiment="e", run_name="r") as run:
    for step in range(20):
        run.log_metric("a", step / 3, step=step)
assert run.sync_status().is_complete, run.sync_status()
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def new_store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/new.db"
    return request.getfixturevalue("postgres").uri("new_store")


@pytest.mark.xdist_group("server")
@pytest.mark.timeout(900)
def test_runs_that_start_at_once_on_a_new_store_all_arrive(new_store, tmp_path):
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "MLFLOW_TRACKING_URI": new_store,
        "MLFLOW_TRACK_FINISH_TIMEOUT": "500",
        "MLFLOW_TRACK_SYSTEM_METRICS": "0",
    }
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(
                # Forked, and so are their mirrors: an import of MLflow costs each of them seconds.
                forked.Popen([sys.executable, "-c", CODE], cwd=tmp_path, env=environment)
            )
            for _ in range(RUNS)
        ]
        assert [process.wait(800) for process in processes] == [0] * RUNS
    found = runs_of(new_store, "e")
    assert [run.info.status for run in found] == ["FINISHED"] * RUNS
    for run in found:
        assert history(new_store, run.info.run_id, "a") == [(s, s / 3) for s in range(20)]


@contextlib.contextmanager
def held(uri: str) -> Iterator[None]:
    """Another thread holds the lock of a database."""
    is_held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with one_at_a_time(uri):
            is_held.set()
            release.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    assert is_held.wait(60)
    try:
        yield
    finally:
        release.set()
        thread.join()


@pytest.mark.xdist_group("server")
def test_a_database_is_opened_by_one_at_a_time(new_store, monkeypatch):
    monkeypatch.setattr(creation, "_MOST_SECONDS", 0.3)
    with held(new_store):
        with pytest.raises(Unavailable, match="another process"), one_at_a_time(new_store):
            pass
    with one_at_a_time(new_store), contextlib.suppress(ZeroDivisionError):
        raise ZeroDivisionError
    with one_at_a_time(new_store):
        pass


@pytest.mark.parametrize("uri", ["http://h:1", "sqlite:////missing/folder/x.db", "sqlite://"])
def test_nothing_is_held_where_there_is_nothing_to_make(uri):
    with one_at_a_time(uri), one_at_a_time(uri):
        pass


def test_a_file_system_without_locks_opens_a_database_all_the_same(tmp_path, monkeypatch):
    def flock(*_: Any) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(creation.fcntl, "flock", flock)
    with one_at_a_time(f"sqlite:///{tmp_path}/x.db"):
        pass
    assert list(tmp_path.iterdir()) == []
