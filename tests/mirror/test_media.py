"""Images, texts and histograms on their way to backends: each there once, whatever fails."""

from __future__ import annotations

import contextlib
import io
import json
import random
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import mlflow_track as mt
from mlflow_track.backends.protocol import Backend, MediaItem, Opened, Refused, Unavailable
from mlflow_track.media.log import MediaLog
from mlflow_track.media.values import text_of
from mlflow_track.mirror.shipper import Shipper
from mlflow_track.mirror.state import MirrorState
from mlflow_track.mirror.status import read_status
from mlflow_track.record import layout
from mlflow_track.record.append_file import Positions
from mlflow_track.record.directory import RunDirectory
from mlflow_track.record.media.index import read_media
from tests.mirror.conftest import client_of, only_run, shipper_to

RED = np.zeros((20, 50, 3), np.uint8)
RED[..., 0] = 255


class Destination:
    """What a backend keeps, beyond the life of its process; `fails_at` counts calls until a fault.

    Attributes:
        items: The content of each file, by kind, key and step.
        files: The content of each artifact, by name.
        position: That of the last item.
        arrived: Every item that was appended and not purged.
    """

    def __init__(self) -> None:
        self.items: dict[tuple[str, str, int], str] = {}
        self.files: dict[str, bytes] = {}
        self.position = ""
        self.arrived: list[MediaItem] = []
        self.fails_at = -1

    def fault(self) -> None:
        self.fails_at -= 1
        if self.fails_at == 0:
            raise Unavailable("a fault")


class Plain(Backend):
    """Keeps one of each kind, key and step; cannot say what it has."""

    media_position: str | None = None

    def __init__(self, place: Destination) -> None:
        self.place = place

    def open(self, run: Any, known_id: str | None) -> Opened:
        return Opened(run.id, is_new=not known_id, media_position=self.media_position)

    def describe(self, run: Any) -> list[tuple[str, str]]:
        return []

    def log_metrics(self, points: Any) -> list[tuple[str, str]]:
        return []

    def close(self, status: str, ended: float) -> None: ...


class Keyed(Plain):
    """As MLflow: what comes twice replaces itself, and single items are removed."""

    def log_media(self, items: Sequence[MediaItem]) -> list[tuple[str, str]]:
        for item in items:
            self.place.fault()
            self.place.items[item[:3]] = f"{item.timestamp}: {item.path.read_text()}"
            self.place.fault()
        return []

    def remove_media(self, items: Sequence[MediaItem]) -> None:
        for item in items:
            self.place.fault()
            there = self.place.items.get(item[:3], "")
            if there.startswith(f"{item.timestamp}: "):
                del self.place.items[item[:3]]


class Appending(Plain):
    """As event files: appends, says what the last item was, and purges steps."""

    def open(self, run: Any, known_id: str | None) -> Opened:
        return Opened(run.id, position="", media_position=self.place.position)

    def log_media(self, items: Sequence[MediaItem]) -> list[tuple[str, str]]:
        for item in items:
            self.place.fault()
            text = f"{item.timestamp}: {item.path.read_text()}"
            # A step that is logged twice is another item; what a rewind repeats was purged before.
            assert self.place.items.get(item[:3]) != text, "twice"
            self.place.items[item[:3]] = text
            self.place.arrived.append(item)
            self.place.position = item.position
            self.place.fault()
        return []

    def rewind(self, step: int) -> None:
        self.place.fault()
        self.place.items = {k: v for k, v in self.place.items.items() if k[2] <= step}
        self.place.arrived = [item for item in self.place.arrived if item.step <= step]


class Uploads(Plain):
    """Takes files alone."""

    def upload(self, file: Path, name: str) -> None:
        self.place.fault()
        self.place.files[name] = file.read_bytes()

    def remove(self, name: str) -> None:
        self.place.fault()
        self.place.files.pop(name, None)


def expected(path: Path) -> dict[tuple[str, str, int], str]:
    return {
        item.identity: f"{round(1000 * item.time)}: {(path / 'artifacts' / item.file).read_text()}"
        for item in read_media(path)
    }


class Trainer:
    """A process that logs, saves and resumes, without the rest of one."""

    def __init__(self, root: Path) -> None:
        self.record = RunDirectory.create(root, experiment="e", name="r", tags={})
        self.begin()
        self.saved = (-1, 0, Positions())
        self.step = 0

    def begin(self) -> None:
        self.record.start_attempt({})
        self.metrics = self.record.open_metrics()
        self.media = MediaLog(self.record, print)

    def log(self, key: str, text: str) -> None:
        self.media.log("text", key, self.step, lambda name: text_of(text, name))

    def end_step(self) -> None:
        self.metrics.append(self.step, ("loss",), (1.0,))
        self.step += 1

    def save(self) -> None:
        """Save after a step: nothing of a later one was logged."""
        self.end_step()
        self.saved = (self.step - 1, self.media.position, self.metrics.positions())

    def resume(self) -> None:
        """Continue at the newest save, as a restore does."""
        self.media.close()
        self.metrics.close()
        self.begin()
        step, position, rows_end = self.saved
        plan = self.media.plan_rewind(step, begin=position)
        items = self.media.rewind(plan)
        rows = self.record.rewind(self.metrics, step, begin=rows_end, last_kept=plan.last_kept)
        if items and not rows:
            self.media.note_rewind(plan, step)
        self.step = step + 1


@settings(max_examples=15)
@given(seed=st.integers(0, 2**32))
@pytest.mark.parametrize("kind", [Keyed, Appending, Uploads])
def test_every_item_is_there_once_whatever_fails(kind: type[Plain], seed: int) -> None:
    """A trainer that logs and resumes, and a mirror that fails and is killed at any point."""
    with TemporaryDirectory() as folder:
        generator, place, trainer = random.Random(seed), Destination(), Trainer(Path(folder))
        path = trainer.record.path
        shipper: Shipper | None = None
        for _ in range(generator.randrange(5, 30)):
            event = generator.random()
            if event < 0.5:
                trainer.log("a", f"{generator.random()}")
                if generator.random() < 0.2:
                    trainer.log("b", f"{generator.random()}")
                if generator.random() < 0.9:
                    trainer.end_step()
            elif event < 0.6:
                trainer.save()
            elif event < 0.7:
                trainer.resume()
            else:
                trainer.media.drain()
                if shipper is None or generator.random() < 0.3:
                    shipper = Shipper(path, "b", kind(place))
                place.fails_at = generator.choice([-1, generator.randrange(1, 8)])
                with contextlib.suppress(Unavailable):
                    shipper.ship()
                place.fails_at = -1
        trainer.media.close()
        shipper = Shipper(path, "b", kind(place))
        for _ in range(3):
            shipper.ship()
        if kind is Uploads:
            root = path / "artifacts"
            files = {f.relative_to(root).as_posix(): f.read_bytes() for f in root.rglob("*.txt")}
            there = {n: c for n, c in place.files.items() if not n.startswith("record/")}
            assert there == files
        else:
            assert place.items == expected(path)
            assert place.files == {}
        numbers = [int(item.position) for item in place.arrived]
        assert numbers == sorted(numbers)
        assert read_status(path, "b").pending_artifacts == 0
        trainer.record.release()


class Keeping(Appending):
    """As W&B: appends, says what the last item was, and removes nothing."""

    rewind = Backend.rewind


@pytest.mark.parametrize("arrived", [0, 2, 3, 4])
def test_what_a_rewind_repeats_is_not_sent_twice_to_what_removes_nothing(
    arrived: int, tmp_path: Path
) -> None:
    """Of the first attempt's four items the first ones arrive; a kill takes the others there."""
    place, trainer = Destination(), Trainer(tmp_path)
    trainer.log("a", "0")
    trainer.save()
    for text in "123":
        trainer.log("a", text)
        trainer.end_step()
    trainer.media.drain()
    shipper = Shipper(trainer.record.path, "b", Keeping(place))
    shipper.ship()
    for text in ("again 1", "again 1 once more"):
        trainer.resume()
        trainer.log("a", text)
        trainer.end_step()
        trainer.media.drain()
        shipper.ship()
    del place.arrived[arrived:]
    place.items = {item[:3]: place.items[item[:3]] for item in place.arrived}
    place.position = place.arrived[-1].position if arrived else ""
    for step in (2, 3, 4):
        trainer.log("a", f"again {step}")
        trainer.end_step()
    trainer.media.close()
    for _ in range(2):
        Shipper(trainer.record.path, "b", Keeping(place)).ship()
    repeated = [f"again {step}" for step in (2, 3, 4)]
    texts = [
        "0",
        *"123"[: max(0, arrived - 1)],
        *["again 1 once more", *repeated][max(0, arrived - 1) :],
    ]
    assert [item.step for item in place.arrived] == [0, 1, 2, 3, 4]
    assert [text.split(": ")[1] for text in place.items.values()] == texts
    assert read_status(trainer.record.path, "b").pending_artifacts == 0
    trainer.record.release()


def run_with_texts(count: int) -> Path:
    with mt.start_run() as run:
        for step in range(count):
            run.log_text(f"{step}", "a", step=step)
    return run.path


def test_an_item_that_is_refused_or_gone_holds_nothing_up() -> None:
    path, place = run_with_texts(5), Destination()
    (path / "artifacts/a/step-000000003.txt").unlink()

    class Choosy(Keyed):
        def log_media(self, items: Sequence[MediaItem]) -> list[tuple[str, str]]:
            super().log_media([item for item in items if item.step != 1])
            return [("text 'a' at step 1", "no") for item in items if item.step == 1]

    shipper = Shipper(path, "b", Choosy(place))
    shipper.ship()
    assert shipper.finish() == "FINISHED"
    assert sorted(step for *_, step in place.items) == [0, 2, 4]
    assert [text.partition(":")[0] for text in shipper.state.refused] == [
        "text 'a' at step 3",
        "text 'a' at step 1",
    ]


def test_an_item_that_a_destination_answers_with_a_no_is_set_aside_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, place = run_with_texts(5), Destination()

    class Failing(Keyed):
        def log_media(self, items: Sequence[MediaItem]) -> list[tuple[str, str]]:
            if any(item.step == 2 for item in items):
                raise Unavailable("too large", is_answer=True)
            return super().log_media(items)

    shipper = Shipper(path, "b", Failing(place))
    now = 0.0
    shipper._media.retries._clock = lambda: now
    for _ in range(8):
        assert shipper.waiting is None or "text 'a' at step 2" in shipper.waiting
        with pytest.raises(Unavailable):
            shipper.ship()
        assert sorted(step for *_, step in place.items) == [0, 1]
        now += 100
        if shipper._media.retries.attempts("text 'a' at step 2") == 7:
            break
    shipper.ship()
    assert sorted(step for *_, step in place.items) == [0, 1, 3, 4]
    assert shipper.waiting is None and shipper.finish() == "FINISHED"
    assert shipper.state.refused == ["text 'a' at step 2: too large"]


def test_a_position_of_something_else_is_an_outage() -> None:
    place = Destination()
    place.position = "no number"
    with pytest.raises(Unavailable, match="does not belong to this record"):
        Shipper(run_with_texts(1), "b", Appending(place)).ship()


def test_a_file_that_was_never_listed_is_an_artifact_at_the_end() -> None:
    path, place = run_with_texts(2), Destination()
    (path / "artifacts/a/step-000000009.txt").write_text("not listed")

    class Both(Keyed, Uploads):
        pass

    shipper = Shipper(path, "b", Both(place))
    shipper.ship()
    assert not [name for name in place.files if name.startswith("a/")]
    shipper.finish()
    assert [n for n in place.files if n.startswith("a/")] == ["a/step-000000009.txt"]
    assert place.files["record/media.jsonl"] == (path / layout.MEDIA).read_bytes()
    assert len(place.items) == 2


def test_a_state_of_a_newer_version_keeps_what_it_says_of_media() -> None:
    path = run_with_texts(2)
    Shipper(path, "b", Keyed(Destination())).ship()
    file = layout.mirror_state(path, "b")
    content = json.loads(file.read_text())
    assert content["media"]["acknowledged"] == 2
    content["media"]["later"] = 7
    file.write_text(json.dumps(content))
    state = MirrorState.read(path, "b")
    state.write(path, "b")
    assert json.loads(file.read_text())["media"] == content["media"]


def test_refused_by_an_exception_refuses_the_batch() -> None:
    class No(Plain):
        def log_media(self, items: Sequence[MediaItem]) -> list[tuple[str, str]]:
            raise Refused("no images here")

    shipper = Shipper(run_with_texts(2), "b", No(Destination()))
    shipper.ship()
    assert shipper.finish() == "FINISHED" and len(shipper.state.refused) == 2


# --- MLflow ---


def images_of(uri: str, run_id: str) -> list[str]:
    return sorted(item.path for item in client_of(uri).list_artifacts(run_id, "images"))


def named(path: str) -> tuple[str, int]:
    """The key and the step in the name of an image, as MLflow's page reads it."""
    key, step, number, *_ = path.removeprefix("images/").split("+")
    assert step == "step"
    return key, int(number)


def test_images_have_the_names_that_mlflow_gives_them(store: str) -> None:
    with mt.start_run(experiment="e") as run:
        for step in range(3):
            run.log_image(RED, "a/b", step=step)
        run.log_image(RED, "odd: ü+1", step=7)
        run.log_text("x", "sample", step=3)
        run.log_histogram("h", [1.0], step=3)
    shipper = shipper_to(run.path, store)
    shipper.ship()
    assert shipper.finish() == "FINISHED" and shipper.state.refused == []
    there = only_run(store, "e")
    # As its own client does it.
    client_of(store).log_image(there.info.run_id, RED, key="a/b", step=9)
    names = images_of(store, there.info.run_id)
    counts = {("a~b", step): 2 for step in (0, 1, 2, 9)} | {("odd_ __1", 7): 2}
    assert {each: [*map(named, names)].count(each) for each in {*map(named, names)}} == counts
    ours, own = (next(n for n in names if named(n) == ("a~b", s)) for s in (0, 9))
    plain = str.maketrans("0123456789abcdef", "x" * 16)
    assert ours.translate(plain) == own.translate(plain)
    assert there.data.tags["mlflow.loggedImages"] == "True"
    for name in names:
        local = client_of(store).download_artifacts(there.info.run_id, name)
        size = (50, 20) if name.endswith(".png") else (256, 102)
        assert Image.open(io.BytesIO(Path(local).read_bytes())).size == size
    artifacts = [i.path for i in client_of(store).list_artifacts(there.info.run_id, "sample")]
    assert artifacts == ["sample/step-000000003.txt"]
    assert not client_of(store).list_artifacts(there.info.run_id, "a")


def test_a_rewind_takes_images_out_of_mlflow_and_what_comes_twice_is_there_once(
    store: str,
) -> None:
    state, run_id = {"x": 1}, "never"
    for attempt in (1, 2):
        with mt.start_run(experiment="e", resume=run_id) as run:
            run_id = run.id
            checkpoints = run.checkpoints()
            for step in range(checkpoints.restore(state), 4):
                run.log_metrics({"loss": 1.0}, step=step)
                if step < 3 or attempt == 1:
                    run.log_image(RED // attempt, "a", step=step)
                    run.log_text(f"{attempt}", "t", step=step)
                if step == 1:
                    checkpoints.save(step, state)
        shipper_to(run.path, store).ship()
    there = only_run(store, "e").info.run_id
    names = images_of(store, there)
    assert [named(name)[1] for name in names] == [0, 0, 1, 1, 2, 2]
    texts = [item.path for item in client_of(store).list_artifacts(there, "t")]
    assert texts == [f"t/step-{step:09d}.txt" for step in range(3)]
    # A mirror that has forgotten all sends the same names; another time of an item replaces it.
    layout.mirror_state(run.path, "mlflow").unlink()
    shipper_to(run.path, store).ship()
    assert images_of(store, there) == names
    index = run.path / layout.MEDIA
    index.write_bytes(index.read_bytes().replace(b'"time":1', b'"time":2'))
    layout.mirror_state(run.path, "mlflow").unlink()
    shipper_to(run.path, store).ship()
    again = images_of(store, there)
    assert [named(name) for name in again] == [named(name) for name in names]
    assert not {*again} & {*names}


def test_a_damaged_image_is_refused_and_the_others_arrive(store: str) -> None:
    with mt.start_run(experiment="e") as run:
        paths = [run.log_image(RED, "a", step=step) for step in range(2)]
    paths[0].write_bytes(paths[0].read_bytes()[:50])
    shipper = shipper_to(run.path, store)
    shipper.ship()
    assert shipper.finish() == "FINISHED"
    (refused,) = shipper.state.refused
    assert refused.startswith("image 'a' at step 0: it is not a whole PNG")
    assert [named(n)[1] for n in images_of(store, only_run(store, "e").info.run_id)] == [0, 1, 1]


def test_keys_that_mlflow_would_take_for_one_are_two(store: str) -> None:
    long = "k" * 170
    with mt.start_run(experiment="e") as run:
        for key in ("a:b", "a_b", long + "1", long + "2"):
            run.log_image(RED, key, step=0)
    shipper_to(run.path, store).ship()
    names = images_of(store, only_run(store, "e").info.run_id)
    assert len({named(name) for name in names}) == 4
    assert all(len(Path(name).name) < 255 for name in names)
