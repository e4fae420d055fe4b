"""Signals to a process with runs: who gets them while they are open, afterwards, in workers."""

from __future__ import annotations

import multiprocessing
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures.process import _process_worker
from pathlib import Path

import pytest

import mlflow_track as mt
from mlflow_track.stop import _is_worker
from tests import forked

Script = Callable[..., subprocess.CompletedProcess[str]]

# Two runs that listen; `do` says what happens to them, one word after the other.
TWO = """
import os, signal, sys, threading, time, mlflow_track as mt
{guard}
order, *words = sys.argv[1:]
a, b = (mt.start_run(run_name=name) for name in "ab")
first, second = (a, b) if order == "fifo" else (b, a)
def handler(number, frame):
    print("the script's", flush=True)
for word in words:
    if word == "listen": [run.checkpoints() for run in (a, b)]
    if word == "first": first.finish()
    if word == "second": second.finish()
    if word == "thread":
        thread = threading.Thread(target=second.finish); thread.start(); thread.join()
    if word == "install": kept = signal.signal(signal.SIGTERM, handler)
    if word == "put back": signal.signal(signal.SIGTERM, kept)
    if word == "chain":
        kept = signal.signal(signal.SIGTERM, lambda n, f: (handler(n, f), kept(n, f)))
    if word == "again": a = mt.start_run(); a.checkpoints(); a.finish()
    if word == "signal":
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
    if word == "asked": print(first.should_stop, second.should_stop)
"""


def two(run_script: Script, *words: str, guard: str = "") -> tuple[int, list[str]]:
    done = run_script(TWO.format(guard=guard), *words)
    return done.returncode, done.stdout.splitlines()


@pytest.mark.parametrize("order", ["fifo", "lifo"])
@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("listen signal asked", 0, ["True True"]),
        ("listen first signal asked", 0, ["False True"]),
        ("listen first second signal", -15, []),
        ("listen first thread signal", -15, []),
        ("listen signal signal", -15, []),
        # What the script installs meanwhile stays, and what it kept of ours is as if it never was.
        ("listen install first second signal", 0, ["the script's"]),
        ("install listen first second signal", 0, ["the script's"]),
        ("listen install first second put_back signal", -15, []),
        ("listen chain first second signal", -15, ["the script's"]),
        ("listen chain first second again signal", -15, ["the script's"]),
        ("listen chain signal asked", 0, ["the script's", "True True"]),
    ],
)
def test_signals_reach_the_runs_that_are_open_and_then_what_was_there_before(
    order: str, words: str, code: int, said: list[str], run_script: Script
) -> None:
    given = [word.replace("_", " ") for word in words.split()]
    assert two(run_script, order, *given) == (code, said)


@pytest.mark.parametrize(
    ("guard", "words", "code"),
    [
        ("H.remove = lambda self, request: self.requests.clear()", "listen first signal", 0),
        ("H.restore = H._pass_on = lambda *words: None", "listen first second signal", -15),
    ],
)
def test_without_the_one_handler_signals_are_lost(
    guard: str, words: str, code: int, run_script: Script
) -> None:
    without = f"from mlflow_track.stop import _Handler as H; {guard}"
    assert two(run_script, "fifo", *words.split())[0] == code
    assert two(run_script, "fifo", *words.split(), guard=without)[0] != code


# --- how a loop that was asked to stop ends ---

ASKED = """
import os, signal, sys, mlflow_track as mt
how = sys.argv[1]
run = mt.start_run()
checkpoints = run.checkpoints() if "saves" in how else None
run.should_stop
for step in range(4):
    if step == 1: os.kill(os.getpid(), signal.SIGTERM)
    run.log_metrics({"a": 1.0}, step=step)
    if checkpoints is not None: checkpoints.step(step, {"w": 1})
    if "looks" in how and run.should_stop: break
    if "once" in how and step == 2: run.should_stop
if "finish" in how: run.finish()
"""


@pytest.mark.parametrize(
    ("how", "status", "last"),
    [
        ("looks", "KILLED", 1),
        ("looks, saves", "KILLED", 1),
        ("looks, saves, finish", "KILLED", 1),
        ("saves", "FINISHED", 3),
        ("saves, finish", "FINISHED", 3),
        ("ignores", "FINISHED", 3),
        ("once, saves", "FINISHED", 3),
    ],
)
def test_a_loop_that_ignores_a_stop_and_completes_is_finished(
    how: str, status: str, last: int, run_script: Script
) -> None:
    done = run_script(ASKED, how)
    assert done.returncode == 0, done.stderr
    (run,) = mt.load_runs("runs")
    assert (run.status, run.metrics().index[-1]) == (status, last)
    expected = "stopped: SIGTERM" if status == "KILLED" else None
    assert run.info["attempts"][0].get("error") == expected


# --- a terminal that closes ---

IN_TERMINAL = """
import os, sys, time, mlflow_track as mt
{guard}
with mt.start_run() as run:
    checkpoints = run.checkpoints()
    for step in range(10_000):
        print("step", step, flush=True)
        time.sleep(0.1)
        print("is done", flush=True)
        checkpoints.step(step, {{"w": step}})
        if run.should_stop: break
"""


def close_terminal(folder: Path, guard: str = "") -> None:
    """Train in a terminal of its own, and close that in the middle."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)
        environment = {**os.environ, "PYTHONPATH": str(forked.ROOT)}
        code = IN_TERMINAL.format(guard=guard)
        os.execve(sys.executable, [sys.executable, "-c", code], environment)
    said = b""
    while b"step 3" not in said:
        said += os.read(terminal, 4096)
    os.close(terminal)
    os.waitpid(pid, 0)


def test_a_terminal_that_closes_stops_a_loop_that_prints_with_a_checkpoint(tmp_path: Path) -> None:
    close_terminal(tmp_path)
    (run,) = mt.load_runs("runs")
    assert run.status == "KILLED" and len(run.checkpoints) == 1
    assert run.info["attempts"][0]["error"] == "stopped: SIGHUP"


def test_without_another_place_to_print_to_the_loop_would_fail(tmp_path: Path) -> None:
    close_terminal(tmp_path, "import mlflow_track.stop as s; s._leave_terminal = lambda: None")
    assert mt.load_runs("runs")[0].status == "FAILED"


INSISTS = """
import os, signal, sys, mlflow_track as mt
with mt.start_run() as run:
    run.checkpoints()
    for name in sys.argv[1:]:
        os.kill(os.getpid(), getattr(signal, "SIG" + name))
    print("continues")
"""


@pytest.mark.parametrize(
    ("names", "code"),
    [
        # The kernel, the shell and the end of a session each send one, with SIGTERM beside it.
        ("HUP HUP HUP", 0),
        ("HUP TERM", 0),
        ("TERM HUP", 0),
        ("INT HUP HUP", 0),
        ("HUP TERM TERM", -15),
        ("TERM HUP TERM", -15),
        ("USR1 TERM", -15),
    ],
)
def test_a_hangup_asks_and_never_insists(names: str, code: int, run_script: Script) -> None:
    done = run_script(INSISTS, *names.split())
    assert (done.returncode, done.stdout) == (code, "continues\n" * (code == 0))


# --- workers ---

GROUP = """
import multiprocessing, os, signal, subprocess, sys, time
import multiprocessing.reduction
import mlflow_track as mt
{guard}
method, kind, to, name = sys.argv[1:5]
number = getattr(signal, "SIG" + name)
os.setpgid(0, 0) if os.getpgrp() != os.getpid() else None
children = []
def ended(pid):
    return not children[0].is_alive() if children else os.waitpid(pid, os.WNOHANG)[0]
def start():
    if method == "bare":
        if (pid := os.fork()) == 0:
            time.sleep(30)
        return pid
    context = multiprocessing.get_context(method)
    process = context.Process(target=time.sleep, args=(30,), daemon=kind == "daemon")
    process.start()
    children.append(process)
    if method != "fork":
        # Until it is there; where it does not leave the group, that is never.
        deadline = time.monotonic() + (1 if {is_guarded} or kind != "daemon" else 60)
        while os.getpgid(process.pid) == os.getpgrp() and time.monotonic() < deadline:
            time.sleep(0.01)
    return process.pid
with mt.start_run() as run:
    run.checkpoints()
    pid = start()
    if to == "group":
        # By somebody else, who is in it as well.
        subprocess.run(["sh", "-c", f"kill -{{name}} -{{os.getpgrp()}}"])
    elif to == "process":
        os.kill(pid, number)
    deadline = time.monotonic() + (1 if to == "none" else 0.3)
    while not (has_ended := ended(pid)) and time.monotonic() < deadline:
        time.sleep(0.01)
    print("ended" if has_ended else "lives", getattr(run._attempt.stop.arrived, "name", None))
    if not has_ended:
        os.kill(pid, signal.SIGTERM)
        children[0].join()
        print(children[0].exitcode)
"""


def group(run_script: Script, words: str, guard: str = "") -> list[str]:
    done = run_script(GROUP.format(guard=guard, is_guarded=bool(guard)), *words.split())
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("name", ["INT", "TERM", "USR1", "HUP"])
def test_a_signal_to_the_group_leaves_workers_to_their_parent(
    name: str, run_script: Script
) -> None:
    assert group(run_script, f"fork daemon group {name}") == ["lives", f"SIG{name}", "-15"]


@pytest.mark.parametrize(("method", "name"), [("spawn", "TERM"), ("forkserver", "INT")])
def test_a_signal_to_the_group_leaves_workers_of_other_starts_to_their_parent(
    method: str, name: str, run_script: Script
) -> None:
    # The server of forkserver itself stays in the group, and survives SIGINT alone.
    said = group(run_script, f"{method} daemon group {name}")
    assert said[:2] == ["lives", f"SIG{name}"]


@pytest.mark.parametrize(("sender", "state"), [("somebody", "lives"), ("parent", "ended")])
def test_a_signal_while_a_worker_is_forked_counts_by_who_sent_it(
    sender: str, state: str, run_script: Script
) -> None:
    said = group(run_script, f"fork daemon none TERM {sender}", SLOW_FORK)
    assert said[0] == state


@pytest.mark.parametrize(
    ("words", "state"),
    [
        ("fork daemon process INT", "lives"),
        ("fork daemon process USR1", "lives"),
        ("fork daemon process TERM", "ended"),
        # These are not workers.
        ("fork child group TERM", "ended"),
        ("bare child group TERM", "ended"),
        ("spawn child group TERM", "ended"),
    ],
)
def test_a_worker_can_be_ended_and_other_children_get_the_signal(
    words: str, state: str, run_script: Script
) -> None:
    assert group(run_script, words)[0] == state


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_in_the_group_of_its_parent_a_worker_dies(method: str, run_script: Script) -> None:
    guard = "import mlflow_track.stop as stop; stop._is_worker = lambda process: False"
    assert group(run_script, f"{method} daemon group TERM", guard)[0] == "ended"


# Each side of a fork waits a little in a hook that comes before the others.
SLOW_FORK = """
def in_child():
    time.sleep(0.5)
def in_parent():
    group = os.getpgrp()
    if sys.argv[5] == "parent":
        os.killpg(group, signal.SIGTERM)
    else:
        subprocess.run(["sh", "-c", f"kill -TERM -{group}"])
is_first = []
if sys.argv[3] == "none":
    os.register_at_fork(
        after_in_child=in_child,
        after_in_parent=lambda: is_first or (is_first.append(1), in_parent()),
    )
"""


LOADER = """
import os, signal, sys, time, torch, mlflow_track as mt
from torch.utils.data import DataLoader, Dataset
class Slow(Dataset):
    def __len__(self): return 400
    def __getitem__(self, i):
        time.sleep(0.1)
        return torch.ones(1)
{guard}
os.setpgid(0, 0) if os.getpgrp() != os.getpid() else None
with mt.start_run() as run:
    checkpoints = run.checkpoints()
    loader = DataLoader(Slow(), num_workers=1, prefetch_factor=1, multiprocessing_context="fork")
    for step, x in enumerate(loader):
        checkpoints.step(step, {{"w": x}})
        if run.should_stop: break
        if step == 3: os.killpg(os.getpgrp(), signal.SIGTERM)
"""


def test_a_loop_over_a_loader_with_workers_stops_with_a_checkpoint(run_script: Script) -> None:
    done = run_script(LOADER.format(guard=""))
    assert done.returncode == 0, done.stderr
    (run,) = mt.load_runs("runs")
    assert run.status == "KILLED" and [c.step for c in run.checkpoints] == [4]


def test_run_whose_workers_die_of_a_stop_is_killed(run_script: Script) -> None:
    guard = "import mlflow_track.stop as stop; stop._is_worker = lambda process: False"
    done = run_script(LOADER.format(guard=guard))
    assert done.returncode == 1 and "DataLoader worker" in done.stderr
    (run,) = mt.load_runs("runs")
    assert run.status == "KILLED" and run.checkpoints == []
    assert "stopped: SIGTERM; RuntimeError: DataLoader worker" in run.info["attempts"][0]["error"]


@pytest.mark.parametrize(
    ("target", "is_daemon", "is_worker"),
    [(print, True, True), (print, False, False), (_process_worker, False, True)],
)
def test_daemons_and_the_processes_of_an_executor_are_workers(
    target: Callable[..., object], is_daemon: bool, is_worker: bool
) -> None:
    process = multiprocessing.get_context("spawn").Process(target=target, daemon=is_daemon)
    assert _is_worker(process) is is_worker
