"""A run's folder: its name stays inside, its lock tells the truth."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


def test_a_run_held_by_another_process_is_refused(tmp_path: Path) -> None:
    directory = make(tmp_path)
    directory.start_attempt({"pid": 1, "host": "here"})
    assert is_held(directory.path)
    with pytest.raises(RunHeldError, match="process 1 on here"):
        RunDirectory(directory.path).acquire()
    directory.release()
    assert not is_held(directory.path)


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
