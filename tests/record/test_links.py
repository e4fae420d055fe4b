"""Nothing is written through a link, or into a pipe, that stands in a run's folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import mlflow_track as mt
from mlflow_track.cli import main
from mlflow_track.record import files


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    with mt.start_run(experiment="e") as run:
        run.log_metric("a", 1.0, step=0)
        run.checkpoints().save(0, {"weight": torch.zeros(2)})
        run.checkpoints().save(1, {"weight": torch.zeros(2)})
    (record,) = mt.load_runs("runs")
    return record.path.absolute()


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    folder = tmp_path / "secret"
    folder.mkdir()
    (folder / "key").write_text("hunter2")
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def resume(folder: Path) -> None:
    with mt.start_run(resume=folder.name) as run:
        run.log_metric("a", 2.0, step=5)


@pytest.mark.parametrize("kind", ["link", "pipe"])
@pytest.mark.timeout(60)
def test_training_log_that_leads_elsewhere_gets_no_line(
    kind: str, run_folder: Path, secret: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = run_folder / "training.log"
    log.unlink()
    if kind == "link":
        log.symlink_to(secret / "key")
    else:
        os.mkfifo(log)
    before = content(secret)
    resume(run_folder)
    assert content(secret) == before
    assert "not in training.log" in capsys.readouterr().err
    assert mt.load_run(run_folder).status == "FINISHED"


def test_without_the_look_at_links_the_line_goes_through(
    run_folder: Path, secret: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control."""
    log = run_folder / "training.log"
    log.unlink()
    log.symlink_to(secret / "key")
    before = content(secret)
    monkeypatch.setattr(
        files, "_open_regular", lambda path, flags: os.open(path, flags, files.FILE_MODE)
    )
    resume(run_folder)
    assert content(secret) != before


@pytest.mark.parametrize(
    ("there", "words"),
    [
        ("nothing", "is a link to .*/disk, which does not exist: mount the disk"),
        ("a file", "is a link to .*/disk, which is not a folder: mount the disk"),
        ("an empty folder", "is a link to .*/disk, which is empty: mount the disk"),
        ("a secret", "something else than checkpoints of this run .key.: it is not followed"),
        ("another run", "something else than checkpoints of this run .step-000000007.: it is not"),
    ],
)
def test_checkpoints_that_lead_elsewhere_are_refused(
    there: str, words: str, run_folder: Path, secret: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    if there == "a file":
        disk.write_text("x")
    elif there == "an empty folder":
        disk.mkdir()
    elif there == "a secret":
        secret.rename(disk)
    elif there == "another run":
        with mt.start_run(experiment="other") as other:
            other.checkpoints().save(7, {"weight": torch.zeros(2)})
        (other.path / "checkpoints").rename(disk)
    (run_folder / "checkpoints").rename(tmp_path / "before")
    (run_folder / "checkpoints").symlink_to(disk)
    before = content(tmp_path / "disk")
    with mt.start_run(resume=run_folder.name) as run:
        with pytest.raises(OSError, match=words):
            run.checkpoints()
    assert content(tmp_path / "disk") == before
    assert mt.load_run(run_folder).checkpoints == []


def test_checkpoints_that_are_a_file_are_refused(run_folder: Path, tmp_path: Path) -> None:
    (run_folder / "checkpoints").rename(tmp_path / "before")
    (run_folder / "checkpoints").write_text("x")
    with mt.start_run(resume=run_folder.name) as run:
        with pytest.raises(NotADirectoryError, match="is not a folder: move it away"):
            run.checkpoints()


def test_checkpoints_of_the_run_on_another_disk_are_used_by_its_trainer(
    run_folder: Path, tmp_path: Path
) -> None:
    (run_folder / "checkpoints").rename(tmp_path / "disk")
    (run_folder / "checkpoints").symlink_to(tmp_path / "disk")
    state = {"weight": torch.ones(2)}
    with mt.start_run(resume=run_folder.name) as run:
        checkpoints = run.checkpoints(keep=mt.Keep(last=1, best=1, metric="loss", mode="min"))
        assert checkpoints.restore(state) == 2 and not state["weight"].any()
        for step in (2, 3, 4):
            run.log_metrics({"loss": float(step)}, step=step)
            checkpoints.save(step, state)
        checkpoints.wait()
        assert [found.step for found in checkpoints.list()] == [1, 2, 4]
    # A reader, to whom the folder may have come from anywhere, does not follow it.
    assert mt.load_run(run_folder).checkpoints == []


def test_ckpt_commands_leave_a_checkpoint_alone_that_is_a_link(
    run_folder: Path, secret: Path
) -> None:
    place = run_folder / "checkpoints" / "step-000000000"
    place.rename(secret / "step-000000000")
    place.symlink_to(secret / "step-000000000")
    before = content(secret)
    for words in (["pin", run_folder.name, "0"], ["prune", run_folder.name, "--last", "1"]):
        CliRunner().invoke(main, ["ckpt", *words])
    assert content(secret) == before
    assert [found.step for found in mt.load_run(run_folder).checkpoints] == [1]
