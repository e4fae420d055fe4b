"""Do checkpoints get to the server whole, and leave it again, on every kind of artifact store?"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mlflow_track as mt
from mlflow_track.backends.protocol import Refused, Unavailable
from mlflow_track.checkpoint.disk.store import CheckpointStore
from mlflow_track.mirror.shipper import Shipper
from tests.mirror.conftest import client_of, open_store, shipper_to

pytestmark = pytest.mark.xdist_group("server")


@pytest.fixture
def run(tmp_path: Path) -> Iterator[mt.Run]:
    with mt.start_run(experiment="checkpoints", backend="local") as run:
        yield run


def publish(run: mt.Run, step: int, size: int = 1000) -> None:
    store = CheckpointStore(run.path / "checkpoints")
    store.publish(step, {"state.safetensors": b"x" * size, "state.json": b"{}"}, {"metrics": {}})


def retire(run: mt.Run, step: int) -> None:
    store = CheckpointStore(run.path / "checkpoints")
    (checkpoint,) = [c for c in store.list() if c.step == step]
    store.remove(checkpoint)


def shipper_of(run: mt.Run, uri: str) -> Shipper:
    # What the fixture's backend leaves out: where the run goes.
    return shipper_to(run.path, uri)


def there(shipper: Shipper) -> dict[str, set[str]]:
    """The files of each checkpoint folder at the server."""
    at_store, run_id = shipper._ledger.backend, shipper.state.run_id
    return {
        folder.rsplit("/", 1)[-1]: {
            p.rsplit("/", 1)[-1] for p, _ in at_store.list_files(run_id, folder)
        }
        for folder, _ in at_store.list_files(run_id, "checkpoints")
    }


WHOLE = {"manifest.json", "state.json", "state.safetensors"}


@pytest.fixture(params=["a folder", "through the server to S3", "S3 directly"])
def place(request: pytest.FixtureRequest, store: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A tracking URI, for each way that artifacts can go."""
    if request.param == "through the server to S3":
        return request.getfixturevalue("postgres_server").uri
    if request.param == "S3 directly":
        s3 = request.getfixturevalue("s3")
        for name, value in s3.environment.items():
            monkeypatch.setenv(name, value)
        client_of(store).create_experiment("checkpoints", artifact_location=s3.uri)
    return store


def test_checkpoints_arrive_and_leave_with_retention(run, place):
    shipper = shipper_of(run, place)
    for step in (10, 20):
        publish(run, step)
    shipper.ship()
    assert there(shipper) == {"step-000000010": WHOLE, "step-000000020": WHOLE}
    publish(run, 30)
    retire(run, 10)
    shipper.ship()
    assert there(shipper) == {"step-000000020": WHOLE, "step-000000030": WHOLE}
    tags = client_of(place).get_run(shipper.state.run_id).data.tags
    assert tags["mlflow_track.latest_checkpoint"] == "step-000000030"


class Breaks:
    """A store whose uploads fail from the given one on."""

    def __init__(self, at_store: Any, after: int) -> None:
        self._store, self._left, self.names = at_store, after, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def upload(self, run_id: str, file: Path, name: str) -> None:
        if name.startswith("checkpoints/"):
            if self._left == 0:
                raise Unavailable("cut")
            self._left -= 1
            self.names.append(name)
        self._store.upload(run_id, file, name)


def test_a_broken_upload_continues_with_the_next_file_and_sends_the_manifest_last(run, store):
    publish(run, 10)
    at_store = Breaks(open_store(store), after=1)
    with pytest.raises(Unavailable):
        shipper_to(run.path, at_store).ship()
    shipper = shipper_of(run, store)
    assert there_is_no_checkpoint(at_store, shipper.state.run_id)
    at_store = Breaks(open_store(store), after=99)
    shipper = shipper_to(run.path, at_store)
    shipper.ship()
    assert at_store.names == [
        f"checkpoints/step-000000010/{n}" for n in ("state.safetensors", "manifest.json")
    ]
    assert there(shipper) == {"step-000000010": WHOLE}


def there_is_no_checkpoint(at_store: Any, run_id: str) -> bool:
    return not [
        p for p, _ in at_store.list_files(run_id, "checkpoints/step-000000010") if "manifest" in p
    ]


def test_what_is_left_of_an_upload_whose_checkpoint_was_retired_is_removed(run, store):
    publish(run, 10)
    publish(run, 20)
    with pytest.raises(Unavailable):
        shipper_to(run.path, Breaks(open_store(store), after=1)).ship()
    retire(run, 10)
    shipper = shipper_of(run, store)
    shipper.ship()
    assert there(shipper) == {"step-000000020": WHOLE}


def test_a_file_that_was_acknowledged_and_not_stored_is_sent_again(run, store):
    publish(run, 10)

    class Swallows(Breaks):
        has_swallowed = False

        def upload(self, run_id: str, file: Path, name: str) -> None:
            if name.endswith("/state.json") and not self.has_swallowed:
                self.has_swallowed = True
                return
            super().upload(run_id, file, name)

    swallows = Swallows(open_store(store), after=99)
    shipper = shipper_to(run.path, swallows)
    shipper.ship()
    assert "state.json and does not have it" in (shipper.waiting or "")
    assert not shipper.state.checkpoints
    shipper = shipper_to(run.path, swallows)  # Without the pause until the next try.
    shipper.ship()
    assert there(shipper) == {"step-000000010": WHOLE}


def test_retention_waits_for_a_checkpoint_that_is_being_sent(run, store):
    from mlflow_track.checkpoint.disk.store import free_to_remove

    publish(run, 10)
    folder = run.path / "checkpoints/step-000000010"
    seen = []

    class Looks(Breaks):
        def upload(self, run_id: str, file: Path, name: str) -> None:
            if name.startswith("checkpoints/"):
                with free_to_remove(folder) as is_free:
                    seen.append(is_free)
            super().upload(run_id, file, name)

    shipper_to(run.path, Looks(open_store(store), after=99)).ship()
    assert seen == [False, False, False]
    with free_to_remove(folder) as is_free:
        assert is_free


def test_a_store_that_does_not_delete_is_reported_and_nothing_waits_for_it(run, store):
    class Keeps(Breaks):
        def remove(self, run_id: str, name: str) -> None:
            raise Refused("no")

    publish(run, 10)
    shipper = shipper_to(run.path, Keeps(open_store(store), after=99))
    shipper.ship()
    retire(run, 10)
    assert shipper.ship()
    assert "removal of checkpoints/step-000000010: no" in shipper.state.refused
    assert shipper.state.checkpoints == []


@pytest.mark.parametrize(
    ("upload", "names"),
    [
        ("last", {"step-000000030"}),
        ("best", {"step-000000020"}),
        ("none", set()),
    ],
)
def test_only_what_the_policy_wants_goes_up(run, store, upload, names):
    mirror = {"upload": upload, "metric": "loss", "mode": "min"}
    run._attempt.record.update(mirror=mirror)
    checkpoints = CheckpointStore(run.path / "checkpoints")
    shipper = shipper_of(run, store)
    for step, loss in ((10, 3.0), (20, 1.0), (30, 2.0)):
        checkpoints.publish(step, {"state.json": b"{}"}, {"metrics": {"loss": loss}})
        shipper.ship()
    assert set(there(shipper)) == names


def test_a_large_file_is_not_read_into_memory(run, server):
    import resource

    publish(run, 10, size=1)
    file = run.path / "checkpoints/step-000000010/state.safetensors"
    with open(file, "r+b") as sparse:
        sparse.truncate(300 << 20)
    shipper = shipper_of(run, server.uri)
    with contextlib.suppress(Unavailable):
        shipper._open(shipper._ledger.read_info())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    shipper.ship()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert there(shipper) == {"step-000000010": WHOLE}
    assert grown < 100_000, f"{grown} kB more at the peak"
