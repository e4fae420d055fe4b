"""Who may do what with a run's files: what the umask says, as with every other program."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import mlflow_track as mt
from mlflow_track.mirror.state import MirrorState
from mlflow_track.record import layout
from mlflow_track.record.lock import FileLock
from mlflow_track.record.trash import move_to_trash
from tests.forking import ForkingInterpreter

Script = Callable[..., subprocess.CompletedProcess[str]]

# Everything that a run writes: rows, a wider header, params, texts, copies, two attempts with a
# rewind, checkpoints by the writer process, a pin, one moved aside.
TRAIN = """
    import os, sys
    from pathlib import Path
    import torch, mlflow_track as mt
    from mlflow_track.checkpoint import pruning
    os.umask(int(sys.argv[1], 8))
    Path("source").mkdir()
    Path("source/f.txt").touch()
    where = {"directory": "new/runs", "run_name": "r"}
    for attempt in range(2):
        with mt.start_run(**where, resume="auto", params={"a": 1}) as run:
            checkpoints = run.checkpoints()
            state = {"w": torch.zeros(300_000)}
            checkpoints.restore(state, step=0 if attempt else None)
            for step in range(1, 4):
                run.log_metrics({"a": 1.0, f"b{step}": 2.0}, step=step)
                checkpoints.save(step - 1, state)
            checkpoints.wait()
            pruning.pin(checkpoints.list()[0])
            run.log_text("x", "deep/er/x.txt")
            run.log_artifact("source")
            run.set_tag("t", "v")
            run.finish("FAILED")
"""


@pytest.fixture(params=["002", "022", "077"])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    mask = int(request.param, 8)
    before = os.umask(mask)
    yield mask
    os.umask(before)


def wrong_modes(folder: Path, umask: int) -> list[str]:
    """Everything in `folder` whose mode is not what the umask leaves."""
    found = {path: stat.S_IMODE(path.lstat().st_mode) for path in folder.rglob("*")}
    return [
        f"{path} {mode:o}"
        for path, mode in found.items()
        if mode & 0o777 != (0o777 if path.is_dir() else 0o666) & ~umask
    ]


def test_files_and_folders_of_a_run_have_the_modes_that_the_umask_leaves(
    umask: int, run_script: Script
) -> None:
    done = run_script(TRAIN, f"{umask:03o}")
    assert done.returncode == 0, done.stderr
    (run,) = mt.load_runs("new/runs")
    names = {path.name for path in run.path.rglob("*")}
    assert {"run.lock", "training.log", "rewound-2", "pinned", "manifest.json", "f.txt"} <= names
    MirrorState().write(run.path, "mlflow")
    mirror = FileLock(layout.mirror_lock(run.path, "mlflow"))
    assert mirror.take()
    mirror.close()
    assert wrong_modes(Path("new"), umask) == []
    move_to_trash(run.path)
    assert Path("new/runs/.trash").is_dir() and wrong_modes(Path("new"), umask) == []


def test_what_is_made_in_a_set_gid_folder_is_the_groups(run_script: Script) -> None:
    Path("new").mkdir()
    Path("new").chmod(0o2775)
    assert run_script(TRAIN, "002").returncode == 0
    folders = [path for path in Path("new").rglob("*") if path.is_dir()]
    assert [path for path in folders if not path.stat().st_mode & stat.S_ISGID] == []
    assert {path.stat().st_gid for path in Path("new").rglob("*")} == {Path("new").stat().st_gid}


@pytest.mark.parametrize(
    "guard",
    [
        "from mlflow_track.record import files; files.FILE_MODE = 0o644",
        "import os; real = os.mkdir; os.mkdir = lambda p, mode=0, **k: real(p, 0o755, **k)",
    ],
)
def test_with_a_mode_of_its_own_the_group_could_not_write(guard: str, run_script: Script) -> None:
    """The negative control."""
    assert run_script(f"{guard}\n{textwrap.dedent(TRAIN)}", "002").returncode == 0
    assert wrong_modes(Path("new"), 0o002) != []


# --- two users of one group ---

# Their interpreters start once in a parallel run.
together = pytest.mark.xdist_group("users")

GROUP, OWNER, COLLEAGUE = 61000, 61001, 61002
AsUser = Callable[[int, str, str, str], subprocess.CompletedProcess[str]]


def user_words(user: int) -> list[str]:
    return ["setpriv", "--reuid", str(user), "--regid", str(user), "--groups", str(GROUP)]


@pytest.fixture(scope="module")
def as_user() -> Iterator[AsUser]:
    """Run Python code as another user of the group, in a given folder and with a given umask."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root can be two users, and only with setpriv")
    # The second is for an interpreter in a home that others cannot enter: it gives reading alone.
    ways = ([], ["--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"])
    with contextlib.ExitStack() as stack, tempfile.TemporaryDirectory(dir="/tmp") as home:
        os.chmod(home, 0o777)
        for words in ways:
            try:
                users = {
                    user: stack.enter_context(
                        ForkingInterpreter(
                            "import mlflow_track, torch",
                            folder="/",
                            before=[*user_words(user), *words],
                            environment={"HOME": home, "TMPDIR": home},
                        )
                    )
                    for user in (OWNER, COLLEAGUE)
                }
                break
            except RuntimeError as error:
                said = str(error)
        else:
            pytest.skip(f"another user cannot run this Python: {said}")

        def run(user: int, folder: str, umask: str, code: str) -> subprocess.CompletedProcess[str]:
            begin = f"import os; os.umask(0o{umask}); os.chdir({folder!r})\n"
            return users[user].run(begin + code)

        yield run


@pytest.fixture
def shared() -> Iterator[str]:
    """A folder of the group; not below the tests' own, which others cannot enter."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chown(folder, 0, GROUP)
        os.chmod(folder, 0o2775)
        yield folder


ATTEMPT = """
import os, mlflow_track as mt, torch
with mt.start_run(experiment="e", run_name="r", resume="auto", directory="runs") as run:
    checkpoints = run.checkpoints()
    state = {"w": torch.zeros(3)}
    begin = checkpoints.restore(state)
    for step in range(begin, begin + 3):
        run.log_metrics({"a": 1.0, f"by {os.getuid()}": 2.0}, step=step)
        checkpoints.save(step, state)
    run.log_params({f"by {os.getuid()}": 1})
    run.log_text(f"{begin}", f"{begin}.txt")
    run.finish("FAILED")
print(begin)
"""
COMMAND = "import sys; from mlflow_track.cli import main; main({words})"


@together
@pytest.mark.timeout(300)
def test_a_colleague_resumes_pins_prunes_and_throws_away_a_run_of_the_group(
    as_user: AsUser, shared: str
) -> None:
    def command(user: int, *words: str) -> str:
        done = as_user(user, shared, "002", COMMAND.format(words=[*words]))
        assert done.returncode == 0, done.stderr
        return done.stdout

    for user, begin in ((OWNER, 0), (COLLEAGUE, 3), (OWNER, 6)):
        done = as_user(user, shared, "002", ATTEMPT)
        assert (done.returncode, done.stdout) == (0, f"{begin}\n"), done.stderr
    (run,) = mt.load_runs(f"{shared}/runs")
    assert run.metrics().index.tolist() == list(range(9)) and len(run.info["attempts"]) == 3
    assert {path.stat().st_uid for path in run.path.rglob("*")} == {OWNER, COLLEAGUE}
    runs = ("--directory", "runs")
    assert command(COLLEAGUE, "ckpt", "pin", "r", "1", *runs) == "step 1 is pinned\n"
    pruned = command(COLLEAGUE, "ckpt", "prune", "r", "--last", "1", *runs)
    assert "removed step 0" in pruned and "removed step 4" in pruned
    command(OWNER, "ckpt", "unpin", "r", "1", *runs)
    assert "removed step 1" in command(OWNER, "ckpt", "prune", "r", "--last", "1", *runs)
    command(COLLEAGUE, "rm", "r", *runs)
    assert "removed" in command(OWNER, "gc", "runs")
    assert mt.load_runs(f"{shared}/runs") == []


@together
@pytest.mark.timeout(300)
def test_a_colleague_can_read_and_change_nothing_where_the_umask_says_so(
    as_user: AsUser, shared: str
) -> None:
    """The negative control, too: with 022 what the test above does is refused."""
    assert as_user(OWNER, shared, "022", ATTEMPT).returncode == 0
    done = as_user(COLLEAGUE, shared, "002", ATTEMPT)
    assert done.returncode == 1 and "PermissionError" in done.stderr
    private = ATTEMPT.replace('"runs"', '"private"')
    assert as_user(OWNER, shared, "077", private).returncode == 0
    files = [str(path) for path in Path(shared, "private").rglob("*")]
    assert len(files) > 10
    for path in files:
        readable = subprocess.run([*user_words(COLLEAGUE), "test", "-r", path], check=False)
        assert readable.returncode == 1, path
