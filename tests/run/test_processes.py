"""Threads, forks and kills around log_metrics: each row that was logged is there, once."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import mlflow_track as mt
from mlflow_track.record.metrics import MetricsFile
from mlflow_track.record.rows import iterate_rows, read_rows
from tests import forked
from tests.campaign import seeds

Script = Callable[..., subprocess.CompletedProcess[str]]


def test_threads_lose_no_row_and_tear_none() -> None:
    with mt.start_run() as run:

        def work(worker: int) -> None:
            for step in range(500):
                names = ("a", "b") if worker % 2 else (f"own{worker}.{step // 100}", "a")
                run.log_metrics(dict.fromkeys(names, worker + step / 1000), step=step)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    rows = read_rows(run.path / "metrics.csv", max_bytes=1 << 24)
    assert rows.damaged == 0 and len(rows.rows) == 2000
    for worker in range(4):
        mine = [row.step for row in rows.rows if int(row.values["a"]) == worker]
        assert mine == list(range(500))


FORK = """
import atexit, os, sys, mlflow_track as mt
how = sys.argv[1]
with mt.start_run(run_name="r") as run:
    run.log_metrics({"a": 1.0}, step=0)
    child = os.fork()
    if child == 0:
        if how == "log":
            try:
                run.log_metrics({"a": 9.0}, step=9)
            except RuntimeError as error:
                print(error, file=sys.stderr)
            for call in (lambda: run.set_tag("a", "b"), lambda: run.log_param("a", 1),
                         lambda: run.log_text("x", "x.txt")):
                try:
                    call()
                except RuntimeError:
                    continue
                os._exit(3)
            sys.exit()
        if how == "raise":
            raise ValueError("in the child")
        if how == "finish":
            run.finish("KILLED")
            sys.exit()
    os.waitpid(child, 0)
    run.log_metrics({"a": 2.0}, step=1)
    assert not run._attempt.has_ended
"""


@pytest.mark.parametrize("how", ["log", "raise", "finish"])
def test_a_forked_child_neither_writes_nor_ends_the_run(how: str, run_script: Script) -> None:
    done = run_script(FORK, how)
    assert done.returncode == 0, done.stderr
    (run,) = mt.load_runs("runs")
    assert run.metrics()["a"].tolist() == [1.0, 2.0]
    assert run.status == "FINISHED" and len(run.info["attempts"]) == 1
    assert run.info["tags"] == {} and run.params == {}
    assert done.stderr.count("FINISHED") == 1
    assert ("pass the values to it" in done.stderr) == (how == "log")


def test_without_the_hook_the_child_would_write_into_the_run(run_script: Script) -> None:
    unguard = """from mlflow_track.attempt import Attempt
Attempt.leave_to_parent = lambda self: None
"""
    unguarded = FORK.replace("with mt", f"{unguard}with mt", 1)
    run_script(unguarded, "log")
    (run,) = mt.load_runs("runs")
    assert 9.0 in run.metrics()["a"].tolist()


# Ends each worker in the first moment of its life, when what Python does after a fork is not done;
# how long that takes follows from what the process has imported.
END_WORKERS = """
import os, signal, time, mlflow_track as mt
with mt.start_run(run_name="r") as run:
    assert not run.should_stop  # from here on SIGTERM asks for a stop
    how = []
    for _ in range(5):
        child = os.fork()
        if child == 0:
            time.sleep(0.3)
            os._exit(7)
        os.kill(child, signal.SIGTERM)
        how.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    print(sorted(set(how)), run.should_stop)
"""


def test_a_forked_worker_of_a_run_that_listens_to_signals_can_be_terminated(
    run_interpreter: Script,
) -> None:
    assert run_interpreter(END_WORKERS).stdout == "[-15] False\n"


def test_without_holding_them_back_signals_to_a_new_worker_are_lost(
    run_interpreter: Script,
) -> None:
    guard = "import mlflow_track.stop as stop; stop._hold_signals = lambda: None"
    assert "7" in run_interpreter(f"{guard}\n{END_WORKERS}").stdout


WRITING: dict[str, Callable[[mt.Run], object]] = {
    "log_metrics": lambda run: run.log_metrics({"a": 1.0}, step=1),
    "log_metric": lambda run: run.log_metric("a", 1.0, step=1),
    "log_params": lambda run: run.log_params({"a": 1}),
    "log_param": lambda run: run.log_param("a", 1),
    "set_tags": lambda run: run.set_tags({"a": "b"}),
    "set_tag": lambda run: run.set_tag("a", "b"),
    "define_metric": lambda run: run.define_metric("a", mode="max"),
    "log_summary": lambda run: run.log_summary({"a": 1.0}),
    "log_handler": lambda run: run.log_handler(),
    "log_input": lambda run: run.log_input("x", sha256="a", size_bytes=1),
    "print": lambda run: run.print("a line"),
    "log_artifact": lambda run: run.log_artifact("file.txt"),
    "log_artifacts": lambda run: run.log_artifacts("folder"),
    "log_text": lambda run: run.log_text("x", "x.txt"),
    "log_dict": lambda run: run.log_dict({}, "x.json"),
    "log_figure": lambda run: run.log_figure(Figure(), "x.png"),
    "log_image": lambda run: run.log_image([[0]], "x.png"),
    "log_histogram": lambda run: run.log_histogram("a", [1.0], step=1),
    "log_table": lambda run: run.log_table({"a": [1]}, "x.csv"),
    "checkpoints": lambda run: run.checkpoints(),
}
READING = {"finish", "metrics", "sync_status"}


class Figure:
    def savefig(self, file: io.BytesIO, **options: object) -> None:
        file.write(b"x")


def content_of(run: mt.Run) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}


def assert_refuses(run: mt.Run, why: str) -> None:
    for name, call in WRITING.items():
        try:
            call(run)
        except RuntimeError as error:
            assert why in str(error), name
        else:
            raise AssertionError(f"{name} is not refused")


def test_every_method_of_a_run_either_reads_or_passes_the_gate() -> None:
    methods = {n for n in dir(mt.Run) if n[0] != "_" and callable(getattr(mt.Run, n))}
    assert methods == READING | WRITING.keys()


@pytest.mark.parametrize("backend", ["local", "off"])
def test_a_run_that_has_ended_refuses_every_method_that_writes(backend: str) -> None:
    os.mkdir("folder")
    for name in ("file.txt", "folder/file.txt"):
        Path(name).write_text("x")
    with mt.start_run(backend=backend) as run:
        run.log_metrics({"a": 1.0}, step=0)
        for call in WRITING.values():
            call(run)
    before = content_of(run)
    assert_refuses(run, "has ended; log before finish")
    assert content_of(run) == before
    # Only reads.
    run.finish()
    run.sync_status()


@pytest.mark.parametrize("is_first", [True, False])
def test_a_forked_child_is_refused_every_method_that_writes(is_first: bool) -> None:
    """Also where its parent has ended the run, or has written a lot since."""
    os.mkdir("folder")
    for name in ("file.txt", "folder/file.txt"):
        Path(name).write_text("x")
    with mt.start_run() as run:
        run._attempt.provenance.join()
        run.checkpoints()
        come, go = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(go)
            os.read(come, 1)
            try:
                assert_refuses(run, "was forked from")
                os._exit(0)
            finally:
                os._exit(1)
        run.set_tag("by", "parent")
        if is_first:
            run.finish()
        before = content_of(run)
        os.close(go)
        assert os.waitpid(child, 0)[1] == 0
        assert content_of(run) == before


def test_without_the_gate_a_child_would_write_into_the_record() -> None:
    with mt.start_run() as run:
        child = os.fork()
        if child == 0:
            run._attempt.record.why_closed = ""
            run.set_tag("by", "child")
            os._exit(0)
        os.waitpid(child, 0)
        assert json.loads((run.path / "run.json").read_text())["tags"] == {"by": "child"}


def test_a_full_disk_is_said_with_the_path_and_the_half_row_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = MetricsFile(tmp_path / "metrics.csv")
    file.append(0, ("a",), [0.5])
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda descriptor, line: write(descriptor, line[:7]))
        with pytest.raises(OSError, match=r"metrics\.csv"):
            file.append(1, ("a",), [0.5])
    file.append(2, ("a",), [0.5])
    assert [row.step for row in iterate_rows(file.path)] == [0, 2]


# Tells the parent of each call that has returned, by one write to a pipe.
LOGGER = """
import os, sys, mlflow_track as mt
acknowledge = int(sys.argv[1])
with mt.start_run(backend="local") as run:
    step = 0
    while True:
        metrics = {"loss": step / 7, "lr": 1e-3}
        if step % 50 == 0:
            metrics = {f"val/{step // 1000}": 1.0, **metrics}
        run.log_metrics(metrics, step=step)
        os.write(acknowledge, b"%d\\n" % step)
        step += 1
"""


@pytest.mark.faults
@pytest.mark.parametrize("seed", seeds(4))
def test_rows_whose_call_had_returned_survive_a_kill_at_any_moment(
    seed: int, tmp_path: Path
) -> None:
    read_end, write_end = os.pipe()
    root = Path(__file__).resolve().parents[2]
    process = forked.Popen(
        [sys.executable, "-c", LOGGER, str(write_end)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
        stderr=subprocess.DEVNULL,
        pass_fds=[write_end],
    )
    os.close(write_end)
    generator = random.Random(seed)
    target = generator.randrange(1, 30_000)
    acknowledged = b""
    with open(read_end, "rb", buffering=0) as pipe:
        while acknowledged.count(b"\n") < target and (piece := pipe.read(1 << 16)):
            acknowledged += piece
        time.sleep(generator.random() / 1000)  # not a wait: the moment of the kill
        process.kill()
        process.wait()
        while piece := pipe.read(1 << 16):
            acknowledged += piece
    returned = [int(line) for line in acknowledged.split(b"\n")[:-1]]
    (run,) = mt.load_runs("runs")
    assert run.status == "KILLED"
    rows = list(iterate_rows(run.path / "metrics.csv"))
    steps = [row.step for row in rows]
    assert steps == list(range(len(steps)))
    assert len(returned) >= target and set(returned) <= set(steps)
    assert all(row.values["loss"] == row.step / 7 for row in rows)
    assert json.loads((run.path / "run.json").read_text())["status"] == "RUNNING"
