"""Is a forked program a process as any other, and is what cannot be forked started as usual?"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import forked

PROGRAM = """
import atexit, os, sys, threading, time
atexit.register(lambda: print("exit function"))
threading.Thread(target=lambda: (time.sleep(0.1), print("thread"))).start()
print(sys.argv, sys.orig_argv[1:3], __name__, os.environ["OWN"], sys.stdin.read())
print("torch" in sys.modules, "mlflow_track" in sys.modules, file=sys.stderr)
sys.exit(int(sys.argv[1]))
"""
Start = Callable[..., subprocess.CompletedProcess[str]]


def both(program: list[str], **named: object) -> list[subprocess.CompletedProcess[str]]:
    """The program as `subprocess` runs it, and forked."""
    words = [sys.executable, *program]
    # The variables of Python, which C libraries may have added to.
    named = {"env": dict(os.environ), "capture_output": True, "text": True, **named}
    return [run(words, **named) for run in (subprocess.run, forked.run)]  # type: ignore[operator]


def test_a_program_does_forked_what_it_does_otherwise() -> None:
    started, other = both(
        ["-c", PROGRAM, "7", "b"], input="words", env={**os.environ, "OWN": "own"}
    )
    assert other.stdout == started.stdout and other.stdout.endswith("thread\nexit function\n")
    assert other.returncode == started.returncode == 7
    # The one difference that is meant.
    assert (started.stderr, other.stderr) == ("False False\n", "True True\n")


@pytest.mark.parametrize(
    "program",
    [
        "1 / 0",
        "raise KeyboardInterrupt",
        "import sys; sys.exit('words')",
        "import os; os._exit(3)",
        "import os; os.kill(os.getpid(), 9)",
        "import os; os.kill(os.getpid(), 15)",
        "import os, signal; os.kill(os.getpid(), signal.SIGUSR1)",
        "import os, sys; sys.exit(os.fork() and os.waitstatus_to_exitcode(os.wait()[1]) + 2)",
        "import os, signal; print([signal.getsignal(n) for n in signal.valid_signals()])",
        "import os; print(os.listdir('/proc/self/fd'), os.getcwd(), os.umask(0))",
        "import os; print(sorted(os.environ.items()))",
        "import resource; resource.setrlimit(7, (99, 99)); import os, subprocess, sys\n"
        "subprocess.run([sys.executable, '-c', 'import resource; print(resource.getrlimit(7))'])",
        "import mlflow_track.wording; print(mlflow_track.__file__, mlflow_track.wording.__file__)",
        "import os, sys; sys.stdout.flush(); os.execvp('sh', ['sh', '-c', 'env | sort'])",
        "import sys; print(sys.path, sys.executable, sys.stdout.encoding, sys.stderr.errors)",
        "import sys; sys.stdout.close(); print(1)",
        "print(open('/proc/self/cmdline').read().split(chr(0))[1:2])",
    ],
)
def test_each_end_and_each_surrounding_is_the_same(program: str) -> None:
    started, other = both(["-c", program])
    assert (other.returncode, other.stdout) == (started.returncode, started.stdout)
    assert other.stderr.splitlines()[-1:] == started.stderr.splitlines()[-1:]


def test_modules_and_files_are_run_as_main(tmp_path: Path) -> None:
    text = "import sys; print(__name__, sys.argv, sys.path[0])"
    (tmp_path / "program.py").write_text(text)
    started, other = both(["program.py", "a"])
    assert other.stdout == started.stdout and "__main__" in other.stdout
    started, other = both(["-m", "mlflow_track.cli", "--help"])
    assert other.stdout == started.stdout and "Usage" in other.stdout


def test_the_package_of_another_checkout_is_the_one_that_is_imported(tmp_path: Path) -> None:
    package = tmp_path / "site" / "mlflow_track"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("print('another')")
    program = ["-c", "import sys, mlflow_track; print('mlflow_track.run' in sys.modules)"]
    environment = {**os.environ, "PYTHONPATH": str(package.parent)}
    started, other = both(program, env=environment)
    assert other.stdout == started.stdout == "another\nFalse\n"
    started, other = both(program, env=dict(os.environ), cwd=package.parent)
    assert other.stdout == started.stdout == "another\nFalse\n"


def test_a_forked_program_is_killed_waited_for_and_in_a_session_of_its_own() -> None:
    with forked.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.01)
        assert process.poll() is None and os.getsid(process.pid) == process.pid
        process.send_signal(signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL and process.poll() == -signal.SIGKILL
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


def test_descriptors_that_are_passed_are_there_and_no_others() -> None:
    read_end, write_end = os.pipe()
    program = [sys.executable, "-c", f"import os; os.write({write_end}, b'x')"]
    assert forked.run(program, pass_fds=[write_end]).returncode == 0
    os.close(write_end)
    assert os.read(read_end, 9) == b"x" and os.read(read_end, 9) == b""
    os.close(read_end)
    assert forked.run(program, stderr=subprocess.DEVNULL).returncode == 1


def test_a_signal_that_is_ignored_here_is_ignored_there() -> None:
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        started, other = both(["-c", "import signal; print(signal.getsignal(2), end='')"])
    finally:
        signal.signal(signal.SIGINT, former)
    assert other.stdout == started.stdout == "1"


def test_random_numbers_differ_from_process_to_process() -> None:
    program = "import random, uuid, numpy; print(random.random(), numpy.random.random())"
    first, second = (both(["-c", program])[1].stdout.split() for _ in "12")
    assert len({*first, *second}) == 4


@pytest.mark.parametrize(
    "changes", [{"PYTHONHASHSEED": "0"}, {"LC_ALL": "C"}, {"OMP_NUM_THREADS": "3"}]
)
def test_what_an_interpreter_reads_at_its_start_starts_one(changes: dict[str, str]) -> None:
    program = [sys.executable, "-c", "import sys; print('torch' in sys.modules)"]
    done = forked.run(program, capture_output=True, text=True, env={**os.environ, **changes})
    assert done.stdout == "False\n"


def test_the_forked_interpreter_passes_signals_on_and_dies_with_its_program(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(forked.FORKING, "1")
    forked.write_stand_in(Path("python"))
    told = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(9))"
    program = f"{told}; import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    for number, status in ((signal.SIGTERM, 9), (signal.SIGUSR1, -signal.SIGUSR1)):
        with subprocess.Popen(["./python", "-c", program], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None and int(process.stdout.readline()) != process.pid
            process.send_signal(number)
            assert process.wait(60) == status
    with subprocess.Popen(["./python", "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
        # Its end of the pipe closes when the program has ended.
        assert process.stdout.read() == b""


def test_it_starts_the_interpreter_where_nothing_is_to_be_forked() -> None:
    forked.write_stand_in(Path("python"), "-c")
    program = "import os, sys; print(os.getpid(), 'torch' in sys.modules, sys.argv)"
    with subprocess.Popen(["./python", program, "a"], stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None
        assert started.stdout.read() == f"{started.pid} False ['-c', 'a']\n"


@pytest.mark.parametrize("words", [["-I", "-c", "1"], ["-i"], ["-m", "uvicorn", "app"], ["-c"], []])
def test_what_is_not_one_program_in_python_is_not_forked(words: list[str]) -> None:
    assert forked.program_of([sys.executable, *words]) is None
    assert forked.program_of(["ls", "-c", "1"]) is None and forked.program_of("ls") is None


def test_what_a_program_starts_itself_is_counted_for_whoever_started_it() -> None:
    spin = "import time\nwhile time.process_time() < 0.3: pass"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {spin!r}])"
    before = forked.cpu_seconds()
    assert forked.run([sys.executable, "-c", program]).returncode == 0
    with contextlib.suppress(TimeoutError):
        assert forked.cpu_seconds() - before > 0.3
