"""What does a mirror that waits hold: the run, memory, a process?"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import mlflow_track as mt
from mlflow_track.backends.mlflow.backend import MlflowBackend
from mlflow_track.cli import main
from mlflow_track.mirror import process as process_module
from mlflow_track.mirror.companion import mirror_environment
from mlflow_track.mirror.follower import Follower
from mlflow_track.mirror.outage import End
from mlflow_track.mirror.process import AlreadyMirrored, sync_run
from mlflow_track.mirror.state import MirrorState
from mlflow_track.record import layout
from mlflow_track.record.lock import take_lock
from mlflow_track.settings import read_settings
from tests.mirror.conftest import ROOT, history, only_run
from tests.mirror.faults import FaultProxy
from tests.servers.mlflow_server import MlflowServer

DEAD = "http://127.0.0.1:9"
ROWS = [(step, step / 3) for step in range(20)]


@pytest.fixture
def run() -> mt.Run:
    with mt.start_run(experiment="e", backend="local") as run:
        for step, value in ROWS:
            run.log_metric("a", value, step=step)
    return run


def backend_to(uri: str) -> MlflowBackend:
    backend = MlflowBackend()
    backend.options = {"tracking_uri": uri}
    return backend


@pytest.fixture
def waiting(run: mt.Run, wait_for: Callable[..., Any]) -> Iterator[threading.Thread]:
    """The mirror of the run, which has ended, in a thread of this process: its server is dead."""
    follower = Follower(
        *(run.path, "mlflow", lambda _: backend_to(DEAD), lambda _: None, 1),
        *(End(time.time()), 600.0),
    )
    thread = threading.Thread(target=follower.follow, daemon=True)
    thread.start()
    wait_for(lambda: MirrorState.read(run.path, "mlflow").error)
    yield thread
    follower._linger = 0.0
    thread.join(30)
    assert not thread.is_alive()


def test_sync_sends_elsewhere_what_a_mirror_waits_with_and_the_mirror_ends(run, waiting, store):
    status = sync_run(run.path, "mlflow", backend_to(store))
    assert status.is_complete
    found = only_run(store, "e")
    assert found.info.status == "FINISHED" and history(store, found.info.run_id, "a") == ROWS
    waiting.join(60)
    assert not waiting.is_alive()
    # Nothing leads back to the dead server.
    assert MirrorState.read(run.path, "mlflow").destination == store


def test_while_it_waits_the_doctor_names_the_process(run, waiting):
    result = CliRunner().invoke(main, ["doctor", run.id, "--tracking-uri", DEAD])
    assert f"process {os.getpid()} waits for the server" in result.output, result.output


def test_a_mirror_that_sends_does_not_let_go(run, store, monkeypatch):
    # The negative control: who holds the lock and has no error is at work.
    (run.path / layout.MIRROR).mkdir(exist_ok=True)
    lock = take_lock(layout.mirror_lock(run.path, "mlflow"))
    MirrorState(updated=time.time()).write(run.path, "mlflow")
    try:
        with pytest.raises(AlreadyMirrored):
            sync_run(run.path, "mlflow", backend_to(store))
        # Not sent is no success, and not what the run's own mirror is about to do.
        words = ["sync", run.id, "--tracking-uri", store]
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 1 and "not to sqlite" in result.output, result.output
    finally:
        os.close(lock)


@pytest.mark.parametrize("seconds", [60.0, 0.0])
def test_a_mirror_that_has_sent_nothing_yet_is_waited_for(run, store, monkeypatch, seconds):
    # It has the lock in its first attempt; without the wait, the negative control, sync gives up.
    monkeypatch.setattr(process_module, "_MOST_CALL_SECONDS", seconds)
    (run.path / layout.MIRROR).mkdir(exist_ok=True)
    lock = take_lock(layout.mirror_lock(run.path, "mlflow"))
    timer = threading.Timer(0.5, os.close, [lock])
    timer.start()
    if seconds:
        assert sync_run(run.path, "mlflow", backend_to(store)).is_complete
    else:
        with pytest.raises(AlreadyMirrored):
            sync_run(run.path, "mlflow", backend_to(store))
    timer.join()


def start_mirror(run: mt.Run, uri: str, **variables: str) -> subprocess.Popen[bytes]:
    """The process as a trainer starts it, in an interpreter that has imported nothing."""
    settings = read_settings(backend="mlflow", tracking_uri=uri)
    variables = {"PYTHONPATH": str(ROOT), "MLFLOW_TRACK_MIRROR_NICE": "0", **variables}
    with open(run.path / layout.MIRROR_LOG, "ab") as log:
        return _popen(
            [sys.executable, "-m", "mlflow_track.mirror", str(run.path), "mlflow"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=log,
            cwd=run.path,
            env={**mirror_environment(settings), **variables},
            start_new_session=True,
        )


# Not the one that the tests put in its place: what is forked has the memory of its parent.
_popen = subprocess.Popen


def memory_of(pid: int) -> float:
    """The memory of a process in MB, of which several may share a part."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


def ends(process: subprocess.Popen[bytes]) -> None:
    """End it by its id, with its pipe."""
    process.kill()
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


MOST_MB = 30.0


def acknowledged(run: mt.Run) -> int:
    return MirrorState.read(run.path, "mlflow").position(layout.METRICS).acknowledged


def test_a_mirror_that_waits_from_the_start_is_small(run, wait_for):
    process = start_mirror(run, DEAD)
    try:
        wait_for(lambda: MirrorState.read(run.path, "mlflow").error)
        time.sleep(1)
        memory = memory_of(process.pid)
        assert memory <= MOST_MB, memory
    finally:
        ends(process)


@pytest.mark.xdist_group("server")
@pytest.mark.slow
def test_a_mirror_whose_server_dies_becomes_small_and_sends_the_rest_later(
    server: MlflowServer, wait_for: Callable[..., Any]
) -> None:
    proxy = FaultProxy(server.port)
    with mt.start_run(experiment="dies", backend="local") as run:
        run.log_metric("a", 0.0, step=0)
        process = start_mirror(run, proxy.uri)
        try:
            wait_for(
                lambda: MirrorState.read(run.path, "mlflow").position("metrics.csv").acknowledged
            )
            large = memory_of(process.pid)
            proxy.become("refuse")
            run.log_metric("a", 1.0, step=1)
            wait_for(lambda: memory_of(process.pid) <= MOST_MB)
            run.finish()
            assert process.stdin is not None
            process.stdin.close()
            time.sleep(1)
            assert process.poll() is None
            proxy.become("pass")
            assert process.wait(200) == 0
        finally:
            ends(process)
            proxy.close()
    assert large > 100
    found = only_run(server.uri, "dies")
    assert found.info.status == "FINISHED"
    assert history(server.uri, found.info.run_id, "a") == [(0, 0.0), (1, 1.0)]
    # The user was told once that it is away, and once that it is back.
    log = (run.path / layout.LOG).read_text()
    assert log.count("cannot be reached") == log.count("is reachable again") == 1


@pytest.mark.faults
@pytest.mark.parametrize("mode", ["refuse", "hang", "drip", "500", "403"])
def test_no_process_is_left_where_it_may_not_linger(run, wait_for, mode):
    proxy = FaultProxy(9)
    proxy.become(mode)
    process = start_mirror(
        run, proxy.uri, MLFLOW_TRACK_MIRROR_LINGER="0", MLFLOW_TRACK_FINISH_TIMEOUT="0"
    )
    try:
        # One that cannot reach its server waits without holding the lock.
        wait_for(layout.mirror_lock(run.path, "mlflow").exists)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(15) == 0
    finally:
        ends(process)
        proxy.close()


def test_a_call_that_does_not_return_ends_with_the_time_to_linger(run, monkeypatch, wait_for):
    monkeypatch.setattr(process_module, "_GRACE_SECONDS", 1.0)
    monkeypatch.setenv("MLFLOW_TRACK_MIRROR_LINGER", "0")
    monkeypatch.setenv("MLFLOW_TRACK_FINISH_TIMEOUT", "0")
    monkeypatch.setattr(process_module, "_be_unobtrusive", lambda: None)
    monkeypatch.setattr(process_module, "_trainer_ended", lambda seconds: True)
    release = threading.Event()

    class Blocked(MlflowBackend):
        def open(self, *_: Any) -> Any:
            release.wait()

    began = time.monotonic()
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
    assert process_module.mirror_run(run.path, ["mlflow"], lambda _: Blocked()) is None
    assert time.monotonic() - began < 20
    # One that only waits is hardly ever awake: many may do so for an hour.
    assert resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - before < 20
    release.set()
