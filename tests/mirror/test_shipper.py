"""Does every kept row arrive exactly once, whatever fails in between? On a sink in memory."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlflow_track.backends.mlflow.backend import MlflowBackend
from mlflow_track.backends.mlflow.values import Target
from mlflow_track.backends.protocol import MetricPoint, Unavailable
from mlflow_track.mirror import follower, metrics
from mlflow_track.mirror.metrics import MetricRows
from mlflow_track.mirror.recovery import Recovery
from mlflow_track.mirror.repeated import Repeated
from mlflow_track.mirror.shipper import Shipper
from mlflow_track.mirror.state import MirrorState
from mlflow_track.record import layout, row_format
from mlflow_track.record.append_file import Positions
from mlflow_track.record.directory import RunDirectory
from mlflow_track.record.metrics import MetricsFile
from mlflow_track.record.rows import files_of, iterate_rows

PIECE_BYTES = metrics._PIECE_BYTES


class MemorySink:
    """Takes what a store takes; its primary key drops exact replays. Fails where it is told to.

    A failure comes before or after the effect: an answer may be lost as well as a question.
    """

    def __init__(self, fails: Callable[[], bool]) -> None:
        self.fails = fails
        self.cells: set[MetricPoint] = set()
        self.runs: list[str] = []
        self.tags: dict[str, str] = {}
        self.params: dict[str, str] = {}
        self.files: set[str] = set()
        self.status = "RUNNING"

    def _call(self, effect: Callable[[], Any]) -> Any:
        if self.fails():
            raise Unavailable("before")
        result = effect()
        if self.fails():
            raise Unavailable("after")
        return result

    def find(self, experiment: str, tags: Mapping[str, str]) -> list[Target]:
        return self._call(lambda: [self._target()] if self.runs else [])

    def attach(self, run_id: str) -> Target:
        return self._call(self._target)

    def create(self, experiment: str, **details: Any) -> Target:
        return self._call(lambda: self.runs.append(experiment) or self._target())

    def _target(self) -> Target:
        keys = {cell.key for cell in self.cells}
        last = {key: max(c.step for c in self.cells if c.key == key) for key in keys}
        return Target("1", "run", None, dict(self.params), dict(self.tags), self.status, last)

    def history(self, run_id: str, key: str) -> list[MetricPoint]:
        return self._call(lambda: [cell for cell in self.cells if cell.key == key])

    def legal_name(self, name: str) -> str:
        return name

    def item_of(self, point: MetricPoint) -> str:
        return point.key

    def log_metrics(self, run_id: str, cells: Sequence[MetricPoint]) -> list[tuple[str, str]]:
        return self._call(lambda: self.cells.update(as_stored(cells))) or []

    def log_params(self, run_id: str, params: Mapping[str, str]) -> list[tuple[str, str]]:
        return self._call(lambda: self.params.update(params)) or []

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> list[tuple[str, str]]:
        return self._call(lambda: self.tags.update(tags)) or []

    def set_status(self, run_id: str, status: str, end_time: int | None) -> None:
        self._call(lambda: setattr(self, "status", status))

    def legal_path(self, run_id: str, name: str) -> str:
        return name

    def upload(self, run_id: str, file: Path, name: str) -> None:
        self._call(lambda: self.files.add(name))

    def remove_tag(self, run_id: str, name: str) -> None:
        self._call(list)

    def list_files(self, run_id: str, folder: str) -> list[tuple[str, bool]]:
        return self._call(lambda: [(f, False) for f in self.files if os.path.dirname(f) == folder])


def as_stored(points: Sequence[MetricPoint]) -> list[MetricPoint]:
    """An MLflow store has no place for positions."""
    return [point._replace(position="") for point in points]


def shipper_of(path: Path, sink: MemorySink) -> Shipper:
    return Shipper(path, "mlflow", MlflowBackend(sink))  # type: ignore[arg-type]


def state_file(path: Path) -> Path:
    return layout.mirror_state(path, "mlflow")


class Trainer:
    """Attempts of one run, each beginning where the one before is rewound to."""

    def __init__(self, root: Path) -> None:
        self.directory = RunDirectory.create(root, experiment="e", name=None, tags={})
        self.step = self.epoch = -1
        # Of each checkpoint the step, and where the rows end that belong to it.
        self.saves: list[tuple[int, Positions]] = []
        self._begin()

    def _begin(self) -> None:
        self.directory.start_attempt({})
        self.metrics = self.directory.open_metrics()

    def log(self, names: tuple[str, ...]) -> None:
        self.step += 1
        values = [float(self.step * 10 + self.directory.attempt) for _ in names]
        self.metrics.append(self.step, names, values)

    def log_epoch(self) -> None:
        """Another axis: its steps are behind those of the others."""
        self.epoch += 1
        self.metrics.append(self.epoch, ("epoch",), [float(self.directory.attempt)])

    def end(self) -> None:
        self.metrics.close()
        self.directory.release()

    def resume_after(self, step: int) -> None:
        self._resume(step, None)
        self.saves.clear()  # Rows before their places may be gone.

    def resume_at_save(self, back: int) -> None:
        self.saves = self.saves[: max(1, len(self.saves) - back)]
        if self.saves:
            self._resume(*self.saves[-1])

    def _resume(self, step: int, begin: Positions | None) -> None:
        self.end()
        self.directory.acquire()
        self._begin()
        self.directory.rewind(self.metrics, step, begin=begin)
        self.step = step
        rows = (row for file in files_of(self.metrics.path) for row in iterate_rows(file))
        self.epoch = max((row.step for row in rows if "epoch" in row.values), default=-1)

    def die_rewinding_to(self, step: int, has_happened: bool) -> None:
        """SIGKILL in the middle of a rewind: it is announced, and has happened or not."""
        with pytest.MonkeyPatch.context() as patch:
            if has_happened:
                patch.setattr(RunDirectory, "_note_rewind", lambda _: None)
            else:
                patch.setattr(MetricsFile, "rewind", lambda *_: None)
                patch.setattr(RunDirectory, "_note_rewind", lambda _: None)
            self.directory.rewind(self.metrics, step)
        self.end()
        self.step = step


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_PIECE_BYTES", 100)
    monkeypatch.setattr(metrics, "_BATCH", 3)
    # Of two metrics and more a call with one names few: both files of a run are in use.
    monkeypatch.setattr(row_format, "_FEW", 1)


EVENTS = st.lists(
    st.one_of(
        st.sampled_from(["a", "ab", "b"]).map(lambda names: ("log", tuple(names))),
        st.just(("ship", None)),
        st.just(("epoch", None)),
        st.just(("save", None)),
        st.integers(0, 3).map(lambda back: ("resume at a save", back)),
        st.just(("crash of the mirror", None)),
        st.just(("loss of the state", None)),
        st.integers(0, 12).map(lambda back: ("resume", back)),
        st.tuples(st.integers(0, 12), st.booleans()).map(lambda how: ("die in a rewind", how)),
    ),
    max_size=60,
)


def play(root: Path, events: list[tuple[str, Any]], seed: int) -> tuple[MemorySink, Trainer]:
    chance = random.Random(seed)
    trainer = Trainer(root)
    sink = MemorySink(lambda: chance.random() < 0.15)
    shipper = shipper_of(trainer.directory.path, sink)
    for event, detail in events:
        if event == "log":
            trainer.log(detail)
        elif event == "epoch":
            trainer.log_epoch()
        elif event == "save":
            trainer.saves.append((trainer.step, trainer.metrics.positions()))
        elif event == "resume at a save":
            trainer.resume_at_save(detail)
        elif event == "resume":
            trainer.resume_after(max(-1, trainer.step - detail))
        elif event == "die in a rewind":
            back, has_happened = detail
            trainer.die_rewinding_to(max(-1, trainer.step - back), has_happened)
            try:
                shipper.ship()
            except Unavailable:
                pass
            trainer.resume_after(trainer.step)
        elif event in ("crash of the mirror", "loss of the state"):
            if event == "loss of the state":
                state_file(trainer.directory.path).unlink(missing_ok=True)
            shipper = shipper_of(trainer.directory.path, sink)
        else:
            try:
                shipper.ship()
            except Unavailable:
                pass
    trainer.directory.end_attempt("FINISHED")
    trainer.end()
    sink.fails = lambda: False
    shipper = shipper_of(trainer.directory.path, sink)
    while not shipper.ship():
        pass
    assert shipper.finish() == "FINISHED"
    return sink, trainer


def repeated_steps(sink: MemorySink) -> list[tuple[str, int]]:
    points = [(cell.key, cell.step) for cell in sink.cells]
    return sorted({point for point in points if points.count(point) > 1})


A = ("log", ("a",))
# What an attempt repeated was set aside, and the state lost: nobody but the rows set aside before
# knows that the server has that step.
REPEATED_AND_LOST = [
    *(A, ("ship", None), ("resume", 1), A, A, ("ship", None)),
    *(("loss of the state", None), ("resume", 2)),
]


EPOCH = ("epoch", None)
# Values of another axis are set aside at a step that is not past the one of the save.
ANOTHER_AXIS = [
    *(A, A, A, A, EPOCH, ("save", None), A, EPOCH, A, EPOCH, ("ship", None), ("ship", None)),
    *(("resume at a save", 0), A, EPOCH, A, EPOCH, ("ship", None)),
]


@settings(deadline=None, max_examples=100)
@given(events=EVENTS, seed=st.integers(0, 10_000))
@example(events=REPEATED_AND_LOST, seed=0)
@example(events=ANOTHER_AXIS, seed=0)
def test_every_kept_cell_arrives_and_no_step_twice(events, seed):
    with TemporaryDirectory() as folder:
        sink, trainer = play(Path(folder), events, seed)
        kept = {
            (name, row.step)
            for file in files_of(trainer.directory.metrics_path)
            for row in iterate_rows(file)
            for name in row.values
        }
        assert kept <= {(cell.key, cell.step) for cell in sink.cells}
        assert repeated_steps(sink) == []
        assert len(sink.runs) == 1
        assert sink.status == "FINISHED"


def test_rows_that_are_rewound_before_they_are_sent_again_are_known(tmp_path):
    trainer = Trainer(tmp_path)
    sink = MemorySink(lambda: False)
    # More than one piece: of the later ones nothing says that they were ever sent.
    for _ in range(12):
        trainer.log(("a",))
    while not shipper_of(trainer.directory.path, sink).ship():
        pass
    state_file(trainer.directory.path).unlink()
    shipper = shipper_of(trainer.directory.path, sink)
    # What the server has is asked, and then it is down: nothing is sent before the rewind.
    take, sink.log_metrics = sink.log_metrics, refuse  # type: ignore[method-assign]
    with pytest.raises(Unavailable):
        shipper.ship()
    trainer.resume_after(-1)
    for _ in range(12):
        trainer.log(("a",))
    sink.log_metrics = take  # type: ignore[method-assign]
    while not shipper.ship():
        pass
    assert repeated_steps(sink) == []
    trainer.end()


def refuse(run_id: str, cells: Sequence[MetricPoint]) -> list[tuple[str, str]]:
    raise Unavailable("down")


def test_a_mirror_that_comes_in_the_middle_of_a_rewind_waits_for_its_end(tmp_path, monkeypatch):
    trainer = Trainer(tmp_path)
    sink = MemorySink(lambda: False)
    for _ in range(4):
        trainer.log(("a",))
    shipper_of(trainer.directory.path, sink).ship()
    trainer.end()
    # Times are compared by the millisecond.
    time.sleep(0.01)
    trainer.directory.acquire()
    trainer._begin()
    shipper = shipper_of(trainer.directory.path, sink)
    note, threads, is_noted = RunDirectory._note_rewind, [], threading.Event()

    def note_later(self: RunDirectory) -> None:
        # The rows are out of the file, and run.json does not say yet where they are.
        threads.append(threading.Thread(target=shipper.ship))
        threads[0].start()
        time.sleep(0.2)
        note(self)
        is_noted.set()

    monkeypatch.setattr(RunDirectory, "_note_rewind", note_later)
    find = Recovery.find_foreign
    monkeypatch.setattr(
        Recovery, "find_foreign", lambda *arguments: is_noted.wait(5) and find(*arguments)
    )
    trainer.directory.rewind(trainer.metrics, 1)
    threads[0].join()
    trainer.step = 1
    trainer.log(("a",))
    while not shipper.ship():
        pass
    assert repeated_steps(sink) == []
    trainer.end()


STORY = [
    *[("log", ("a",))] * 9,
    *[("ship", None)] * 4,
    ("resume", 5),
    *[("log", ("a",))] * 9,
    *[("ship", None)] * 4,
]


def test_without_the_account_of_rewinds_a_step_arrives_twice(tmp_path, monkeypatch):
    # The negative control of the test above.
    assert repeated_steps(play(tmp_path / "good", STORY, seed=3)[0]) == []
    monkeypatch.setattr(Repeated, "get", lambda *_: None)
    assert repeated_steps(play(tmp_path / "bad", STORY, seed=3)[0])


def test_without_what_was_acknowledged_a_step_arrives_twice(tmp_path, monkeypatch):
    # The state is the first guard, asking the server the second; take one away, then both.
    story = [*STORY[:13], ("crash of the mirror", None), *STORY[13:], ("ship", None)]
    monkeypatch.setattr(MirrorState, "read", lambda *_: MirrorState())
    assert repeated_steps(play(tmp_path / "good", story, seed=3)[0]) == []
    monkeypatch.setattr(Recovery, "recover", lambda _: None)
    assert repeated_steps(play(tmp_path / "bad", story, seed=3)[0])


TWICE = [
    *[("log", ("a",))] * 9,
    *[("ship", None)] * 4,
    ("resume", 5),
    *[("log", ("a",))] * 9,
    *[("ship", None)] * 4,
    ("resume", 9),
    ("loss of the state", None),
    *[("log", ("a",))] * 3,
]


def test_a_lost_state_is_found_again_where_two_rewinds_overlap(tmp_path, monkeypatch):
    assert repeated_steps(play(tmp_path / "good", TWICE, seed=3)[0]) == []
    # Rows that repeated a step were never sent; without a memory of the first they would be now.
    monkeypatch.setattr(MetricRows, "remember", lambda *_: None)
    assert repeated_steps(play(tmp_path / "bad", TWICE, seed=3)[0])


@pytest.mark.parametrize("is_lost", [True, False])
def test_rows_that_a_power_loss_took_are_known_after_an_attempt_without_a_mirror(
    is_lost: bool, tmp_path: Path
) -> None:
    trainer = Trainer(tmp_path)
    for _ in range(4):
        trainer.log(("a",))
    sink = MemorySink(lambda: False)
    shipper_of(trainer.directory.path, sink).ship()
    path = trainer.directory.metrics_path
    os.truncate(path, path.read_bytes()[:-1].rindex(b"\n") + 1)
    if is_lost:
        state_file(trainer.directory.path).unlink()
    for _ in range(2):
        trainer.resume_after(2)
        trainer.log(("a",))
    trainer.log(("a",))
    assert shipper_of(trainer.directory.path, sink).ship()
    assert repeated_steps(sink) == []
    assert {cell.step for cell in sink.cells} == {0, 1, 2, 3, 4}
    trainer.end()


def test_the_largest_difference_between_attempts_is_known(tmp_path):
    trainer = Trainer(tmp_path)
    for _ in range(6):
        trainer.log(("a",))
    sink = MemorySink(lambda: False)
    shipper_of(trainer.directory.path, sink).ship()
    trainer.resume_after(2)
    trainer.log(("a",))
    shipper = shipper_of(trainer.directory.path, sink)
    shipper.ship()
    # The second attempt logs one more than the first did.
    assert shipper.state.differences == {"a": 1.0}


class ForgetfulSink(MemorySink):
    """Takes everything, keeps the count and the newest batch."""

    count = 0

    def log_metrics(self, run_id: str, cells: Sequence[MetricPoint]) -> list[tuple[str, str]]:
        self.count += len(cells)
        self.cells = set(as_stored(cells))
        return []


@pytest.mark.parametrize(
    ("rows_logged", "most_bytes"),
    # Held in memory the values would be some 80 and 200 MB.
    [(80_000, 20_000_000), pytest.param(200_000, 30_000_000, marks=pytest.mark.tables)],
)
def test_many_pending_values_are_sent_in_the_memory_of_a_few(
    rows_logged, most_bytes, tmp_path, monkeypatch
):
    monkeypatch.setattr(metrics, "_PIECE_BYTES", PIECE_BYTES)
    monkeypatch.setattr(metrics, "_BATCH", 1000)
    names = tuple("abcde")
    trainer = Trainer(tmp_path)
    for step in range(rows_logged):
        trainer.metrics.append(step, names, [step + x / 7 for x in range(5)])
    trainer.end()
    sink = ForgetfulSink(lambda: False)
    shipper = shipper_of(trainer.directory.path, sink)
    shipper._open(shipper._ledger.read_info())
    rows = shipper._rows[0]
    while sink.count < 100_000:
        rows.send_piece()
    before = resident_bytes()
    while rows.send_piece():
        pass
    grown = resident_bytes() - before
    assert sink.count == 5 * rows_logged
    assert grown < most_bytes, f"{grown:,} bytes"


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class SlowSink(MemorySink):
    """A server during each of whose answers the trainer logs one more row."""

    def __init__(self, trainer: Trainer) -> None:
        super().__init__(lambda: False)
        self._trainer = trainer
        self.batches = 0

    def log_metrics(self, run_id: str, cells: Sequence[MetricPoint]) -> list[tuple[str, str]]:
        self.batches += 1
        if self.batches < 20:
            self._trainer.log(("a",))
        return super().log_metrics(run_id, cells)


def test_rows_that_come_while_a_batch_is_sent_wait_for_the_next_round(tmp_path):
    trainer = Trainer(tmp_path)
    trainer.log(("a",))
    sink = SlowSink(trainer)
    shipper = shipper_of(trainer.directory.path, sink)
    assert shipper.ship()
    assert sink.batches == 1 and len(sink.cells) == 1
    assert shipper.ship()
    assert sink.batches == 2 and len(sink.cells) == 2
    trainer.end()


@given(st.floats(0, 1e4))
def test_the_mirror_rests_between_one_and_five_seconds(used):
    rest = follower._rest(used)
    assert 1.0 <= rest <= 5.0
    assert rest == 5.0 or used <= 0.005 * (os.cpu_count() or 1) * rest + 1e-9


def test_a_file_that_grows_all_the_time_takes_a_part_of_the_line(tmp_path, monkeypatch):
    trainer, sink, sent = Trainer(tmp_path), MemorySink(lambda: False), []
    file = trainer.directory.artifacts_path / "growing.txt"
    file.parent.mkdir(exist_ok=True)

    def upload(run_id: str, file: Path, name: str) -> None:
        sent.append(name)
        sink.files.add(name)
        time.sleep(0.1)

    monkeypatch.setattr(sink, "upload", upload)
    shipper = shipper_of(trainer.directory.path, sink)
    for size in range(1, 5):
        file.write_text("x" * size)
        shipper._artifacts._look_after = 0.0
        shipper.ship()
    assert sent.count("growing.txt") == 1
    trainer.directory.end_attempt("FINISHED")
    trainer.end()
    shipper.finish()
    assert sent.count("growing.txt") == 2
