"""What a run notes of its surroundings, and what is not read again for each run of a process."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path

import pytest

import mlflow_track as mt
from mlflow_track.record import provenance


def install(site: Path, name: str, version: str) -> Path:
    folder = site / f"{name}-{version}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return folder


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages that Python looks into."""
    folder = tmp_path / "site"
    install(folder, "first-package", "1.0")
    monkeypatch.syspath_prepend(folder)
    return folder


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every entry of sys.path whose packages are read while the test runs."""
    entries: list[str] = []
    read = provenance._packages_in
    monkeypatch.setattr(
        provenance, "_packages_in", lambda entry: (entries.append(entry), read(entry))[1]
    )
    return entries


def packages_of_a_run() -> set[str]:
    with mt.start_run(backend="local") as run:
        pass
    return set((run.path / "requirements.txt").read_text().splitlines())


def test_packages_are_read_once_in_a_process(site: Path, listed: list[str]) -> None:
    before = packages_of_a_run()
    assert str(site) in listed
    listed.clear()
    assert packages_of_a_run() == before >= {"first-package==1.0"}
    assert listed == []


def test_packages_are_read_again_where_one_was_installed_upgraded_or_removed(
    site: Path, listed: list[str]
) -> None:
    packages_of_a_run()
    listed.clear()
    second = install(site, "second-package", "1.0")
    assert packages_of_a_run() >= {"first-package==1.0", "second-package==1.0"}
    assert listed == [str(site)]
    second.rename(site / "second-package-2.0.dist-info")
    (site / "second-package-2.0.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: second-package\nVersion: 2.0\n"
    )
    upgraded = packages_of_a_run()
    assert "second-package==2.0" in upgraded and "second-package==1.0" not in upgraded
    (site / "second-package-2.0.dist-info/METADATA").unlink()
    (site / "second-package-2.0.dist-info").rmdir()
    assert not any(package.startswith("second-package") for package in packages_of_a_run())


def test_packages_are_those_of_the_sys_path_of_the_moment(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "other-package==1.0" not in packages_of_a_run()
    install(tmp_path / "other", "other-package", "1.0")
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path / "other")
        assert "other-package==1.0" in packages_of_a_run()
    assert "other-package==1.0" not in packages_of_a_run()


def test_without_the_mtime_an_installed_package_would_be_missed(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control."""
    places = provenance._places()
    monkeypatch.setattr(provenance, "_places", lambda: places)
    packages_of_a_run()
    install(site, "second-package", "1.0")
    assert "second-package==1.0" not in packages_of_a_run()


def test_without_what_was_listed_every_run_reads_all_packages(
    site: Path, listed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control."""
    packages_of_a_run()
    listed.clear()
    monkeypatch.setattr(provenance, "_listed", {})
    packages_of_a_run()
    assert str(site) in listed


def test_versions_of_an_attempt_follow_an_upgrade(site: Path) -> None:
    install(site, "numpy", "0.1")
    assert provenance.describe_process()["numpy"] == "0.1"
    (site / "numpy-0.1.dist-info").rename(site / "numpy-0.2.dist-info")
    (site / "numpy-0.2.dist-info/METADATA").write_text("Name: numpy\nVersion: 0.2\n")
    assert provenance.describe_process()["numpy"] == "0.2"


def test_git_says_commit_branch_and_whether_something_changed(tmp_path: Path) -> None:
    identity = ("-c", "user.name=n", "-c", "user.email=n@example.org")
    Path("t.py").write_text("a = 1\n")
    for words in (("init", "-q", "-b", "topic"), ("add", "."), (*identity, "commit", "-qm", "a")):
        subprocess.run(["git", *words], check=True)
    with mt.start_run(backend="local", directory=tmp_path / "runs") as run:
        pass
    (clean,) = mt.load_runs("runs")
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert clean.info["provenance"]["git"] == {
        "commit": head.stdout.strip(),
        "branch": "topic",
        "root": str(Path.cwd()),
        "is_dirty": False,
        "left_out": {},
        "untracked": [],
        "unknown": "",
    }
    Path("t.py").write_text("a = 2\n")
    with mt.start_run(backend="local", directory=tmp_path / "others") as run:
        pass
    (dirty,) = mt.load_runs("others")
    assert dirty.info["provenance"]["git"]["is_dirty"]
    assert "+a = 2" in (run.path / "code.patch").read_text()


# --- each piece stands alone ---

PIECES = ("user", "script", "working_folder", "platform", "cpu_count")


@pytest.mark.parametrize(
    "metadata",
    [b"Name: odd\nVersion: 1.0\nAuthor: Jos\xe9\n", b"Name: odd\n"],
    ids=["in Latin-1", "no version"],
)
def test_damaged_metadata_of_a_package_takes_nothing_else_away(metadata: bytes, site: Path) -> None:
    folder = install(site, "odd-package", "1.0")
    (folder / "METADATA").write_bytes(metadata)
    with mt.start_run(backend="local") as run:
        pass
    found = mt.load_run(run.path).info["provenance"]
    assert all(found[piece] for piece in PIECES)
    listed = (run.path / "requirements.txt").read_text().splitlines()
    assert {"first-package==1.0", "odd-package==1.0"} <= set(listed)
    assert "odd-package-1.0" in found["missing"]["packages"]
    assert "provenance: packages is not known" in (run.path / "training.log").read_text()


def test_metadata_of_torch_that_is_damaged_does_not_stop_the_start(site: Path) -> None:
    (install(site, "torch", "9.9") / "METADATA").write_bytes(b"Name: torch\nAuthor: Jos\xe9\n")
    with mt.start_run(backend="local") as run:
        pass
    assert mt.load_run(run.path).info["attempts"][0]["torch"] is None


@pytest.mark.parametrize("piece", ["user", "platform", "packages", "git"])
def test_a_piece_that_fails_is_named_and_the_others_are_there(
    piece: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("password=hunter2 is refused")

    places = {"user": "_user", "packages": "_packages", "git": "describe_code"}
    if piece == "platform":
        monkeypatch.setattr(provenance.platform, "platform", fail)
    else:
        monkeypatch.setattr(provenance, places[piece], fail)
    with mt.start_run(backend="local") as run:
        pass
    found = mt.load_run(run.path).info["provenance"]
    assert found["missing"] == {piece: "password=*** is refused"}
    assert all(found[other] for other in PIECES if other != piece)
    assert piece in ("packages", "git") or found[piece] is None


def test_a_deleted_folder_and_an_empty_argv_take_nothing_else_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    monkeypatch.setattr(provenance.sys, "argv", [])
    origin = provenance.Origin()
    monkeypatch.chdir(tmp_path)
    found = origin.capture(tmp_path)
    assert found["working_folder"] is None and found["script"] is None
    assert {"working_folder", "script"} <= set(found["missing"])
    assert found["user"] and found["platform"] and (tmp_path / "requirements.txt").exists()


def test_entries_of_the_path_of_other_kinds_are_passed_over(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance.sys, "path", [*provenance.sys.path, site, 3, None])
    assert "first-package==1.0" in packages_of_a_run()


def test_a_thread_that_cannot_start_leaves_no_process_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[provenance.Origin] = []

    class Known(provenance.Origin):
        def __init__(self) -> None:
            super().__init__()
            started.append(self)

    def fail(thread: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(provenance, "Origin", Known)
    monkeypatch.setattr(provenance.threading.Thread, "start", fail)
    with pytest.raises(RuntimeError, match="start new thread"):
        provenance.start(tmp_path, lambda found: None, lambda line, is_shown=True: None)
    (origin,) = started
    assert origin.git is not None and origin.git.names.returncode is not None


def test_an_origin_that_is_known_too_late_is_not_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow_track import attempt

    may_end = threading.Event()
    capture = provenance.Origin.capture

    def slow(self: provenance.Origin, folder: Path) -> dict[str, object]:
        may_end.wait(60)
        return capture(self, folder)

    monkeypatch.setattr(provenance.Origin, "capture", slow)
    monkeypatch.setattr(attempt, "_PROVENANCE_SECONDS", 0.01)
    with mt.start_run(backend="local") as run:
        pass
    before = (run.path / "run.json").read_text()
    may_end.set()
    run._attempt.provenance.join(60)
    assert (run.path / "run.json").read_text() == before
    assert "the origin of the run is not in run.json" in capsys.readouterr().err
