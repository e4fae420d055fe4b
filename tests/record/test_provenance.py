"""What a run notes of its surroundings, and what is not read again for each run of a process."""

from __future__ import annotations

import subprocess
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
        "is_dirty": False,
    }
    Path("t.py").write_text("a = 2\n")
    with mt.start_run(backend="local", directory=tmp_path / "others") as run:
        pass
    (dirty,) = mt.load_runs("others")
    assert dirty.info["provenance"]["git"]["is_dirty"]
    assert "+a = 2" in (run.path / "code.patch").read_text()
