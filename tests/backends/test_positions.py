"""A destination that says itself what it has gets every point once, whatever fails in between."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import mlflow_track as mt
from mlflow_track.backends.protocol import (
    Backend,
    MetricPoint,
    Opened,
    RunRecord,
    Unavailable,
)
from mlflow_track.mirror.follower import Follower
from mlflow_track.mirror.outage import End
from mlflow_track.mirror.progress import Position, positions_of
from mlflow_track.mirror.shipper import Shipper
from mlflow_track.mirror.state import MirrorState
from mlflow_track.mirror.status import read_statuses
from mlflow_track.record import layout
from mlflow_track.record.rows import files_of, iterate_rows
from tests.mirror.test_shipper import EVENTS, Trainer, small_batches

__all__ = ["small_batches"]


class Lines(Backend):
    """A list of points; a batch may arrive in part."""

    def __init__(self, points: list[MetricPoint], chance: random.Random) -> None:
        self.points = points
        self.chance = chance
        self.fails = True
        self.status = ""

    def _fail(self) -> None:
        if self.fails and self.chance.random() < 0.15:
            raise Unavailable("no")

    def open(self, run: RunRecord, known_id: str | None) -> Opened:
        self._fail()
        return Opened("there", position=self.points[-1].position if self.points else "")

    def describe(self, run: RunRecord) -> list[tuple[str, str]]:
        self._fail()
        return []

    def log_metrics(self, points: Sequence[MetricPoint]) -> list[tuple[str, str]]:
        if self.fails and self.chance.random() < 0.3:
            self.points += points[: self.chance.randrange(len(points) + 1)]
            raise Unavailable("in the middle")
        self.points += points
        return []

    def close(self, status: str, ended: float) -> None:
        self.status = status


class Rewinding(Lines):
    """It forgets what is logged again."""

    def rewind(self, step: int) -> None:
        self._fail()
        self.points[:] = [point for point in self.points if point.step <= step]


class Silent(Lines):
    """It does not say what it has."""

    def open(self, run: RunRecord, known_id: str | None) -> Opened:
        return super().open(run, known_id)._replace(position=None)


def play(
    root: Path, events: list[tuple[str, Any]], seed: int, kind: type[Lines]
) -> tuple[list[MetricPoint], Trainer]:
    chance = random.Random(seed)
    trainer = Trainer(root)
    path = trainer.directory.path
    points: list[MetricPoint] = []

    def begin() -> Shipper:
        return Shipper(path, "lines", kind(points, chance))

    def ship(shipper: Shipper) -> None:
        try:
            shipper.ship()
        except Unavailable:
            pass

    shipper = begin()
    for event, detail in events:
        if event == "log":
            trainer.log(detail)
        elif event == "resume":
            trainer.resume_after(max(-1, trainer.step - detail))
        elif event == "die in a rewind":
            back, has_happened = detail
            trainer.die_rewinding_to(max(-1, trainer.step - back), has_happened)
            ship(shipper)
            trainer.resume_after(trainer.step)
        elif event in ("crash of the mirror", "loss of the state"):
            if event == "loss of the state":
                layout.mirror_state(path, "lines").unlink(missing_ok=True)
            shipper = begin()
        else:
            ship(shipper)
    trainer.directory.end_attempt("FINISHED")
    trainer.end()
    backend = kind(points, chance)
    backend.fails = False
    shipper = Shipper(path, "lines", backend)
    while not shipper.ship():
        pass
    assert shipper.finish() == backend.status == "FINISHED"
    return points, trainer


def rows_of(trainer: Trainer) -> set[tuple[str, int, float]]:
    return {
        (name, row.step, value)
        for file in files_of(trainer.directory.metrics_path)
        for row in iterate_rows(file)
        for name, value in row.values.items()
    }


@settings(max_examples=150)
@given(events=EVENTS, seed=st.integers(0, 10_000))
@example(events=[("log", ("a", "b"))] * 6 + [("ship", None)] * 9, seed=1)
def test_positions_bring_every_point_once(events: list[tuple[str, Any]], seed: int) -> None:
    with TemporaryDirectory() as folder:
        points, trainer = play(Path(folder), events, seed, Lines)
        places = [(point.key, point.step) for point in points]
        assert len(set(places)) == len(places)
        assert {place[:2] for place in rows_of(trainer)} <= set(places)


@settings(max_examples=150)
@given(events=EVENTS, seed=st.integers(0, 10_000))
@example(
    events=[("ship", None), ("log", ("a", "b")), ("ship", None), ("resume", 1), ("ship", None)],
    seed=176,
)
def test_rewind_leaves_what_the_record_has(events: list[tuple[str, Any]], seed: int) -> None:
    with TemporaryDirectory() as folder:
        points, trainer = play(Path(folder), events, seed, Rewinding)
        found = [(point.key, point.step, point.value) for point in points]
        assert len(set(found)) == len(found)
        assert set(found) == rows_of(trainer)


def test_the_parts_of_a_row_larger_than_a_batch_arrive_once(tmp_path: Path) -> None:
    names = tuple("abcdefghijklmnopqrst")
    points, trainer = play(tmp_path, [("log", names)] * 9, 3, Lines)
    found = [(point.key, point.step, point.value) for point in points]
    assert sorted(found) == sorted(rows_of(trainer))


BROKEN_ROWS = [
    *[("log", ("a", "b"))] * 9,
    *[("ship", None)] * 6,
    ("resume", 3),
    *[("log", ("a", "b"))] * 5,
    *[("ship", None)] * 6,
]


def test_without_positions_a_point_comes_twice(tmp_path: Path) -> None:
    """The negative control."""

    def twice(kind: type[Lines]) -> int:
        count = 0
        for seed in range(10):
            points, _ = play(tmp_path / f"{kind.__name__}-{seed}", BROKEN_ROWS, seed, kind)
            count += len(points) - len({(point.key, point.step) for point in points})
        return count

    assert twice(Lines) == 0
    assert twice(Silent) > 0


POSITIONS = st.builds(
    Position,
    *(st.integers(0, 2**60), st.integers(0, 2**60)),
    st.lists(st.integers(0, 2**60), max_size=4),
    st.integers(0, 1000),
)


@given(st.dictionaries(st.sampled_from(["metrics.csv", "system_metrics.csv"]), POSITIONS))
def test_positions_of_reads_what_text_writes(files: dict[str, Position]) -> None:
    assert positions_of(MirrorState(files=files).text()) == files


@pytest.mark.parametrize("text", ["x", "metrics.csv=1:2:3", "metrics.csv=a:1::0", "1 2 3"])
def test_positions_of_refuses_other_text(text: str) -> None:
    with pytest.raises(ValueError):
        positions_of(text)


def test_a_position_that_is_not_of_this_record_is_an_outage(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path)
    trainer.log(("a",))
    strange = [MetricPoint("a", 0.0, 0, 0, "page 7")]
    backend = Lines(strange, random.Random(0))
    backend.fails = False
    with pytest.raises(Unavailable, match="'page 7', which does not belong to this record"):
        Shipper(trainer.directory.path, "lines", backend).ship()
    trainer.end()


def test_a_backend_gets_a_description_only_when_something_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described: list[RunRecord] = []
    note: Callable[[Any, RunRecord], list[Any]] = lambda _, run: described.append(run) or []  # noqa: E731
    monkeypatch.setattr(Lines, "describe", note)
    trainer = Trainer(tmp_path)
    trainer.log(("a",))
    backend = Lines([], random.Random(0))
    backend.fails = False
    shipper = Shipper(trainer.directory.path, "lines", backend)
    for _ in range(3):
        shipper.ship()
        trainer.log(("a",))
    assert len(described) == 1
    trainer.directory.update(tags={"late": "yes"})
    shipper.ship()
    assert [run.tags for run in described] == [{}, {"late": "yes"}]
    trainer.end()


def test_what_one_backend_tells_after_the_end_is_not_pending_for_another(tmp_path: Path) -> None:
    class Filing(Lines):
        def upload(self, file: Path, name: str) -> None:
            pass

    class Refusing(Lines):
        def describe(self, run: RunRecord) -> list[tuple[str, str]]:
            return [("it", "no")]

    with mt.start_run(directory=str(tmp_path), backend="local") as run:
        run._attempt.record.restate("mirror", {"backends": ["first", "second"]})
        run.log_metric("a", 1.0, step=0)
    said: list[str] = []
    for name, kind in (("first", Filing), ("second", Refusing)):
        backend = kind([], random.Random(0))
        backend.fails = False
        end = End(time.time())
        Follower(run.path, name, lambda _, made=backend: made, said.append, 1, end, 5.0).follow()
    assert "WARNING: second does not accept it: no; the rest is sent" in said
    assert [status.is_complete for status in read_statuses(run.path, ["first", "second"])] == [
        True,
        True,
    ]
