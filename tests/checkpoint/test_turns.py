"""One call of a run's checkpoints at a time: threads, signal handlers, and saves in flight."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import mlflow_track as mt
from mlflow_track.checkpoint.disk.store import CheckpointStore
from mlflow_track.checkpoint.state import load
from tests import forked

Script = Callable[..., subprocess.CompletedProcess[str]]


def state_of(value: float) -> dict[str, Any]:
    return {f"k{number}": torch.full((40_000,), float(value)) for number in range(8)}


def states_in(run: mt.Run) -> dict[int, set[float]]:
    """By step the values that its checkpoint holds."""
    store = CheckpointStore(run.path / "checkpoints")
    found = {}
    for checkpoint in store.list():
        state = load.read(checkpoint)["state"]
        found[checkpoint.step] = {float(v) for t in state.values() for v in (t.min(), t.max())}
    return found


@pytest.mark.parametrize("backend", ["local", "off"])
def test_saves_of_threads_take_turns_and_hold_one_state_each(backend: str) -> None:
    rounds, workers, errors = 6, 3, []
    with mt.start_run(backend=backend) as run:
        checkpoints = run.checkpoints()
        barrier = threading.Barrier(workers)

        def work(offset: int) -> None:
            for number in range(rounds):
                step = workers * number + offset
                barrier.wait(30)
                try:
                    checkpoints.save(step, state_of(step))
                    checkpoints.due(step)
                except Exception as error:
                    errors.append(error)

        threads = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        checkpoints.wait()
    assert not errors
    if backend == "local":
        assert states_in(run) == {step: {float(step)} for step in range(rounds * workers)}


class Interrupted:
    """An object whose `state_dict` is interrupted by a signal."""

    def __init__(self) -> None:
        self.is_armed = True

    def state_dict(self) -> dict[str, Any]:
        if self.is_armed:
            self.is_armed = False
            signal.raise_signal(signal.SIGUSR2)
        return {"n": 1}

    def load_state_dict(self, state: Any) -> None: ...


@contextlib.contextmanager
def handler(work: Callable[[], object]) -> Iterator[None]:
    previous = signal.signal(signal.SIGUSR2, lambda *_: work())
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR2, previous)


VERBS: dict[str, Callable[[Any, Any], object]] = {
    "save": lambda c, run: c.save(9, state_of(9)),
    "step": lambda c, run: c.step(9, state_of(9)),
    "due": lambda c, run: c.due(9),
    "wait": lambda c, run: c.wait(),
    "list": lambda c, run: c.list(),
    "load": lambda c, run: c.load(),
    "restore": lambda c, run: c.restore({**state_of(0), "z": 0}),
    "run.checkpoints": lambda c, run: run.checkpoints(),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_call_of_a_signal_handler_inside_step_is_refused(verb: str) -> None:
    refused: list[str] = []
    with mt.start_run() as run:
        checkpoints = run.checkpoints(save=mt.EverySteps(1))

        def call() -> None:
            try:
                VERBS[verb](checkpoints, run)
            except RuntimeError as error:
                refused.append(str(error))

        with handler(call):
            assert checkpoints.step(1, {**state_of(1), "z": Interrupted()})
        checkpoints.wait()
        with handler(call):
            assert checkpoints.step(2, {**state_of(2), "z": 0})
            signal.raise_signal(signal.SIGUSR2)  # Between two calls it is as good as any other.
    assert len(refused) == 1 and "inside checkpoints.step of the same thread" in refused[0]


@pytest.mark.parametrize("exits", [True, False])
def test_a_run_that_a_signal_handler_ends_inside_step_is_ended_after_it(exits: bool) -> None:
    run = mt.start_run()
    checkpoints = run.checkpoints(save=mt.EverySteps(1))
    checkpoints.step(1, state_of(1))

    def end() -> None:
        run.finish("KILLED", "told to")
        if exits:
            sys.exit(3)

    with handler(end), pytest.raises(SystemExit if exits else RuntimeError) as raised:
        checkpoints.step(2, {**state_of(2), "z": Interrupted()})
    assert exits or "the run was ended inside checkpoints.step" in str(raised.value)
    with pytest.raises(RuntimeError, match="are closed"):
        checkpoints.save(3, state_of(3))
    assert mt.load_run(run.path).status == "KILLED" and states_in(run) == {1: {1.0}}
    # Lock and writer are gone: the run can be continued.
    with mt.start_run(resume=run.id) as again:
        assert again.checkpoints().restore(state_of(0)) == 2


WAITS = """
import os, signal, sys, threading, time, torch, mlflow_track as mt
run = mt.start_run(directory="runs")
c = run.checkpoints()
c.save(1, {"w": torch.zeros(10)}); c.wait()
writer = c._commits._saver._writer.pid
print(writer, flush=True)
os.kill(writer, signal.SIGSTOP)
c.save(2, {"w": torch.zeros(10)})
threading.Thread(target=c.wait, daemon=True).start()
time.sleep(0.2)
for seconds in (0.3, 0.6):
    threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM)).start()
c.step(3, {"w": torch.zeros(10)})
print("not ended", flush=True)
"""


def test_a_call_that_waits_for_its_turn_is_ended_by_signals(tmp_path: Path) -> None:
    with forked.Popen(
        [sys.executable, "-c", WAITS],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(forked.ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        writer = int(process.stdout.readline())
        try:
            rest = process.stdout.read()
            assert process.wait(30) == -signal.SIGTERM and not rest
        finally:
            os.kill(writer, signal.SIGCONT)


@pytest.mark.parametrize("to", [1, None])
def test_restore_settles_the_save_in_flight_first(to: int | None) -> None:
    state = {"w": torch.zeros(1000)}
    with mt.start_run() as run:
        checkpoints = run.checkpoints()
        state["w"].fill_(1.0)
        checkpoints.save(1, state)
        checkpoints.wait()
        writer: Any = checkpoints._commits._saver._writer
        state["w"].fill_(2.0)
        os.kill(writer.pid, signal.SIGSTOP)
        again = threading.Timer(0.3, os.kill, (writer.pid, signal.SIGCONT))
        again.start()
        checkpoints.save(2, state)
        assert not (run.path / "checkpoints/step-000000002").exists()
        assert checkpoints.restore(state, step=to) == (2 if to else 3)
        again.join()
        assert state["w"].eq(1.0 if to else 2.0).all()
        assert (run.path / "checkpoints/rewound-1/step-000000002").exists() == (to is not None)
        state["w"].fill_(7.0)
        checkpoints.save(2, state)  # Of the future that was given up, nothing is a checkpoint.
        checkpoints.wait()
        checkpoints.restore(state, step=2)
        assert state["w"].eq(7.0 if to else 2.0).all()


def test_an_error_of_the_save_in_flight_is_raised_after_a_restore_as_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mlflow_track.checkpoint.disk import publish

    state = {"w": torch.zeros(10)}
    with mt.start_run() as run:
        monkeypatch.delattr(os, "memfd_create")  # In this process, where it can be forced.
        checkpoints = run.checkpoints()
        checkpoints.save(1, state)
        checkpoints.wait()
        usage = publish.shutil.disk_usage(".")
        with monkeypatch.context() as patch:
            patch.setattr(publish.shutil, "disk_usage", lambda path: usage._replace(free=10))
            checkpoints.save(2, state)
            assert checkpoints.restore(state) == 2
            assert set(checkpoints.load()) == {"w"}
        with pytest.raises(OSError, match="but only"):
            checkpoints.wait()
        checkpoints.wait()
