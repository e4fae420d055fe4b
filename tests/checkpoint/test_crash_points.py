"""A power loss at any point of saves with retention loses no acknowledged checkpoint."""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from mlflow_track.checkpoint.disk import publish, verify
from mlflow_track.checkpoint.disk.publish import Content
from mlflow_track.checkpoint.disk.store import CheckpointStore, CorruptCheckpointError
from tests.checkpoint.crashes import Disk, Operation, recorded

STEPS = 3


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Operation]:
    """Three saves; after each, noted as ("ack", ".", step), the one before is removed."""
    monkeypatch.setattr(verify, "CHUNK_BYTES", 5000)
    monkeypatch.setattr(publish, "_LEAST_DIRECT_BYTES", 4096)
    root = tmp_path / "recorded"
    root.mkdir()
    operations: list[Operation] = []
    with recorded(root, operations):
        store = CheckpointStore(root / "checkpoints")
        rows = os.open(root / "metrics.csv", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
        root_folder = os.open(root, os.O_RDONLY)
        os.fsync(root_folder)
        for step in range(STEPS):
            os.write(rows, b"a row\n")
            publish.publish(
                store.path,
                step,
                {
                    "state.safetensors": Content.of(os.urandom(12_345)),
                    "state.json": Content.of(b"{}"),
                },
                {"metrics_position": 6 * (step + 1)},
                sync_first=[str(root / "metrics.csv")],
            )
            operations.append(("ack", ".", step))
            for older in store.list()[:-1]:
                store.remove(older)
        os.close(rows)
        os.close(root_folder)
    return operations


def newest_verified(path: Path) -> int | None:
    """The step a resume would take; its rows must be there, too."""
    for checkpoint in reversed(CheckpointStore(path / "checkpoints").list()):
        try:
            checkpoint.verify()
        except CorruptCheckpointError:
            continue
        rows = (path / "metrics.csv").read_bytes()
        if len(rows) < checkpoint.manifest.metrics_position:
            return None
        return checkpoint.step
    return None


def losses(log: list[Operation], folder: Path) -> list[tuple[Any, ...]]:
    """The crash points after which an acknowledged checkpoint is not found."""
    found = []
    for end in range(len(log) + 1):
        acknowledged = max((o[2] for o in log[:end] if o[0] == "ack"), default=None)
        for names, data in itertools.product((True, False), repeat=2):
            disk = Disk()
            for operation in log[:end]:
                disk.apply(operation)
            shown = folder / "shown"
            disk.show(shown, names_are_kept=names, data_is_kept=data)
            newest = newest_verified(shown)
            if acknowledged is not None and (newest is None or newest < acknowledged):
                found.append((end, log[end - 1][:2], names, data, acknowledged, newest))
            shutil.rmtree(shown)
    return found


def test_no_crash_point_loses_an_acknowledged_checkpoint(
    log: list[Operation], tmp_path: Path
) -> None:
    kinds = {operation[0] for operation in log}
    assert kinds == {"create", "write", "fsync", "mkdir", "rename", "remove", "ack"}
    assert losses(log, tmp_path) == []


@pytest.mark.parametrize("what", ["state.safetensors", "manifest.json", "metrics.csv", "folders"])
def test_without_the_fsyncs_some_crash_point_loses_one(
    what: str, log: list[Operation], tmp_path: Path
) -> None:
    def is_left_out(operation: Operation) -> bool:
        is_of_a_file = "." in Path(operation[1]).name[1:]
        is_meant = not is_of_a_file if what == "folders" else operation[1].endswith(what)
        return operation[0] == "fsync" and is_meant

    assert losses([o for o in log if not is_left_out(o)], tmp_path)


def test_removing_the_older_one_before_the_commit_would_lose_it(
    log: list[Operation], tmp_path: Path
) -> None:
    # The first removal moves to just before the second save.
    second = [i for i, o in enumerate(log) if o[0] == "ack"][:2]
    save, rest = log[second[0] + 1 : second[1]], log[second[1] + 1 :]
    end = next(i for i, o in enumerate(rest) if o[0] == "write")
    reordered = [*log[: second[0] + 1], *rest[:end], *save, log[second[1]], *rest[end:]]
    assert losses(reordered, tmp_path)
