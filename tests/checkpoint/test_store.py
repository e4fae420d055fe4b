"""The store: complete and verified, or not there."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mlflow_track.checkpoint import pruning
from mlflow_track.checkpoint.disk import verify
from mlflow_track.checkpoint.disk.store import Checkpoint, CheckpointStore, CorruptCheckpointError
from mlflow_track.checkpoint.policy.retention import Keep

FILES = {"state.safetensors": b"tensors" * 999, "state.json": b'{"a": 1}'}
MANIFEST = {"metrics": {"loss": 1.0}, "is_finite": True}


def publish(store: CheckpointStore, step: int) -> Checkpoint:
    files = {name: content + str(step).encode() for name, content in FILES.items()}
    return store.publish(step, files, MANIFEST)


def test_what_is_published_verifies_and_is_listed_newest_last(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints")
    assert store.list() == []
    for step in (5, 100, 20):
        publish(store, step)
    assert [c.step for c in store.list()] == [5, 20, 100]
    for checkpoint in store.list():
        checkpoint.verify()
        assert checkpoint.metrics == {"loss": 1.0}


def test_pruning_reads_no_checkpoint_that_this_process_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path / "checkpoints")
    read: list[int] = []
    verify = Checkpoint.verify
    monkeypatch.setattr(Checkpoint, "verify", lambda self: (read.append(self.step), verify(self)))
    for step in range(3):
        publish(store, step)
    removed, _ = pruning.prune(store, pruning.judge(store, Keep(last=2), checked={2: True}))
    assert [verdict.checkpoint.step for verdict in removed] == [0] and read == []
    pruning.prune(store, pruning.judge(store, Keep(last=2)))
    assert read == []  # Nothing goes.
    pruning.prune(store, pruning.judge(store, Keep(last=1)))
    assert read == [2] and [c.step for c in store.list()] == [2]


DAMAGES = {
    "flip": lambda p: p.write_bytes(bytes([p.read_bytes()[0] ^ 1]) + p.read_bytes()[1:]),
    "flip last": lambda p: p.write_bytes(p.read_bytes()[:-1] + bytes([p.read_bytes()[-1] ^ 1])),
    "truncate": lambda p: os.truncate(p, p.stat().st_size - 1),
    "empty": lambda p: p.write_bytes(b""),
    "drop": lambda p: p.unlink(),
    "swap": lambda p: shutil.copy(p.parent.parent / "step-000000001" / p.name, p),
}


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_to_every_file_is_found(tmp_path: Path, damage: str, name: str) -> None:
    store = CheckpointStore(tmp_path)
    publish(store, 1)
    path = publish(store, 2).path
    DAMAGES[damage](path / name)
    with pytest.raises(CorruptCheckpointError, match="step-000000002"):
        store.list()[-1].verify()


def test_a_chunk_is_named_where_the_damage_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "CHUNK_BYTES", 1000)
    checkpoint = publish(CheckpointStore(tmp_path), 1)
    content = bytearray((checkpoint.path / "state.safetensors").read_bytes())
    content[3500] ^= 1
    (checkpoint.path / "state.safetensors").write_bytes(content)
    with pytest.raises(CorruptCheckpointError, match="chunk 3"):
        checkpoint.verify()


def test_a_full_disk_leaves_the_older_ones_and_nothing_of_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path)
    publish(store, 1)

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space"):
            publish(store, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["step-000000001"]
    publish(store, 2).verify()


def test_too_little_free_space_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
    with pytest.raises(OSError, match="free"):
        publish(CheckpointStore(tmp_path), 2)
    assert list(tmp_path.iterdir()) == []


def test_removed_quarantined_and_rewound_ones_are_no_longer_listed(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for step in range(4):
        publish(store, step)
    first, second, third, _ = store.list()
    store.remove(first)
    assert store.quarantine(second).is_dir()
    assert store.move_aside(third, 2).is_dir()
    (tmp_path / ".tmp-9-abc").mkdir()
    store.sweep()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "quarantine",
        "rewound-2",
        "step-000000003",
    ]


SAVING = """
import os, sys, threading, time
from pathlib import Path
from mlflow_track.checkpoint.disk.store import CheckpointStore
from mlflow_track.record import layout
store = CheckpointStore(Path("checkpoints"))
if sys.argv[2] == "straight into the folder":
    def publish(step, files, manifest):
        folder = Path("checkpoints") / layout.folder_of_step(step)
        folder.mkdir(parents=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
    store.publish = publish
threading.Timer(float(sys.argv[1]), lambda: os.kill(os.getpid(), 9)).start()
for step in range(100000):
    store.publish(step, {"state.safetensors": os.urandom(3 << 20)}, {"metrics": {}})
    os.write(1, f"{step}\\n".encode())
"""


@pytest.mark.parametrize("delay", [0.05, 0.11, 0.17, 0.23])
def test_sigkill_loses_no_acknowledged_save_and_leaves_no_half_one(
    delay: float, run_script: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    done = run_script(SAVING, str(delay), "as it is")
    assert done.returncode == -9
    acknowledged = [int(line) for line in done.stdout.split()]
    checkpoints = CheckpointStore(tmp_path / "checkpoints").list()
    for checkpoint in checkpoints:
        checkpoint.verify()
    assert {c.step for c in checkpoints} >= set(acknowledged)
    assert len(checkpoints) <= len(acknowledged) + 1


def test_without_the_rename_a_kill_leaves_a_checkpoint_that_does_not_verify(
    run_script: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    assert run_script(SAVING, "0.15", "straight into the folder").returncode == -9
    with pytest.raises(CorruptCheckpointError):
        CheckpointStore(tmp_path / "checkpoints").list()[-1].verify()
