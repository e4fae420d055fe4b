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


def test_checkpoints_that_lead_elsewhere_are_refused(run_folder: Path, secret: Path) -> None:
    (run_folder / "checkpoints").rename(secret / "checkpoints")
    (run_folder / "checkpoints").symlink_to(secret / "checkpoints")
    before = content(secret)
    with mt.start_run(resume=run_folder.name) as run:
        with pytest.raises(OSError, match="it is a link, which is not followed"):
            run.checkpoints().save(5, {"weight": torch.zeros(2)})
    assert content(secret) == before
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
