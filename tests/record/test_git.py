"""What git says of a run's code: true under any configuration, and without running anything."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mlflow_track as mt
from mlflow_track.record.git import ask, changes
from mlflow_track.record.git.changes import Start, describe_code

Script = Callable[..., subprocess.CompletedProcess[str]]
NUMBERS = "".join(f"x{n} = {n}\n" for n in range(30))


@pytest.fixture(autouse=True)
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit; git reads no configuration but a file of the test."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    (tmp_path / "gitconfig").write_text("")
    folder = tmp_path / "code"
    folder.mkdir()
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(folder)
    git("init", "-q", "-b", "main")
    Path("t.py").write_text(NUMBERS)
    commit()
    return folder


def git(*words: str, folder: str = ".") -> str:
    identity = ("-c", "user.name=n", "-c", "user.email=n@example.org")
    done = subprocess.run(["git", "-C", folder, *identity, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def commit() -> str:
    git("add", "-A", "-f")
    git("commit", "-q", "--allow-empty", "-m", "c")
    return git("rev-parse", "HEAD")


def described(folder: str | None = None) -> dict[str, Any]:
    found = describe_code(Start(folder, dict(os.environ)), patch_file().parent)
    assert found is not None
    return found


def patch_file() -> Path:
    return Path(os.environ["GIT_CONFIG_GLOBAL"]).parent / "run/code.patch"


def restored(tmp_path: Path, ref: str) -> Path:
    """The commit with code.patch applied to it, by git without any configuration."""
    folder = tmp_path / "restored"
    git("worktree", "add", "-q", "--detach", str(folder), ref)
    git("apply", str(patch_file()), folder=str(folder))
    return folder


CONFIGURATIONS = {
    "no prefix": "[diff]\nnoprefix = true\n",
    "no context": "[diff]\ncontext = 0\ninterHunkContext = 9\n",
    "prefixes": "[diff]\nmnemonicPrefix = true\nsrcPrefix = x/y/\ndstPrefix = z/\n",
    "colours": "[color]\nui = always\ndiff = always\n[diff]\ncolorMoved = zebra\n",
    "renames": "[diff]\nrenames = copies\nalgorithm = patience\nwordRegex = .\n",
    "submodules": "[diff]\nsubmodule = log\nignoreSubmodules = all\n",
    "an order": "[diff]\norderFile = missing\nrelative = true\nsuppressBlankEmpty = true\n",
    "raw paths": "[core]\nquotePath = false\nsafecrlf = true\n",
    "no refresh": "[diff]\nautoRefreshIndex = false\n[core]\npreloadIndex = false\n",
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_patch_restores_the_code_under_any_configuration(name: str, tmp_path: Path) -> None:
    Path("sub").mkdir()
    for path in ('sub/é ".py', "gone.py", "moved.py", "mode.sh"):
        Path(path).write_text(NUMBERS)
    ref = commit()
    text = NUMBERS.replace("x7 = 7\n", "\nx7 = 8\n") + "\nend = 1"
    Path("t.py").write_text(text)
    Path('sub/é ".py').write_text(text)
    Path("gone.py").unlink()
    Path("moved.py").rename("renamed.py")
    git("add", "-A")
    Path("mode.sh").chmod(0o755)
    Path("untracked.py").write_text("u = 1\n")
    (tmp_path / "gitconfig").write_text(CONFIGURATIONS[name])
    found = described("sub")
    (tmp_path / "gitconfig").write_text("")
    assert (found["is_dirty"], found["left_out"], found["unknown"]) == (True, {}, "")
    assert found["untracked"] == ["untracked.py"] and found["commit"] == ref
    folder = restored(tmp_path, ref)
    expected = {p: Path(p).read_text() for p in ("t.py", 'sub/é ".py', "renamed.py", "mode.sh")}
    assert {p: (folder / p).read_text() for p in expected} == expected
    assert not (folder / "gone.py").exists() and not (folder / "moved.py").exists()
    assert (folder / "mode.sh").stat().st_mode & 0o100


def test_without_the_settings_a_configuration_spoils_the_patch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control."""
    monkeypatch.setattr(changes, "_PATCH", ("--patch",))
    ref = commit()
    Path("t.py").write_text(NUMBERS.replace("x7 = 7", "x7 = 8"))
    (tmp_path / "gitconfig").write_text(CONFIGURATIONS["no context"])
    described()
    with pytest.raises(AssertionError, match="patch does not apply"):
        restored(tmp_path, ref)


def program(path: Path, text: str = "cat") -> str:
    """A program that leaves a trace when it runs."""
    path.write_text(f'#!/bin/sh\necho ran >> "{path}.ran"\n{text}\n')
    path.chmod(0o755)
    return str(path)


def with_programs(tmp_path: Path, ran: str) -> None:
    """A repository in which everything that git could run does so for the changed files."""
    Path(".gitattributes").write_text("*.dat diff=d\n*.bin filter=f\n*.odd filter=a=b\n")
    for name in ("a.dat", "b.bin", "c.odd"):
        Path(name).write_text("one\n")
    commit()
    for name in ("a.dat", "b.bin", "c.odd", "t.py"):
        Path(name).write_text("two\n")
    tool = program(tmp_path / "tool")
    for name in (
        *("diff.d.textconv", "diff.d.command", "diff.external", "core.pager", "core.fsmonitor"),
        *("filter.f.clean", "filter.f.process", "filter.a=b.clean"),
    ):
        git("config", name, tool)
    git("config", "filter.f.required", "true")
    program(Path(".git/hooks/post-index-change"))
    assert not Path(ran).exists()


def test_nothing_that_a_repository_names_is_run(tmp_path: Path) -> None:
    with_programs(tmp_path, f"{tmp_path}/tool.ran")
    index = Path(".git/index").read_bytes()
    found = described()
    assert list(tmp_path.rglob("*.ran")) == []
    assert Path(".git/index").read_bytes() == index
    assert found["is_dirty"] is True
    assert list(found["left_out"]) == ["b.bin", "c.odd"]
    patch = patch_file().read_text()
    assert "+++ b/a.dat" in patch and "+++ b/t.py" in patch and "b.bin" not in patch


@pytest.mark.parametrize("guard", ["--no-textconv", "--no-ext-diff", "filters", "core.fsmonitor"])
def test_without_each_guard_a_program_is_run(
    guard: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control."""
    with_programs(tmp_path, f"{tmp_path}/tool.ran")
    if guard == "--no-textconv":
        git("config", "--unset", "diff.d.command")
        git("config", "--unset", "diff.external")
    monkeypatch.setattr(changes, "_DIFF", tuple(w for w in changes._DIFF if w != guard))
    settings = {k: v for k, v in ask._SETTINGS.items() if k != guard}
    monkeypatch.setattr(ask, "_SETTINGS", settings)
    if guard == "filters":
        monkeypatch.setattr(changes, "filters_of", lambda answer: [])
    described()
    assert list(tmp_path.rglob("*.ran")) != []


def test_where_only_a_filter_could_tell_it_is_unknown_whether_the_code_changed() -> None:
    Path(".gitattributes").write_text("*.bin filter=large\n")
    Path("w.bin").write_text("one\n")
    commit()
    git("config", "filter.large.clean", "no-such-program")
    git("config", "filter.large.required", "true")
    assert described()["is_dirty"] is False
    Path("w.bin").write_text("another\n")
    found = described()
    assert found["is_dirty"] is None and "filter" in found["left_out"]["w.bin"]
    Path("t.py").write_text("x = 2\n")
    assert described()["is_dirty"] is True and "+x = 2" in patch_file().read_text()


@pytest.mark.parametrize("what", ["index", "too much", "no commit"])
def test_where_git_fails_nothing_is_claimed(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if what == "index":
        Path(".git/index").write_bytes(b"damaged")
    elif what == "too much":
        monkeypatch.setattr(changes, "_MOST_LIST_BYTES", 10)
        Path("t.py").write_text("x = 2\n")
        with pytest.raises(ask.GitError, match="git says more than 10 B"):
            described()
        return
    else:
        git("checkout", "-q", "--orphan", "new")
        with pytest.raises(ask.GitError, match="HEAD"):
            described()
        return
    found = described()
    assert found["is_dirty"] is None and found["unknown"] and found["commit"]


def test_outside_a_repository_there_is_no_git(tmp_path: Path) -> None:
    assert describe_code(Start(str(tmp_path), dict(os.environ)), tmp_path) is None


def test_a_git_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/git").write_text("#!/bin/sh\nexec sleep 600\n")
    (tmp_path / "bin/git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setattr(ask, "_MOST_SECONDS", 0.2)
    start = Start(None, dict(os.environ))
    with pytest.raises(ask.GitError, match=r"git took more than 0\.2 s"):
        describe_code(start, tmp_path)
    assert start.names.returncode is not None and start.filters.returncode is not None


def test_large_and_binary_files_are_named_and_the_rest_is_there(tmp_path: Path) -> None:
    Path("data.csv").write_text("1\n")
    Path("gone.csv").write_text("row\n" * 700_000)
    Path("model.bin").write_bytes(b"\0one")
    ref = commit()
    Path("data.csv").write_text("row\n" * 700_000)
    Path("gone.csv").unlink()
    Path("model.bin").write_bytes(b"\0two")
    Path("t.py").write_text(NUMBERS + "end = 1\n")
    found = described()
    assert found["left_out"] == {
        "data.csv": "large (2.8 MB)",
        "gone.csv": "binary",
        "model.bin": "binary",
    }
    assert (restored(tmp_path, ref) / "t.py").read_text() == NUMBERS + "end = 1\n"


def test_of_many_changes_the_small_ones_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "_MOST_PATCH_BYTES", 20_000)
    monkeypatch.setattr(changes, "_PIECE_BYTES", 5_000)
    for n in range(10):
        Path(f"f{n}.txt").write_text("a\n")
    commit()
    for n in range(10):
        Path(f"f{n}.txt").write_text("changed\n" * 100 * (10 - n))
    found = described()
    assert list(found["left_out"]) == ["f2.txt", "f1.txt", "f0.txt"]
    assert "too much in all" in found["left_out"]["f0.txt"]
    assert "+++ b/f9.txt" in patch_file().read_text()


def test_one_unreadable_file_takes_no_other_along(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("bad.py").write_text("b = 1\n")
    commit()
    Path("t.py").write_text("x = 2\n")
    Path("bad.py").write_text("b = 2\n")
    answer = ask.Git.ask

    def failing(self: ask.Git, *words: str, **options: Any) -> bytes:
        if "--patch" in words and ("bad.py" in words or "--" not in words):
            raise ask.GitError("cannot hash bad.py")
        return answer(self, *words, **options)

    monkeypatch.setattr(ask.Git, "ask", failing)
    found = described()
    assert found["left_out"] == {"bad.py": "cannot hash bad.py"} and found["is_dirty"]
    assert "+x = 2" in patch_file().read_text()


def test_a_submodule_is_named_with_its_commit(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    git("init", "-q", folder=str(tmp_path / "lib"))
    (tmp_path / "lib/a.py").write_text("a = 1\n")
    git("add", ".", folder=str(tmp_path / "lib"))
    git("commit", "-qm", "c", folder=str(tmp_path / "lib"))
    git("-c", "protocol.file.allow=always", "submodule", "add", "-q", str(tmp_path / "lib"), "lib")
    ref = commit()
    assert described()["is_dirty"] is False
    Path("lib/a.py").write_text("a = 2\n")
    Path("t.py").write_text("x = 2\n")
    found = described()
    inner = git("rev-parse", "HEAD", folder="lib")
    assert found["left_out"] == {"lib": f"a submodule at {inner} with uncommitted changes"}
    assert (restored(tmp_path, ref) / "t.py").read_text() == "x = 2\n"


def test_untracked_files_are_named_code_first_and_the_runs_are_not() -> None:
    for name in ("notes.md", "new.py", "pkg/a.py", "runs/x/id/run.json"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("")
    Path(".gitignore").write_text("ignored.py\n")
    Path("ignored.py").write_text("")
    for n in range(60):
        Path(f"z{n:02}.dat").write_text("")
    found = describe_code(Start(None, dict(os.environ)), Path("runs/x/id").absolute())
    assert found is not None
    assert found["untracked"][:4] == ["new.py", ".gitignore", "notes.md", "pkg/"]
    assert found["untracked"][-1] == "and 14 others" and len(found["untracked"]) == 51
    assert "runs/" not in found["untracked"]


def test_the_patch_of_an_earlier_attempt_is_set_aside() -> None:
    Path("t.py").write_text("x = 2\n")
    described()
    described()
    first = patch_file().read_text()
    git("checkout", "-q", "t.py")
    described()
    assert not patch_file().exists()
    assert patch_file().with_name("code.earlier-1.patch").read_text() == first


START = """
import os, sys, mlflow_track as mt
with mt.start_run(backend="local", directory=sys.argv[1]) as run:
    os.chdir("/")
    sys.argv[0] = "other"
"""


def test_folder_script_and_commit_are_those_of_the_call_and_of_the_script(
    repository: Path, tmp_path: Path, run_script: Script
) -> None:
    (repository / "train.py").write_text(START)
    ref = commit()
    shell = tmp_path / "elsewhere"
    shell.mkdir()
    git("init", "-q", folder=str(shell))
    code = "import os, runpy, sys; os.chdir(sys.argv[2]); sys.argv = sys.argv[:2]\n"
    code += "import __main__; __main__.__file__ = sys.argv[0] = {!r}\n".format(
        str(repository / "train.py")
    )
    code += f"exec({START!r})"
    done = run_script(code, str(tmp_path / "runs"), str(shell))
    assert done.returncode == 0, done.stderr
    (run,) = mt.load_runs(tmp_path / "runs")
    found = run.info["provenance"]
    assert found["working_folder"] == str(shell)
    assert found["script"] == str(repository / "train.py")
    assert (found["git"]["commit"], found["git"]["root"]) == (ref, str(repository))
    assert json.loads((run.path / "run.json").read_text())["provenance"]["missing"] == {}
