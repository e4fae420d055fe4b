"""A run's folder: its name stays inside, its lock tells the truth."""

import contextlib
import errno
import fcntl
import os
import re
import shlex
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mlflow_track as mt
from mlflow_track.record import lock
from mlflow_track.record.directory import RunDirectory, RunHeldError
from mlflow_track.record.find import find_folders, folder_name
from mlflow_track.record.info import is_held, true_status
from tests import forked


def make(root: Path) -> RunDirectory:
    return RunDirectory.create(root, experiment="e", name=None, tags={})


@given(st.text(min_size=1))
def test_a_name_becomes_one_folder_inside_its_parent(name: str) -> None:
    folder = folder_name(name)
    path = Path("/root") / folder
    assert path.parent == Path("/root") and folder not in (".", "..", "")
    assert len(folder.encode(errors="surrogatepass")) <= 255


@given(st.text(min_size=1), st.text(min_size=1))
def test_two_names_are_two_folders(left: str, right: str) -> None:
    assert (folder_name(left) == folder_name(right)) == (left == right)


@pytest.mark.parametrize("is_own", [True, False])
def test_a_run_that_is_held_is_refused_with_its_holder(
    is_own: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = make(tmp_path)
    directory.start_attempt({"pid": 1, "host": "here"})
    assert is_held(directory.path)
    if not is_own:
        monkeypatch.setattr(lock, "_taken", {})
    why = "is open in this process; end it with run.finish()" if is_own else "process 1 on here"
    with pytest.raises(RunHeldError, match=re.escape(why)):
        RunDirectory(directory.path).acquire()
    directory.release()
    assert not is_held(directory.path)
    RunDirectory(directory.path).acquire()


def test_a_forked_child_does_not_take_itself_for_the_holder(tmp_path: Path) -> None:
    directory = make(tmp_path)
    path = directory.path / "run.lock"
    assert lock.is_own(path)
    child = os.fork()
    if child == 0:
        os._exit(lock.is_own(path))
    assert os.waitpid(child, 0)[1] == 0


def failing(function: Callable[..., object], number: int) -> Callable[..., object]:
    """As on a file system that cannot do it: fsync of a folder, or any lock."""

    def fail(descriptor: int, *words: int) -> object:
        if words or stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        return function(descriptor)

    return fail


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS])
@pytest.mark.parametrize(
    ("owner", "name", "said"),
    [(os, "fsync", "cannot sync folders"), (fcntl, "flock", "has no locks")],
)
def test_a_run_on_a_poor_file_system_starts_and_says_what_it_cannot_promise(
    owner: ModuleType, name: str, said: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, name, failing(getattr(owner, name), number))
    with mt.start_run() as run:
        run.log_metrics({"a": 1.0}, step=0)
        run.log_text("x", "x.txt")
        run.checkpoints().save(0, {"w": 1})
    log = (run.path / "training.log").read_text()
    (warning,) = [line for line in log.splitlines() if "WARNING" in line]
    assert f"the file system of {run.path.parent} {said}" in warning
    loaded = mt.load_run(run.path)
    assert loaded.status == "FINISHED" and len(loaded.checkpoints) == 1


@pytest.mark.parametrize(("owner", "name"), [(os, "fsync"), (fcntl, "flock")])
def test_an_error_of_the_disk_is_not_taken_for_a_poor_file_system(
    owner: ModuleType, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, name, failing(getattr(owner, name), errno.EIO))
    with pytest.raises(OSError, match="cannot write the run's folder"):
        mt.start_run()


CLOSED = """
import os, sys
{guard}
import mlflow_track as mt
with mt.start_run(directory="runs") as run:
    for step in range(3):
        run.log_metrics({{"a": 1.0}}, step=step)
        for descriptor in (0, 1, 2):
            try: os.write(descriptor, b"NOI" + b"SE")
            except OSError: pass
"""


@pytest.mark.parametrize(
    ("words", "is_guarded"),
    [("<&- >&- 2>&-", True), ("<&- >&- 2>&-", False), (">&-", True), ("2>&-", True)],
)
def test_noise_on_closed_descriptors_lands_in_no_file(words: str, is_guarded: bool) -> None:
    guard = "" if is_guarded else "import mlflow_track.start as s\nn = lambda: None\n"
    guard += "" if is_guarded else "s.occupy_standard_descriptors = n"
    program = shlex.join([sys.executable, "-c", CLOSED.format(guard=guard)])
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run(["sh", "-c", f"exec {program} {words}"], env=environment, timeout=100)
    files = [path for path in Path("runs").rglob("*") if path.is_file()]
    assert files and any(b"NOISE" in path.read_bytes() for path in files) is not is_guarded
    assert done.returncode == 0 or not is_guarded


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_runs_that_have_ended_leave_no_file_open() -> None:
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("this system has no /proc")
    for number in range(4):
        with mt.start_run() as run:
            run.log_metrics({"a": 1.0}, step=0)
            run.checkpoints().save(0, {"w": 1})
        if number == 0:
            before = open_files()
    assert open_files() == before


def test_a_clock_that_is_set_back_makes_no_run_shorter_than_its_attempts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = make(tmp_path)
    created = directory.info.created
    now = [created]
    monkeypatch.setattr(time, "time", lambda: now[0])
    for began, lasted in ((0, 100), (-7200, 50), (-9000, -30)):
        now[0] = created + began
        directory.start_attempt({})
        now[0] += lasted
        directory.end_attempt("KILLED")
    info = directory.info
    assert [attempt.seconds for attempt in info.attempts] == pytest.approx([100, 50, 0], abs=1e-3)
    assert info.ended == pytest.approx(created + 150, abs=1e-3)


HOLDER = """
import os, sys, time
from pathlib import Path
from mlflow_track.record.directory import RunDirectory
directory = RunDirectory.create(Path(sys.argv[1]), experiment="e", name=None, tags={})
directory.start_attempt({})
if sys.argv[2] == "fork" and os.fork() == 0:
    time.sleep(30)
    os._exit(0)
print("ready", os.getpid(), flush=True)
time.sleep(30)
"""


@pytest.mark.parametrize("mode", ["alone", "fork"])
def test_after_sigkill_running_reads_as_killed_even_if_a_forked_worker_lives(
    mode: str, tmp_path: Path
) -> None:
    root = Path(__file__).resolve().parents[2]
    process = forked.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path), mode],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(root)},
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline().startswith(b"ready")
        path = next(iter(find_folders(tmp_path)[0]))
        assert true_status(path, RunDirectory(path).info) == "RUNNING"
        process.kill()
        process.wait()
        time.sleep(0.1)
        assert true_status(path, RunDirectory(path).info) == "KILLED"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="MLFLOW_TRACK_DIR"):
        make(tmp_path / "file")


def test_what_cannot_be_written_does_not_stay_in_the_way_of_what_can(tmp_path: Path) -> None:
    directory = make(tmp_path)
    with pytest.raises(TypeError):
        directory.add("inputs", {"size": object()})
    directory.set_tags({"a": "b"})
    assert RunDirectory(directory.path).info == directory.info
    assert directory.info.tags == {"a": "b"} and directory.info.inputs == ()
