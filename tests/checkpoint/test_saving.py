"""A save costs one copy; what happens then to the trainer, the writer or the disk loses nothing."""

import errno
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mlflow_track as mt
from mlflow_track.checkpoint.disk import publish, verify
from mlflow_track.checkpoint.disk.store import CheckpointStore
from mlflow_track.checkpoint.state import load
from mlflow_track.checkpoint.state.flatten import SaveRequest
from mlflow_track.checkpoint.writer import saver, shared_memory
from mlflow_track.checkpoint.writer.outcome import Outcome
from mlflow_track.checkpoint.writer.process import ProcessWriter
from mlflow_track.checkpoint.writer.saver import Saver
from mlflow_track.record.metrics import MetricsFile
from mlflow_track.record.system import memory_groups, memory_of_groups
from tests import forked

Script = Callable[..., subprocess.CompletedProcess[str]]


class Saving:
    """A saver on an empty folder, and what it said."""

    def __init__(self, path: Path) -> None:
        self.said: list[str] = []
        self.store = CheckpointStore(path / "checkpoints")
        self.metrics = MetricsFile(path / "metrics.csv")
        self.announce = self.said.append
        self.saver = Saver(self.store, self.metrics, self.announce)

    def save(self, step: int, state: dict[str, Any]) -> None:
        self.saver.save(SaveRequest(step=step, state=state, manifest={"metrics": {}}))

    def outcome(self) -> Outcome:
        self.saver.wait()
        (outcome,) = self.saver.outcomes()
        return outcome

    def content(self, step: int) -> dict[str, Any]:
        return load.read(self.store.expected(step))["state"]

    def writer_pid(self) -> int:
        assert isinstance(self.saver._writer, ProcessWriter)
        return self.saver._writer.pid


@pytest.fixture
def saving_here(tmp_path: Path) -> Iterator[Saving]:
    made = Saving(tmp_path)
    yield made
    made.saver.close()


def state_of(size: int = 5000) -> dict[str, Any]:
    return {
        "a": torch.randn(size),
        "b": {"half": torch.randn(77, 3, dtype=torch.bfloat16), "n": 3, "int": torch.arange(9)},
        "strided": torch.randn(6, 8).t()[::2],
        "one of a column": torch.randn(6, 2)[:1, 0],
    }


def assert_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert torch.equal(found["a"], expected["a"])
    assert torch.equal(found["b"]["half"], expected["b"]["half"])
    assert torch.equal(found["b"]["int"], expected["b"]["int"]) and found["b"]["n"] == 3
    assert torch.equal(found["strided"], expected["strided"])
    assert torch.equal(found["one of a column"], expected["one of a column"])


def without_memfd(patch: pytest.MonkeyPatch) -> None:
    patch.delattr(os, "memfd_create")


def without_processes(patch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise PermissionError(errno.EPERM, "no more processes")

    patch.setattr(saver, "ProcessWriter", refuse)


def without_memory(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(saver, "available_bytes", lambda: 1000)


def without_direct_writes(patch: pytest.MonkeyPatch) -> None:
    without_memfd(patch)  # In this process, where it can be forced.
    opened = os.open

    def refuse(path: Any, flags: int, *rest: Any, **named: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return opened(path, flags, *rest, **named)

    patch.setattr(os, "open", refuse)


def without_large_direct_writes(patch: pytest.MonkeyPatch) -> None:
    without_memfd(patch)
    write = os.write
    import fcntl

    def refuse(descriptor: int, data: Any) -> int:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return write(descriptor, data)

    patch.setattr(os, "write", refuse)


WAYS = {
    "a process": lambda patch: None,
    "a thread, no memfd": without_memfd,
    "a thread, no process": without_processes,
    "a stream": without_memory,
    "no O_DIRECT": without_direct_writes,
    "O_DIRECT that refuses the write": without_large_direct_writes,
}
SAID = {"a thread, no memfd": "thread", "a thread, no process": "thread", "a stream": "piece by"}


@pytest.mark.parametrize("size", [5000, 10_000_000])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_saving_gives_the_same_file(
    way: str, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        WAYS[way](patch)
        here = Saving(tmp_path)
        states = [state_of(size), state_of(size)]
        for step, state in enumerate(states):
            here.save(step, state)
            assert here.outcome().error is None
        here.saver.close()
    for step, state in enumerate(states):
        assert_equal(here.content(step), state)
        assert here.store.expected(step).manifest.is_finite is True
    assert SAID.get(way, "") in " ".join(here.said)
    if way == "a process":
        assert here.said == []


def test_the_writer_process_holds_no_torch_and_has_a_session_of_its_own(
    saving_here: Saving, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As everywhere but in the suite, where it is forked.
    monkeypatch.setattr(subprocess, "Popen", forked.Popen.__base__)
    state = state_of()
    saving_here.save(0, state)
    assert saving_here.outcome().error is None
    assert_equal(saving_here.content(0), state)
    pid = saving_here.writer_pid()
    assert os.getsid(pid) == pid
    maps = Path(f"/proc/{pid}/maps").read_text()
    assert "libtorch" not in maps and "memfd:checkpoint" in maps


def test_what_changes_after_the_call_does_not_reach_the_file(saving_here: Saving) -> None:
    state = state_of(3_000_000)
    for step in range(3):
        expected = {**state, "a": state["a"].clone()}
        saving_here.save(step, state)
        state["a"].add_(1)
        assert saving_here.outcome().error is None
        assert_equal(saving_here.content(step), expected)


def test_without_the_copy_a_later_change_would_reach_the_file(
    saving_here: Saving, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The negative control: the writer is held until the "copy" has been changed.
    saving_here.save(0, {"a": torch.zeros(3_000_000)})
    saving_here.outcome()
    os.kill(saving_here.writer_pid(), signal.SIGSTOP)
    saving_here.save(1, {"a": torch.zeros(3_000_000)})
    saving_here.saver._memory.tensor[8192] = 1
    os.kill(saving_here.writer_pid(), signal.SIGCONT)
    saving_here.outcome()
    assert saving_here.content(1)["a"].count_nonzero() == 1


def test_numbers_that_are_not_finite_are_found_by_the_writer(saving_here: Saving) -> None:
    kinds = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2]
    bad = [(kind, value) for kind in kinds for value in (float("nan"), float("inf"))]
    bad += [(torch.float8_e4m3fn, float("nan"))]
    for step, (kind, value) in enumerate(bad):
        tensor = torch.ones(300_001)
        tensor[-1] = value
        saving_here.save(step, {"fine": torch.full((9,), 3e38), "t": tensor.to(kind)})
        assert saving_here.outcome().error is None
        assert saving_here.store.expected(step).manifest.is_finite is False, kind
    saving_here.save(99, {"t": torch.arange(255, dtype=torch.uint8).view(torch.int8), "s": "nan"})
    saving_here.outcome()
    assert saving_here.store.expected(99).manifest.is_finite is True


@pytest.mark.parametrize("way", WAYS)
def test_numbers_that_are_not_finite_are_counted_by_tensor(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "CHUNK_BYTES", 1 << 16)
    WAYS[way](monkeypatch)
    here = Saving(tmp_path)
    state, expected = {}, {}
    kinds = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2]
    for number, kind in enumerate(kinds):
        # Some lie in many blocks, some are small or empty.
        for size in (0, 7, 50_000 + number):
            name, tensor = f"t{number}.{size}", torch.zeros(size)
            if size and number != 1:
                tensor[0], tensor[size // 2], tensor[size - 1] = math.nan, -math.inf, math.inf
                expected[name] = [1, 2]
            state[name] = tensor.to(kind)
    here.save(1, state)
    assert here.outcome().error is None
    manifest = here.store.expected(1).content
    assert manifest["not_finite"] == expected and manifest["is_finite"] is False
    here.saver.close()


def test_a_state_that_grows_or_changes_its_types_is_saved_as_it_is(saving_here: Saving) -> None:
    for step, tensor in enumerate(
        [torch.randn(10), torch.randn(3_000_000), torch.randn(10).half(), torch.randn(2, 5)]
    ):
        saving_here.save(step, {"t": tensor})
        assert saving_here.outcome().error is None
        found = saving_here.content(step)["t"]
        assert found.dtype == tensor.dtype and torch.equal(found, tensor)


def test_saves_in_inference_mode_and_outside_follow_each_other(saving_here: Saving) -> None:
    state = {"few": torch.randn(3), "many": {str(i): torch.randn(4) for i in range(20)}}
    for step, is_inside in enumerate([True, False, True, True, False]):
        with torch.inference_mode(is_inside):
            saving_here.save(step, state)
        assert saving_here.outcome().error is None
        found = saving_here.content(step)
        assert torch.equal(found["few"], state["few"])
        assert all(torch.equal(found["many"][name], t) for name, t in state["many"].items())
        for tensor in (state["few"], *state["many"].values()):
            tensor.add_(1)


def test_a_writer_that_dies_is_replaced_and_the_save_repeated(saving_here: Saving) -> None:
    state = state_of(3_000_000)
    saving_here.save(0, state)
    assert saving_here.outcome().error is None
    first = saving_here.writer_pid()
    os.kill(first, signal.SIGSTOP)
    saving_here.save(1, state)
    os.kill(first, signal.SIGKILL)
    assert saving_here.outcome().error is None
    assert saving_here.writer_pid() != first
    assert_equal(saving_here.content(1), state)
    assert "restarted the writer and retrying" in saving_here.said[0]


@pytest.mark.parametrize("number", [np.int64(5), torch.tensor(5)])
def test_a_step_may_be_an_integer_of_numpy_or_torch(number: Any) -> None:
    with mt.start_run() as run:
        checkpoints = run.checkpoints(save=mt.AtSteps(5, 6))
        assert checkpoints.step(number, {"w": 1})
        checkpoints.save(number + 1, {"w": 1})
        assert [c.manifest.step for c in checkpoints.list()] == [5, 6]
        for wrong in (torch.tensor(5.0), torch.ones(2, dtype=torch.int64), True, 5.0):
            with pytest.raises(TypeError, match=r"step must be an integer .*, got"):
                checkpoints.save(wrong, {"w": 1})


def test_a_program_with_thousands_of_open_files_saves(saving_here: Saving) -> None:
    import resource

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(limits[0], 2048), limits[1]))
    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        saving_here.save(0, state_of())
        assert saving_here.outcome().error is None
    finally:
        for descriptor in files:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    saving_here.save(1, state_of())
    assert saving_here.outcome().error is None


def test_a_writer_that_dies_again_and_again_is_an_error_and_the_next_save_works(
    saving_here: Saving, monkeypatch: pytest.MonkeyPatch
) -> None:
    saving_here.save(0, state_of())
    saving_here.outcome()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/bin/false")
        os.kill(saving_here.writer_pid(), signal.SIGKILL)
        saving_here.save(1, state_of())
        outcome = saving_here.outcome()
    assert "ended with" in str(outcome.error)
    saving_here.save(2, state_of())
    assert saving_here.outcome().error is None
    assert [c.step for c in saving_here.store.list()] == [0, 2]


def test_a_full_disk_is_an_error_and_leaves_the_older_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    here = Saving(tmp_path)
    here.save(0, state_of(10))
    assert here.outcome().error is None
    here.saver._memory.reserve(30 << 20)
    # What the file system refuses past this size: a real EFBIG from the kernel, in the writer.
    resource.prlimit(here.writer_pid(), resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    here.save(1, state_of(5_000_000))
    outcome = here.outcome()
    assert outcome.error is not None and outcome.error.errno == errno.EFBIG
    assert [c.step for c in here.store.list()] == [0]
    assert not list(here.store.path.glob(".tmp-*"))
    resource.prlimit(here.writer_pid(), resource.RLIMIT_FSIZE, limits)
    here.save(2, state_of(5_000_000))
    assert here.outcome().error is None
    here.saver.close()


def test_memory_that_the_system_refuses_is_said_with_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, size: int) -> None:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

    monkeypatch.setattr(os, "ftruncate", refuse)
    here = Saving(tmp_path)
    here.save(0, state_of())
    assert here.outcome().error is None
    (said,) = here.said
    assert "File too large" in said and "piece by piece" in said and "are free" not in said
    here.saver.close()


@pytest.mark.parametrize("then", ["a save", "wait", "close", "the end", "a second object"])
def test_a_save_that_failed_is_raised_once_and_recorded_until_one_succeeds(
    then: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = publish.shutil.disk_usage(".")

    def attempt() -> dict[str, Any]:
        return mt.load_run(run.path).info["attempts"][-1]

    with mt.start_run() as run:
        without_memfd(monkeypatch)
        checkpoints = run.checkpoints(save=mt.EverySteps(1))
        checkpoints.save(0, {"w": 1})
        checkpoints.wait()
        with monkeypatch.context() as patch:
            patch.setattr(publish.shutil, "disk_usage", lambda path: usage._replace(free=10))
            checkpoints.save(1, {"w": 2})
            checkpoints._commits._saver.wait()
        assert "checkpoint_error" not in attempt()
        checkpoints.due(1)  # The next call of any method reports it.
        assert "WARNING: step 1 was NOT saved" in (run.path / "training.log").read_text()
        assert "step 1 was not saved" in attempt()["checkpoint_error"]
        if then == "a save":
            checkpoints.step(2, {"w": 3})
            checkpoints.wait()
            assert "checkpoint_error" not in attempt()
        elif then in ("wait", "close"):
            with pytest.raises(OSError, match="but only"):
                getattr(checkpoints, then)()
            checkpoints.close()  # Once.
        elif then == "a second object":
            run.checkpoints()
    log = (run.path / "training.log").read_text()
    is_missing = then != "a save"
    assert ("WARNING: the last checkpoint is missing: step 1 was not" in log) == is_missing
    assert ("step 1 was not saved" in attempt().get("checkpoint_error", "")) == is_missing
    # The training is done: an ordinary end does not raise, and says how it ended.
    assert attempt()["status"] == "FINISHED"
    if then != "a second object":
        assert ("step 1 was not saved" in attempt().get("error", "")) == is_missing
        assert ("FINISHED: step 1 was not saved" in log) == is_missing


def test_a_run_that_begins_again_without_a_restore_saves_its_own_steps() -> None:
    for attempt, resume in ((1, "never"), (2, "must")):
        with mt.start_run(run_name="r", resume=resume) as run:
            checkpoints = run.checkpoints(save=mt.AtSteps(0, 1))
            for step in range(2):
                assert checkpoints.step(step, {"attempt": attempt})
            checkpoints.save(1, {"attempt": attempt})  # Its own is left as it is.
            if attempt == 1:
                checkpoints.save(9, {"attempt": attempt})
            run.finish("FAILED")
    with mt.start_run(run_name="r", resume="must") as run:
        state = {"attempt": 0}
        assert run.checkpoints().restore(state) == 2 and state == {"attempt": 2}
    aside = run.path / "checkpoints/rewound-2"
    assert sorted(p.name for p in aside.iterdir()) == [f"step-{step:09d}" for step in (0, 1, 9)]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
def test_a_call_that_fails_leaves_the_older_ones_and_a_clear_error(
    call: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_memfd(monkeypatch)
    here = Saving(tmp_path)
    here.save(0, state_of())
    assert here.outcome().error is None

    def fail(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        here.save(1, state_of())
        outcome = here.outcome()
    assert outcome.error is not None and outcome.error.errno == number
    assert [c.step for c in here.store.list()] == [0]
    here.store.list()[0].verify()
    assert not list(here.store.path.glob(".tmp-*"))
    here.save(1, state_of())
    assert here.outcome().error is None
    here.saver.close()


def test_too_little_space_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_memfd(monkeypatch)
    here = Saving(tmp_path)
    usage = publish.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(publish.shutil, "disk_usage", lambda path: usage._replace(free=10))
    here.save(0, state_of())
    assert "but only 10 are free" in str(here.outcome().error)
    assert list(here.store.path.iterdir()) == [here.store.path / ".lock"]
    here.saver.close()


def test_a_child_that_the_trainer_forked_keeps_neither_lock_nor_writer(
    saving_here: Saving,
) -> None:
    saving_here.save(0, state_of())
    saving_here.outcome()
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(write_end)
        os.read(read_end, 1)
        os._exit(0)
    saving_here.saver.close()
    again = saving_here.store.lock(print)
    again.close()
    os.close(write_end)
    os.waitpid(child, 0)


CHILD_OF_A_TRAINER = """
import os, sys, torch, mlflow_track as mt
calls = {
    "list": lambda: checkpoints.list(),
    "step": lambda: checkpoints.step(9, state),
    "save": lambda: checkpoints.save(9, state),
    "wait": lambda: checkpoints.wait(),
    "restore": lambda: checkpoints.restore(state, step=0),
}
with mt.start_run() as run:
    checkpoints, state = run.checkpoints(save=mt.EverySteps(1)), {"w": torch.ones(3_000_000)}
    checkpoints.save(0, state)
    checkpoints.save(1, state)  # In flight.
    for name, call in calls.items():
        child = os.fork()
        if child == 0:
            try:
                call()
            except RuntimeError as error:
                os._exit(0 if "was forked" in str(error) else 2)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, name
    checkpoints.save(2, state)
    for checkpoint in checkpoints.list():
        checkpoint.verify()
    print([c.step for c in checkpoints.list()])
"""


def test_a_child_that_the_trainer_forked_is_refused_its_checkpoints(run_script: Script) -> None:
    done = run_script(CHILD_OF_A_TRAINER)
    assert done.stdout == "[0, 1, 2]\n", done.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tensors_on_a_cuda_device_come_through_pinned_memory(saving_here: Saving) -> None:
    state = {"gpu": torch.randn(3_000_000, device="cuda"), "cpu": torch.randn(7)}
    state["gpu"].mul_(2)  # Still running when the save begins.
    expected = state["gpu"].cpu()
    saving_here.save(0, state)
    state["gpu"].zero_()
    assert saving_here.outcome().error is None
    assert torch.equal(saving_here.content(0)["gpu"], expected)
    assert saving_here.saver._memory.tensor.is_pinned()


# --- kills ---

KILLED_AT_ONCE = """
import os, sys, time, torch
from pathlib import Path
from mlflow_track.checkpoint.writer import main as writer_main
from mlflow_track.checkpoint.state.flatten import SaveRequest
from mlflow_track.checkpoint.writer.saver import Saver
from mlflow_track.checkpoint.disk.store import CheckpointStore
from mlflow_track.record.metrics import MetricsFile
if sys.argv[1] == "a thread":
    del os.memfd_create
metrics = MetricsFile(Path("metrics.csv"))
from types import SimpleNamespace
store = CheckpointStore(Path("checkpoints"))
saver = Saver(store, metrics, print)
state = {"a": torch.arange(8_000_000.)}
for step in range(2):
    saver.save(SaveRequest(step=step, state=state, manifest={"metrics": {}}))
    state["a"] += 1
    if sys.argv[1] == "a thread" and step == 0:
        saver.wait()
        writer_main.publish.publish = lambda *a, **b: time.sleep(99)  # The kill comes in between.
os.kill(os.getpid(), 9)
"""


def test_a_save_is_published_although_the_trainer_is_killed_right_after_the_call(
    run_script: Script, tmp_path: Path
) -> None:
    assert run_script(KILLED_AT_ONCE, "a process").returncode == -9
    # Whoever continues waits here for the writer that is left.
    here = Saving(tmp_path)
    assert [c.step for c in here.store.list()] == [0, 1]
    assert here.content(1)["a"][:2].tolist() == [1, 2]
    here.saver.close()


def test_with_a_thread_for_a_writer_such_a_save_is_lost(run_script: Script, tmp_path: Path) -> None:
    assert run_script(KILLED_AT_ONCE, "a thread").returncode == -9
    here = Saving(tmp_path)
    assert [c.step for c in here.store.list()] == [0]
    here.saver.close()


def test_who_continues_waits_for_the_writer_that_is_left_and_gives_up_with_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow_track.checkpoint.disk import store as store_module

    monkeypatch.setattr(store_module, "_MOST_SECONDS_TO_WAIT", 1.3)
    here = Saving(tmp_path)
    said: list[str] = []
    with pytest.raises(TimeoutError, match="is still writing a checkpoint"):
        here.store.lock(said.append)
    assert said == ["waiting for a previous process to finish writing its checkpoint"]
    here.saver.close()
    here.store.lock(said.append).close()


# --- memory ---


def test_the_limit_of_every_cgroup_around_the_process_counts(tmp_path: Path) -> None:
    inner = tmp_path / "cgroup/outer/inner"
    inner.mkdir(parents=True)
    for folder, limit, used, cache in [(inner, "max", 0, 0), (inner.parent, "1000", 700, 50)]:
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 5\ninactive_file {cache}\n")
    membership = tmp_path / "membership"
    membership.write_text("0::/outer/inner\n")
    groups = memory_groups(membership, tmp_path / "cgroup")
    assert memory_of_groups(groups, 1 << 62) == [(1000, 650)]
    assert memory_groups(tmp_path / "nowhere", tmp_path / "cgroup") == []
    assert 0 < shared_memory.available_bytes() < 1 << 62


def test_a_wait_tells_how_far_the_save_is(saving_here: Saving) -> None:
    saving_here.save(0, state_of(3_000_000))
    os.kill(saving_here.writer_pid(), signal.SIGSTOP)
    told: list[tuple[int, int]] = []

    def tell(written: int, total: int) -> None:
        told.append((written, total))
        os.kill(saving_here.writer_pid(), signal.SIGCONT)

    deadline = time.monotonic() + 60
    saving_here.saver.wait(tell)
    assert time.monotonic() < deadline and told
    assert saving_here.outcome().error is None
