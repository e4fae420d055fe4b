"""What a process inherits from whoever starts it: ignored signals, a closed stdin, a umask, a name.

Each program is started by a shell, as nohup, cron and runners of CI do it.
"""

from __future__ import annotations

import os
import shlex
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import mlflow_track as mt

ROOT = Path(__file__).resolve().parents[2]
LOOP = """
import os, signal, sys, mlflow_track as mt
with mt.start_run(backend="local") as run:
    for step in range(4):
        run.log_metrics({"loss": 1.0}, step=step)
        if run.should_stop:
            break
        if step == 0:
            os.kill(os.getpid(), int(sys.argv[1]))
"""
SAVING = """
import mlflow_track as mt
with mt.start_run(backend="local") as run:
    run.log_text("text", "notes/text.txt")
    run.log_metrics({"loss": 1.0}, step=3)
    run.checkpoints().save(3, {"w": 1})
"""
# SIGCONT does nothing to a process that runs.
HARMLESS = signal.SIGCONT


def under(shell: str, code: str, *arguments: object, redirect: str = "") -> str:
    """Run `code` after the lines of `shell`; what it said."""
    program = shlex.join([sys.executable, "-c", code, *map(str, arguments)])
    done = subprocess.run(
        ["sh", "-c", f"{shell}\nexec {program} {redirect}"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def ended() -> tuple[str, int]:
    """The status of the only run, and its last step."""
    (run,) = mt.load_runs("runs")
    for checkpoint in run.checkpoints:
        checkpoint.verify()
    return run.status, int(run.metrics().index[-1])


@pytest.mark.parametrize("name", ["INT", "TERM", "USR1", "HUP"])
def test_a_signal_that_was_inherited_as_ignored_stays_ignored(name: str) -> None:
    under(f"trap '' {name}", LOOP, int(signal.Signals[f"SIG{name}"]))
    assert ended() == ("FINISHED", 3)


def test_without_the_look_at_what_was_inherited_the_run_would_stop() -> None:
    blind = "import signal; signal.getsignal = lambda number: signal.SIG_DFL"
    under("trap '' INT", f"{blind}\n{LOOP}", int(signal.SIGINT))
    assert ended() == ("KILLED", 1)


def test_beside_an_ignored_signal_the_others_stop_the_run() -> None:
    said = under("trap '' INT HUP", LOOP, int(signal.SIGTERM))
    assert ended() == ("KILLED", 1) and "SIGTERM: stopping after this step" in said


def test_where_all_are_ignored_the_end_of_the_run_gives_nothing_back() -> None:
    after = 'print([signal.getsignal(n).name for n in (2, 10, 15)], file=sys.stderr, end="")'
    said = under("trap '' INT TERM USR1", f"{LOOP}\n{after}", int(HARMLESS))
    assert said.endswith(str(["SIG_IGN"] * 3)) and ended() == ("FINISHED", 3)


@pytest.mark.parametrize("shell", ["trap '' PIPE", "trap - PIPE"])
def test_a_console_that_nobody_reads_stops_no_run(shell: str) -> None:
    lonely = "import os; r, w = os.pipe(); os.close(r); os.dup2(w, 2)"
    under(shell, f"{lonely}\n{LOOP}", int(HARMLESS))
    assert ended() == ("FINISHED", 3)


def test_a_run_with_a_closed_stdin_and_a_strict_umask_is_whole_and_private() -> None:
    under("umask 077", SAVING, redirect="<&-")
    assert ended() == ("FINISHED", 3)
    (run,) = mt.load_runs("runs")
    assert [checkpoint.step for checkpoint in run.checkpoints] == [3]
    assert (run.path / "artifacts/notes/text.txt").read_text() == "text"
    paths = [run.path, *run.path.rglob("*")]
    assert {stat.S_IMODE(path.stat().st_mode) & 0o077 for path in paths} == {0}


def test_a_user_without_a_name_has_runs_and_a_number() -> None:
    # As with `docker run --user 1234`: no entry in /etc/passwd.
    nameless = """
import os, pwd
def getpwuid(number):
    raise KeyError(number)
pwd.getpwuid = getpwuid
for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
    os.environ.pop(name, None)
"""
    under("", f"{nameless}\n{LOOP}", int(HARMLESS))
    (run,) = mt.load_runs("runs")
    assert run.info["provenance"]["user"] == str(os.getuid())


# The server is none: it ends as soon as the terminal is gone, or not.
UI = """
import os, signal, sys
from mlflow_track.ui import server as ui_server
class Server(ui_server.UiServer):
    def __init__(self, root, port):
        self.url = "http://127.0.0.1:1"
    def __enter__(self):
        return self
    def __exit__(self, *error):
        pass
    def wait(self):
        os.kill(os.getpid(), signal.SIGHUP)
        print("still there", file=sys.stderr)
        return 0
ui_server.UiServer = Server
from mlflow_track.cli import main
main(["ui", "runs", "--no-browser"])
"""


@pytest.mark.parametrize(("shell", "survives"), [("trap '' HUP", True), ("", False)])
def test_under_nohup_the_ui_outlives_its_terminal(shell: str, survives: bool) -> None:
    with mt.start_run(backend="local"):
        pass
    assert ("still there" in under(shell, UI)) is survives
