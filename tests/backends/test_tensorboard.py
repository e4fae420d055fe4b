"""The event files of a run, read by TensorBoard's own reader: all points, once, whatever fails."""

from __future__ import annotations

import errno
import itertools
import json
import math
import os
import random
import resource
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_accumulator import (
    EventAccumulator as ServedAccumulator,
)

from mlflow_track.backends.protocol import MediaItem, MetricPoint, Opened, RunRecord, Unavailable
from mlflow_track.backends.tensorboard import files
from mlflow_track.backends.tensorboard.backend import TensorboardBackend
from mlflow_track.mirror.shipper import Shipper
from mlflow_track.record import layout
from mlflow_track.record.metrics import MetricsFile
from tests.backends.event_files import (
    accumulated,
    as_float32,
    event_folder,
    params_in,
    scalars_in,
    status_in,
    texts_in,
)
from tests.backends.test_positions import play, rows_of
from tests.mirror.test_shipper import EVENTS, Trainer, small_batches

__all__ = ["small_batches"]

WRITE = files.write_all


class Torn(TensorboardBackend):
    """A disk that is full now and then, in the middle of a batch; a rewind that a kill ends."""

    def __init__(self, points: list[MetricPoint], chance: random.Random) -> None:
        super().__init__()
        self.chance = chance
        self.fails = True
        self.status = ""

    def _is_due(self, share: float) -> bool:
        return self.fails and self.chance.random() < share

    def open(self, run: RunRecord, known_id: str | None) -> Opened:
        files.write_all = self.write
        if self._is_due(0.1):
            raise Unavailable("no")
        return super().open(run, known_id)

    def write(self, descriptor: int, data: bytes) -> None:
        if self._is_due(0.25):
            WRITE(descriptor, data[: self.chance.randrange(len(data))])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        WRITE(descriptor, data)

    def rewind(self, step: int) -> None:
        drop = files.EventFiles._drop_replaced
        if self._is_due(0.3):
            files.EventFiles._drop_replaced = lambda self: _raise(OSError("killed"))
        try:
            super().rewind(step)
        finally:
            files.EventFiles._drop_replaced = drop

    def close(self, status: str, ended: float) -> None:
        super().close(status, ended)
        self.status = status


def _raise(error: Exception) -> None:
    raise error


def shown(folder: Path) -> list[tuple[str, int, float]]:
    return [(scalar.key, scalar.step, scalar.value) for scalar in scalars_in(folder)]


@settings(max_examples=25, deadline=None)
@given(events=EVENTS, seed=st.integers(0, 10_000))
@example(
    events=[("ship", None), ("log", ("a", "b")), ("ship", None), ("resume", 1), ("ship", None)],
    seed=176,
)
def test_event_files_have_what_the_record_has(events: list[tuple[str, Any]], seed: int) -> None:
    with TemporaryDirectory() as folder:
        try:
            _, trainer = play(Path(folder), events, seed, Torn)  # type: ignore[arg-type]
        finally:
            files.write_all = WRITE
        found = shown(event_folder(trainer.directory.path))
        assert len(set(found)) == len(found)
        assert set(found) == rows_of(trainer)
        assert status_in(event_folder(trainer.directory.path)) == "STATUS_SUCCESS"


@pytest.fixture
def trainer(tmp_path: Path):
    trainer = Trainer(tmp_path)
    yield trainer
    trainer.end()


def ship(trainer: Trainer, backend: TensorboardBackend | None = None) -> Shipper:
    """Send what the record has."""
    shipper = shipper_of(trainer, backend)
    while not shipper.ship():
        pass
    return shipper


def shipper_of(trainer: Trainer, backend: TensorboardBackend | None = None) -> Shipper:
    return Shipper(trainer.directory.path, "tensorboard", backend or TensorboardBackend())


def test_a_torn_batch_is_never_counted_as_there(trainer: Trainer) -> None:
    """Cut anywhere, the file is continued by another one, and both together have every point."""
    for _ in range(20):
        trainer.log(("a", "b"))
    ship(trainer)
    folder = event_folder(trainer.directory.path)
    file = folder / layout.event_file(1)
    content = file.read_bytes()
    for size in range(1, len(content), 61):
        for later in folder.glob(layout.event_file(2)):
            later.unlink()
        file.write_bytes(content[:size])
        ship(trainer)
        assert sorted(shown(folder)) == sorted(rows_of(trainer))
        assert file.read_bytes().startswith(content[:size])


def test_a_position_that_is_not_read_from_the_files_repeats_points(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control."""
    monkeypatch.setattr(files.Held, "add", lambda self, data: None)
    for _ in range(2):
        trainer.log(("a",))
        ship(trainer)
    assert len(shown(event_folder(trainer.directory.path))) > 2


def test_scalars_keep_step_time_and_value_in_float32(trainer: Trainer) -> None:
    values = [1 / 3, math.nan, math.inf, -math.inf, 1e39, -0.0, 1e-46]
    for step, value in enumerate(values):
        trainer.metrics.append(10**9 * step, ("α/β loss",), [value])
    ship(trainer)
    found = scalars_in(event_folder(trainer.directory.path))
    assert [scalar.step for scalar in found] == [10**9 * step for step in range(len(values))]
    assert [str(scalar.value) for scalar in found] == [str(as_float32(value)) for value in values]
    rows = (trainer.directory.path / layout.METRICS).read_text().splitlines()[1:]
    times = [float(row.split(",")[1]) for row in rows]
    assert [scalar.time for scalar in found] == [round(1000 * time) / 1000 for time in times]


def test_params_tags_and_status_are_described(trainer: Trainer) -> None:
    directory = trainer.directory
    params = {"lr": 0.1, "model": {"layers": 2, "bias": True, "act": "relu"}, "big": 2**60}
    directory.add_params(params, is_start=True)
    directory.update(tags={"team": "a|b\nc"})
    ship(trainer)
    folder = event_folder(directory.path)
    assert params_in(folder) == {
        "lr": 0.1,
        "model.layers": 2.0,
        "model.bias": True,
        "model.act": "relu",
        "big": str(2**60),
    }
    texts = texts_in(folder)
    assert '"layers": 2' in texts["run/config"]
    assert "| team | a\\|b<br>c |" in texts["run/tags"]
    assert status_in(folder) == ""
    directory.update(tags={"late": "yes"})
    ship(trainer)
    assert "| late | yes |" in texts_in(folder)["run/tags"]


@pytest.mark.parametrize(
    ("status", "shown"),
    [
        ("FINISHED", "STATUS_SUCCESS"),
        ("FAILED", "STATUS_FAILURE"),
        ("KILLED", "STATUS_FAILURE"),
    ],
)
def test_the_end_is_that_of_the_last_attempt(status: str, shown: str, trainer: Trainer) -> None:
    trainer.log(("a",))
    trainer.directory.end_attempt("FAILED")
    trainer.end()
    ship(trainer).finish()
    folder = event_folder(trainer.directory.path)
    assert status_in(folder) == "STATUS_FAILURE"
    trainer.resume_after(0)
    ship(trainer)
    assert status_in(folder) == "STATUS_RUNNING"
    trainer.directory.end_attempt(status)
    trainer.end()
    size = [ship(trainer).finish() and (folder / layout.event_file(1)).stat().st_size] * 2
    assert status_in(folder) == shown
    # A run that is sent once more gets no second end.
    assert ship(trainer).finish() == status
    assert [(folder / layout.event_file(1)).stat().st_size] * 2 == size


def test_a_rewind_leaves_no_point_of_a_later_step_to_any_reader(trainer: Trainer) -> None:
    """TensorBoard's fast reader drops a later step only where the same metric is logged again."""
    for _ in range(9):
        trainer.log(("a", "rare"))
    ship(trainer)
    trainer.resume_after(3)
    trainer.log(("a",))
    ship(trainer)
    folder = event_folder(trainer.directory.path)
    found = shown(folder)
    assert [step for key, step, _ in found if key == "rare"] == [0, 1, 2, 3]
    assert [step for key, step, _ in found if key == "a"] == [0, 1, 2, 3, 4]
    assert [(folder / layout.event_file(n)).stat().st_size > 0 for n in range(3)] == [1, 0, 1]
    assert "run/tags" in texts_in(folder)


@pytest.mark.parametrize("kind", [EventAccumulator, ServedAccumulator])
def test_a_reader_that_follows_the_files_forgets_what_a_rewind_removed(
    kind: type[Any], trainer: Trainer
) -> None:
    """Both readers in Python, of which the page has the second, with `--load_fast=false`."""

    def steps() -> list[int]:
        items = follower.Scalars("a") if kind is EventAccumulator else follower.Tensors("a")
        return [item.step for item in items]

    for _ in range(6):
        trainer.log(("a",))
    ship(trainer)
    follower = kind(str(event_folder(trainer.directory.path))).Reload()
    assert steps() == [0, 1, 2, 3, 4, 5]
    trainer.resume_after(2)
    trainer.log(("a",))
    ship(trainer)
    follower.Reload()
    # The point of step 0 may come a second time: no restart is at step 0, where the texts are.
    assert [step for step in steps() if step] == [1, 2, 3]
    assert "run/tags" in follower.PluginTagToContent("text")
    assert len(follower.Tensors("run/tags")) == 1


def test_a_rewind_leaves_the_metrics_of_the_machine(trainer: Trainer) -> None:
    machine = MetricsFile(trainer.directory.system_metrics_path)
    machine.append(50, ("system/cpu",), [1.0])
    machine.close()
    trainer.log(("a",))
    ship(trainer)
    trainer.resume_after(-1)
    trainer.log(("a",))
    ship(trainer)
    found = accumulated(event_folder(trainer.directory.path))
    assert [event.step for event in found.Scalars("system/cpu")] == [50]
    assert [event.step for event in found.Scalars("a")] == [0]


def test_leftovers_of_a_kill_are_removed(trainer: Trainer) -> None:
    trainer.log(("a",))
    ship(trainer)
    folder = event_folder(trainer.directory.path)
    leftover = layout.temporary(folder / "events")
    leftover.write_bytes(b"half")
    assert "tfevents" not in leftover.name
    ship(trainer)
    assert not leftover.exists()


@pytest.mark.parametrize("what", ["folder", "file"])
def test_event_files_that_were_deleted_are_written_again(what: str, trainer: Trainer) -> None:
    backend = TensorboardBackend()
    trainer.log(("a",))
    shipper = ship(trainer, backend)
    folder = event_folder(trainer.directory.path)
    for file in folder.iterdir():
        if what == "folder" or file.name != layout.event_file(0):
            file.unlink()
    if what == "folder":
        folder.rmdir()
    trainer.log(("a",))
    with pytest.raises(Unavailable, match="the event files cannot be written"):
        shipper.ship()
    while not shipper.ship():
        pass
    assert sorted(shown(folder)) == sorted(rows_of(trainer))
    assert "run/tags" in texts_in(folder)


def test_a_file_that_something_else_changed_is_read_again(trainer: Trainer) -> None:
    trainer.log(("a",))
    shipper = ship(trainer)
    folder = event_folder(trainer.directory.path)
    with (folder / layout.event_file(1)).open("ab") as file:
        file.write(b"something")
    trainer.log(("a",))
    with pytest.raises(Unavailable, match="was changed by something else"):
        shipper.ship()
    while not shipper.ship():
        pass
    assert sorted(shown(folder)) == sorted(rows_of(trainer))


def test_a_run_that_was_deleted_is_not_made_again(trainer: Trainer) -> None:
    backend, path = TensorboardBackend(), trainer.directory.path
    run = shipper_of(trainer)._ledger.read_run(trainer.directory.info)
    path.rename(path.with_name("moved"))
    with pytest.raises(Unavailable, match="No such file"):
        backend.open(run, None)
    assert not path.exists()
    path.with_name("moved").rename(path)


@pytest.mark.parametrize("is_inner", [False, True])
def test_a_link_is_not_followed(is_inner: bool, trainer: Trainer, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    place = trainer.directory.path / layout.TENSORBOARD
    if is_inner:
        place.mkdir()
        place = place / trainer.directory.info.name
    place.symlink_to(elsewhere)
    trainer.log(("a",))
    with pytest.raises(Unavailable, match="is a link"):
        shipper_of(trainer).ship()
    assert list(elsewhere.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_an_outage(trainer: Trainer) -> None:
    obstacle = trainer.directory.path / layout.TENSORBOARD
    obstacle.write_text("a file")
    trainer.log(("a",))
    shipper = shipper_of(trainer)
    with pytest.raises(Unavailable, match="the event files cannot be written"):
        shipper.ship()
    obstacle.unlink()
    while not shipper.ship():
        pass
    assert len(shown(event_folder(trainer.directory.path))) == 1


def limited(most_bytes: int, do: Callable[[], Any]) -> None:
    """Call with a disk on which no file grows past a size."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, hard))
    try:
        do()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(("most_bytes", "count"), [(2000, 1), (8000, 5)])
def test_a_full_disk_is_an_outage_that_loses_nothing(
    most_bytes: int, count: int, trainer: Trainer
) -> None:
    for _ in range(3):
        trainer.log(tuple(f"{number} {'long' * 200}" for number in range(20)))
    before = (trainer.directory.path / layout.METRICS).read_bytes()
    shipper = shipper_of(trainer)

    def fail() -> None:
        for _ in range(4):
            with pytest.raises(Unavailable, match="the event files cannot be written"):
                while not shipper.ship():
                    pass

    limited(most_bytes, fail)
    folder = event_folder(trainer.directory.path)
    # An attempt that wrote nothing whole leaves no file behind.
    assert len(list(folder.iterdir())) == count
    while not shipper.ship():
        pass
    assert sorted(shown(folder)) == sorted(rows_of(trainer))
    assert (trainer.directory.path / layout.METRICS).read_bytes() == before


def test_fork_keeps_the_run_and_begins_another_folder(trainer: Trainer) -> None:
    directory = trainer.directory
    directory.restate("mirror", {"backends": ["tensorboard"], "rewind": "fork"})
    for _ in range(4):
        trainer.log(("a",))
    ship(trainer)
    first = event_folder(directory.path)
    trainer.resume_after(1)
    trainer.log(("a",))
    ship(trainer)
    second = first.with_name(f"{first.name}-2")
    assert [step for _, step, _ in shown(first)] == [0, 1, 2, 3]
    assert [step for _, step, _ in shown(second)] == [0, 1, 2]
    trainer.log(("a",))
    ship(trainer)
    assert [step for _, step, _ in shown(second)] == [0, 1, 2, 3]
    assert len(list(first.parent.iterdir())) == 2
    assert (status_in(first), status_in(second)) == ("STATUS_FAILURE", "STATUS_RUNNING")


# --- images, texts, histograms ---


@pytest.fixture
def media(tmp_path: Path) -> Callable[..., MediaItem]:
    """Makes an item and its file; the position is that number of items."""
    numbers = itertools.count(1)

    def make(kind: str, key: str, step: int, content: Any = None) -> MediaItem:
        number = next(numbers)
        path = tmp_path / f"{number}"
        if kind == "image":
            Image.new("RGB", content or (3, 2)).save(path, "PNG")
        else:
            path.write_bytes(content)
        return MediaItem(kind, key, step, 1000 * step, path, str(number))

    return make


def opened(trainer: Trainer) -> tuple[TensorboardBackend, Opened]:
    backend = TensorboardBackend()
    run = shipper_of(trainer)._ledger.read_run(trainer.directory.info)
    return backend, backend.open(run, None)


HISTOGRAM = json.dumps({"edges": [-1.0, 0.0, 2.0], "counts": [3, 1]}).encode()


def test_media_are_shown_by_their_pages(trainer: Trainer, media: Callable[..., MediaItem]) -> None:
    backend, before = opened(trainer)
    items = [
        media("image", "samples/digit", 5, (7, 4)),
        media("text", "story", 5, "once upon α\n".encode()),
        media("histogram", "weights", 5, HISTOGRAM),
    ]
    assert before.media_position == "" and backend.log_media(items) == []
    found = accumulated(event_folder(trainer.directory.path))
    (image,) = found.Images("samples/digit")
    assert (image.step, image.wall_time, image.width, image.height) == (5, 5.0, 7, 4)
    assert image.encoded_image_string == items[0].path.read_bytes()
    assert texts_in(event_folder(trainer.directory.path))["story"] == "once upon α\n"
    (histogram,) = found.Histograms("weights")
    held = histogram.histogram_value
    assert (held.min, held.max, held.num, held.sum) == (-1.0, 2.0, 4.0, 3 * -0.5 + 1.0)
    assert (held.bucket_limit, held.bucket) == ([0.0, 2.0], [3.0, 1.0])
    _, after = opened(trainer)
    assert after.media_position == "3" and after.position == ""


def test_media_that_come_again_are_there_once(
    trainer: Trainer, media: Callable[..., MediaItem]
) -> None:
    backend, _ = opened(trainer)
    trainer.log(("a",))
    ship(trainer, backend)
    first = [media("text", "story", step, f"{step}".encode()) for step in (1, 2, 3)]
    backend.log_media(first)
    backend, _ = opened(trainer)
    again = [media("text", "story", step, f"new {step}".encode()) for step in (2, 4, 4)]
    backend.log_media(again)
    folder = event_folder(trainer.directory.path)
    texts = accumulated(folder).Tensors("story")
    found = {event.step: event.tensor_proto.string_val[0].decode() for event in texts}
    assert found == {1: "1", 3: "3", 2: "new 2", 4: "new 4"} and len(texts) == 4
    assert sorted(shown(folder)) == sorted(rows_of(trainer))
    backend.remove_media([*first[:1], media("text", "other", 1, b"")])
    assert [event.step for event in accumulated(folder).Tensors("story")] == [3, 2, 4]
    backend.rewind(2)
    assert [event.step for event in accumulated(folder).Tensors("story")] == [2]
    _, now = opened(trainer)
    assert now.media_position == "4"


def test_media_under_the_name_of_a_metric_are_shown_beside_it(
    trainer: Trainer, media: Callable[..., MediaItem]
) -> None:
    trainer.log(("a",))
    ship(trainer)
    for _ in range(2):
        backend, _ = opened(trainer)
        backend.log_media([media("image", "a", 1), media("histogram", "a", 1, HISTOGRAM)])
    found = accumulated(event_folder(trainer.directory.path))
    assert len(found.Images("a (image)")) == len(found.Histograms("a (histogram)")) == 1
    assert len(found.Scalars("a")) == 1


def test_media_that_cannot_be_shown_are_refused_alone(
    trainer: Trainer, media: Callable[..., MediaItem]
) -> None:
    backend, _ = opened(trainer)
    broken = media("image", "b", 1)
    broken.path.write_bytes(b"GIF89a")
    lonely = media("histogram", "h", 1, b'{"edges": [1.0], "counts": [2]}')
    refused = backend.log_media([broken, lonely, media("text", "empty", 1, b"")])
    assert [item for item, _ in refused] == ["image 'b' of step 1", "histogram 'h' of step 1"]
    assert texts_in(event_folder(trainer.directory.path))["empty"] == ""


def test_a_file_of_media_that_is_gone_is_not_an_outage(
    trainer: Trainer, media: Callable[..., MediaItem]
) -> None:
    backend, _ = opened(trainer)
    items = [media("text", "story", 1, b"1"), media("text", "story", 2, b"2")]
    items[1].path.unlink()
    with pytest.raises(FileNotFoundError):
        backend.log_media(items)
    assert list(event_folder(trainer.directory.path).iterdir()) == []
