"""Does the record say how a run ended, in one line that a person can use?"""

from __future__ import annotations

import errno
import math
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import CliRunner

import mlflow_track as mt
from mlflow_track import divergence
from mlflow_track.cli import main
from mlflow_track.mirror.follower import try_lock
from mlflow_track.mirror.state import MirrorState
from mlflow_track.record import directory
from mlflow_track.record.exit_status import _Exits, ending_of, one_line
from mlflow_track.record.info import is_held, read_info


@pytest.mark.parametrize(
    ("error", "stop", "expected"),
    [
        (None, None, ("FINISHED", None)),
        (None, "SIGTERM", ("KILLED", "stopped: SIGTERM")),
        (KeyboardInterrupt(), None, ("KILLED", "interrupted")),
        (SystemExit(0), None, ("FINISHED", None)),
        (SystemExit(3), None, ("FAILED", "SystemExit: 3")),
        (ValueError("no"), "SIGTERM", ("FAILED", "ValueError: no")),
    ],
)
def test_status_and_reason(error, stop, expected):
    assert ending_of(error, stop) == expected


def test_a_message_of_many_lines_is_one_line_with_its_first_and_its_last():
    error = RuntimeError("Error(s) in loading state_dict:\n\tMissing key(s): 'a.weight'\n")
    assert one_line(error) == (
        "RuntimeError: Error(s) in loading state_dict: Missing key(s): 'a.weight'"
    )
    long = one_line(RuntimeError("first " + "x" * 5000 + " last"))
    assert len(long) <= 1000
    assert long.startswith("RuntimeError: first") and long.endswith("last")


def test_the_reason_is_in_the_record():
    with pytest.raises(ValueError), mt.start_run(backend="local") as run:
        raise ValueError("line one\nline two")
    (attempt,) = mt.load_run(run.path).info["attempts"]
    assert attempt["error"] == "ValueError: line one line two"


def test_a_password_in_a_long_message_is_gone_wherever_the_cut_falls():
    for before in range(400, 520):
        text = one_line(
            ValueError("x" * before + " https://alice:hunter2secret@db.example.com/x " + "y" * 1000)
        )
        assert "hunter" not in text


class Mute(Exception):
    def __str__(self) -> str:
        raise TypeError("no words")


@pytest.mark.parametrize("error", [ValueError("bad \udce9.txt"), Mute()])
def test_what_cannot_be_written_or_read_still_ends_the_run_as_failed(error):
    with pytest.raises(type(error)), mt.start_run(backend="local") as run:
        raise error
    assert mt.load_run(run.path).status == "FAILED"


def test_a_console_that_is_gone_does_not_end_the_training(run_script):
    code = """
        import os, sys, mlflow_track as mt
        read, write = os.pipe()
        os.dup2(write, 2)
        os.close(write)
        os.close(read)
        with mt.start_run(backend="local") as run:
            run.log_metric("a", 1.0, step=0)
            run.print("a line")
        print(run.path)
    """
    done = run_script(code)
    assert done.returncode == 0, done.stderr
    record = mt.load_run(done.stdout.strip())
    assert record.status == "FINISHED" and len(record.metrics()) == 1
    assert "a line" in (record.path / "training.log").read_text()


def test_a_log_that_cannot_be_written_does_not_end_the_training(monkeypatch, capfd):
    with mt.start_run(backend="local") as run:
        with monkeypatch.context() as patch:

            def full(line: str) -> None:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            patch.setattr(run._attempt.record, "append_log", full)
            run.print("a line")
        run.log_metric("a", 1.0, step=0)
    assert "a line (not in training.log: No space left on device)" in capfd.readouterr().err


def test_a_child_forked_while_params_are_written_does_not_hang():
    with mt.start_run(backend="local") as run:
        with run._attempt.config_lock:
            child = os.fork()
            if child == 0:
                signal.alarm(10)
                try:
                    run.log_param("a", 1)
                except RuntimeError:
                    os._exit(0)
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("reserve_bytes", [directory._RESERVE_BYTES, 0])
def test_a_run_that_ends_on_a_full_disk_says_how_it_ended(
    reserve_bytes, small_disk, monkeypatch, capfd
):
    monkeypatch.setattr(directory, "_RESERVE_BYTES", reserve_bytes)
    with mt.start_run(directory=small_disk, backend="local") as run:
        run._attempt.provenance.join()
        run.log_metric("a", 1.0, step=0)
        # What the file was before it had this column takes room until then.
        run._attempt.metrics.sync()
        with open(small_disk / "fill", "wb", buffering=0) as fill, suppress(OSError):
            while fill.write(b"x" * 4096):
                pass
    loaded = mt.load_run(run.path)
    # Without the room that is kept for it the status has no place.
    assert loaded.status == ("FINISHED" if reserve_bytes else "KILLED")
    assert ("reads as KILLED" in capfd.readouterr().err) is (not reserve_bytes)
    assert len(loaded.metrics()) == 1
    assert not is_held(run.path) and (run.path / "run.lock").stat().st_size == 0


def test_a_disk_that_fails_at_the_end_keeps_neither_lock_nor_mirror(monkeypatch):
    class Companion:
        is_closed = False

        def close(self, timeout_seconds):
            self.is_closed = True

        def report(self, there):
            pass

    def fail(*arguments, **more):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with mt.start_run(backend="local") as run:
        run._attempt.companion = companion = Companion()
        for owner, name in ((run._attempt.metrics, "sync"), (run._attempt.record, "update")):
            monkeypatch.setattr(owner, name, fail)
    assert companion.is_closed and not is_held(run.path)
    log = (run.path / "training.log").read_text()
    assert "WARNING: [Errno 5] Input/output error: the status is not in run.json" in log


@pytest.mark.parametrize(
    ("lines", "status"),
    [("1/0\nSTART", "FINISHED"), ("START\n1/0", "FAILED"), ("1/0\nSTART\n2/0", "FAILED")],
)
def test_an_error_of_a_session_from_before_the_run_is_not_the_runs(lines, status):
    start = "import mlflow_track as mt; run = mt.start_run(backend='local')"
    subprocess.run(
        [sys.executable, "-i"],
        input=lines.replace("START", start) + "\n",
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    (run,) = mt.load_runs("runs")
    assert run.status == status


@pytest.mark.parametrize("backend", ["local", "mlflow"])
def test_a_folder_that_is_deleted_under_a_run_is_said_and_not_made_again(
    backend, monkeypatch, capfd
):
    monkeypatch.setenv("MLFLOW_TRACK_FINISH_TIMEOUT", "0")
    with mt.start_run(backend=backend) as run:
        run._attempt.provenance.join()
        run.log_metric("a", 1.0, step=0)
        shutil.rmtree(run.path)
        run.log_metric("a", 1.0, step=1)
    assert "metrics.csv was deleted or moved during the run" in capfd.readouterr().err
    assert not (run.path / "run.json").exists()


@pytest.mark.parametrize("moves", [True, False])
def test_rows_that_are_not_in_the_folder_are_told_at_a_checkpoint_and_in_the_record(moves, capfd):
    with mt.start_run(backend="local") as run:
        run._attempt.provenance.join()
        checkpoints = run.checkpoints()
        for step in range(3):
            run.log_metric("a", 1.0, step=step)
            if moves and step == 0:
                run.path.rename("moved")
            checkpoints.save(step, {"step": step})
        told = capfd.readouterr().err.count("was deleted or moved")
    assert told == moves
    (attempt,) = run._attempt.record.info.attempts
    assert ("was deleted or moved" in (attempt.error or "")) is moves


LEFT = """
import mlflow_track as mt
run = mt.start_run(backend="local")
def leave(action):
    action()
import sys, threading
"""
UNKNOWN = "left by a SystemExit of unknown status: use sys.exit(…), or start_run in `with`"


@pytest.mark.parametrize(
    ("lines", "status", "error"),
    [
        ("", "FINISHED", None),
        ("sys.exit(3)", "FAILED", "SystemExit: 3"),
        ("leave(lambda: sys.exit('no data'))", "FAILED", "SystemExit: no data"),
        ("exit(4)", "FAILED", "SystemExit: 4"),
        ("import argparse\nargparse.ArgumentParser().error('x')", "FAILED", "SystemExit: 2"),
        ("sys.exit()", "FINISHED", None),
        ("sys.exit(0)", "FINISHED", None),
        # Neither is the end of the program.
        ("try: sys.exit(3)\nexcept SystemExit: pass", "FINISHED", None),
        ("threading.Thread(target=sys.exit, args=(3,)).start()", "FINISHED", None),
        ("raise ValueError('no')", "FAILED", "ValueError: no"),
        ("raise SystemExit(3)", "FAILED", "SystemExit: 3"),
        ("def main(): raise SystemExit(3)\nmain()", "KILLED", UNKNOWN),
    ],
)
def test_a_run_without_with_ends_as_its_program_does(
    lines: str, status: str, error: str | None, run_interpreter
) -> None:
    run_interpreter(f"{LEFT}\n{lines}")
    (run,) = mt.load_runs("runs")
    assert (run.status, run.info["attempts"][0].get("error")) == (status, error)


@pytest.mark.parametrize(
    ("lines", "status", "error"),
    [
        ("x = 1", "FINISHED", None),
        ("try: raise SystemExit(3)\nexcept SystemExit: pass", "FINISHED", None),
        ("raise SystemExit", "FINISHED", None),
        ("raise SystemExit()", "FINISHED", None),
        ("raise SystemExit(0)", "FINISHED", None),
        ("raise SystemExit('no data')", "FAILED", "SystemExit: no data"),
        ("raise SystemExit(3) from None", "FAILED", "SystemExit: 3"),
        ("status = 3\nif here: raise SystemExit(status)", "FAILED", "SystemExit: 3"),
        # The interpreter tells nobody what was returned, or raised further inside.
        ("raise SystemExit(len('abc'))", "FINISHED", UNKNOWN),
        ("raise SystemExit(leave(3))", "KILLED", UNKNOWN),
        ("raise SystemExit(f'{here}')", "KILLED", UNKNOWN),
        ("class Stop(SystemExit): pass\nraise Stop(3)", "KILLED", UNKNOWN),
        ("try: leave(3)\nfinally: here = None", "KILLED", UNKNOWN),
        ("leave(0)", "KILLED", UNKNOWN),
    ],
)
def test_what_a_main_module_was_left_with_is_known_or_said_to_be_unknown(
    lines: str, status: str, error: str | None
) -> None:
    frames = []

    def leave(code: int) -> None:
        raise SystemExit(code)

    names = {"leave": leave, "here": True, "keep": lambda: frames.append(sys._getframe(1))}
    with suppress(SystemExit):
        exec(f"keep()\n{lines}", names)
    assert ending_of(_Exits(frames[0]).ending(), None) == (status, error)


def test_without_the_note_of_exits_a_status_of_3_would_be_an_end(run_interpreter) -> None:
    guard = "import mlflow_track.attempt as a; a.note_exits = lambda: None"
    assert run_interpreter(f"{guard}\n{LEFT}\nsys.exit(3)").returncode == 3
    assert mt.load_runs("runs")[0].status == "FINISHED"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated."),
        BrokenProcessPool(),
    ],
)
def test_ending_of_workers_lost_after_a_request_to_stop_is_killed(error: Exception) -> None:
    assert ending_of(error, None)[0] == "FAILED"
    status, why = ending_of(error, None, "SIGTERM")
    assert status == "KILLED" and why is not None and why.startswith("stopped: SIGTERM; ")
    assert ending_of(ValueError("no"), None, "SIGTERM") == ("FAILED", "ValueError: no")


def losses(values: list[float], name: str = "loss", first: int = 0) -> mt.Run:
    with mt.start_run(backend="local") as run:
        for step, value in enumerate(values, first):
            run.log_metrics({"lr": 0.1, name: value}, step=step)
    return run


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("values", "error", "is_said_at_once"),
    [
        ([1.0] * 31 + [NAN] * 40, "loss is nan since step 31", True),
        ([1.0] * 31 + [NAN] * 9, "loss is nan since step 31", False),
        ([1.0, INF], "loss is inf since step 1", False),
        ([1.0] * 3 + [NAN] + [1.0] * 3, None, False),
        ([1.0, NAN] * 60, None, False),
        ([1.0, NAN] * 20 + [NAN] * 20, "loss is nan since step 39", False),
        # What never was finite has not turned.
        ([NAN] * 50, None, False),
        ([1e308] * 20, None, False),
    ],
)
def test_a_metric_that_turns_nan_is_said_once_and_stands_in_how_the_run_ended(
    values: list[float], error: str | None, is_said_at_once: bool, capfd
) -> None:
    run = losses(values)
    (attempt,) = mt.load_run(run.path).info["attempts"]
    assert (attempt["status"], attempt.get("error")) == ("FINISHED", error)
    said = [line for line in capfd.readouterr().err.splitlines() if "since step" in line]
    assert len(said) == is_said_at_once + (error is not None)
    assert is_said_at_once == any(line.startswith("WARNING: loss is nan") for line in said)


def test_many_metrics_that_turn_nan_are_counted() -> None:
    with mt.start_run(backend="local") as run:
        for step in range(20):
            run.log_metrics({f"m{n}": 1.0 if step < 5 else NAN for n in range(9)}, step=step)
    (attempt,) = mt.load_run(run.path).info["attempts"]
    words = "m0 is nan since step 5, m1 is nan since step 5, m2 is nan since step 5, as are 6 more"
    assert attempt["error"].startswith(words)


def test_a_metric_in_the_long_file_that_turns_nan_is_found() -> None:
    with mt.start_run(backend="local") as run:
        run.log_metrics({f"m{n}": 1.0 for n in range(200)}, step=0)
        for step in range(1, 30):
            run.log_metric("m7", 1.0 if step < 9 else NAN, step=step)
    assert (run.path / "metrics.long.csv").exists()
    (attempt,) = mt.load_run(run.path).info["attempts"]
    assert attempt["error"] == "m7 is nan since step 9"


def test_a_turn_longer_than_what_is_read_is_remembered(monkeypatch) -> None:
    monkeypatch.setattr(divergence, "_END_BYTES", 2000)
    run = losses([1.0] * 5 + [NAN] * 2000)
    (attempt,) = mt.load_run(run.path).info["attempts"]
    assert attempt["error"] == "loss is nan since step 5"


REOPENED = """
import sys, mlflow_track as mt
resume, status = sys.argv[1:3]
with mt.start_run(run_name="r", resume=resume) as run:
    run.log_metrics({sys.argv[3]: 1.0}, step=0)
    run._attempt.provenance.join() if run._attempt.provenance.ident else None
    if status != "FINISHED": run.finish(status)
    print(run.id)
"""


def test_the_command_of_a_run_is_the_one_that_trained_it(run_script) -> None:
    run_id = run_script(REOPENED, "auto", "KILLED", "loss").stdout.strip()
    run_script(REOPENED, "auto", "FINISHED", "loss", "again")
    trained = mt.load_run(Path("runs/default") / run_id)
    run_script(REOPENED, run_id, "FINISHED", "test/acc", "evaluate")
    run = mt.load_run(trained.path)
    info = read_info(run.path)
    assert info.command[-3:] == ("auto", "KILLED", "loss") and len(info.attempts) == 3
    assert info.trained.command is not None and info.trained.command[-1] == "again"
    # Its origin stays that of the training.
    assert run.info["provenance"] == trained.info["provenance"]
    shown = CliRunner().invoke(main, ["show", str(run.path)]).output
    assert "auto KILLED loss" in shown and "test/acc evaluate" in shown


def test_the_mirror_makes_no_folder_of_a_run_again(tmp_path):
    gone = tmp_path / "run"
    with pytest.raises(FileNotFoundError):
        try_lock(gone, "mlflow")
    with pytest.raises(FileNotFoundError):
        MirrorState().write(gone, "mlflow")
    assert not gone.exists()
