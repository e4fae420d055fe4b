"""What policies remember: the same in a run that was killed and resumed as in one that was not."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_track.checkpoint.policy.history import Moment, Saved
from mlflow_track.checkpoint.policy.improvement import OnImprovement
from mlflow_track.checkpoint.policy.memory import Memory, Series, Steps
from mlflow_track.checkpoint.policy.retention import Candidate, Keep
from mlflow_track.checkpoint.policy.schedule import EvenlySpaced, EverySteps, SavePolicy
from mlflow_track.checkpoint.policy.stopping import EarlyStopping, Standing

VALUES = st.floats(-3, 3) | st.sampled_from([math.nan, math.inf, -math.inf, 0.0, 1.0])


@given(st.lists(st.tuples(st.integers(0, 30), VALUES), max_size=60), st.integers(0, 30))
def test_series_is_a_mapping_in_the_order_of_steps(puts: list[tuple[int, float]], without: int):
    series, model = Series(), {}
    for step, value in puts:
        model[step] = value
        assert sorted(model).index(step) == series.put(step, value)
    assert list(series.steps) == sorted(model) and len(series) == len(model)
    assert all(repr(series.get(s)) == repr(model.get(s)) for s in range(32))
    last = [model[s] for s in sorted(model) if s != without][-16:]
    assert series.recent(without) == tuple(v for v in last if math.isfinite(v))
    for step in [*model][::2]:
        series.drop(step)
        assert series.get(step) is None


@given(st.lists(st.integers(0, 60), max_size=40), st.integers(0, 20))
def test_steps_are_the_list_of_what_was_added(added: list[int], dropped: int):
    steps, model = Steps(), []
    for step in added:
        steps.add(step)
        model.append(step)
    for _ in range(min(dropped, len(model))):
        steps.drop_newest()
        model.pop()
    steps = Steps(json.loads(json.dumps(steps.stretches)))
    assert list(steps) == model
    assert all((step in steps) == (step in model) for step in range(62))


def test_steps_of_regular_saves_need_one_stretch():
    steps = Steps()
    for step in range(5, 100_000, 5):
        steps.add(step)
    assert steps.stretches == [[5, 99_995, 5]]


@given(
    st.dictionaries(st.integers(0, 20), VALUES),
    st.lists(st.integers(0, 20), unique=True),
    st.randoms(use_true_random=False),
)
def test_memory_does_not_depend_on_the_order_in_which_values_come(
    values: dict[int, float], saves: list[int], random: Any
):
    def remembered(order: Sequence[int]) -> tuple[Any, Any]:
        memory = Memory({"loss"})
        for step in order:
            memory.log("loss", step, values[step])
            if random.random() < 0.2:
                memory.standing(EARLY)
        for step in saves:
            memory.save(Moment(step, 0.0, {}), Saved(step))
        return memory.history(21), memory.standing(EARLY)

    steps = sorted(values)
    shuffled = steps.copy()
    random.shuffle(shuffled)
    assert repr(remembered(shuffled)) == repr(remembered(steps))


EARLY = EarlyStopping("loss", patience=3, min_delta=0.1)


@given(st.lists(st.tuples(st.integers(0, 12), VALUES), max_size=40))
def test_standing_is_that_of_all_values_in_the_order_of_steps(puts: list[tuple[int, float]]):
    memory, model = Memory({"loss"}), {}
    for step, value in puts:
        memory.log("loss", step, value)
        model[step] = value
        expected = Standing()
        for at in sorted(model):
            expected = EARLY.after(expected, at, model[at])
        assert memory.standing(EARLY) == expected


def test_lowest_and_highest_are_those_of_saved_steps_whenever_the_value_comes():
    memory = Memory({"loss"})
    memory.log("loss", 0, 5.0)
    memory.save(Moment(0, 0.0, {}), Saved(0))
    memory.log("loss", 1, 1.0)
    assert memory.history(2).lowest == {"loss": 5.0}
    memory.save(Moment(2, 0.0, {}), Saved(2))
    memory.log("loss", 2, 3.0)
    assert memory.history(3).lowest == {"loss": 3.0}
    memory.log("loss", 2, 7.0)  # The later value of a step counts.
    assert memory.history(3).lowest == {"loss": 5.0} and memory.history(3).highest == {"loss": 7.0}
    memory.forget_save(2)
    assert memory.history(3).highest == {"loss": 5.0}


def test_a_value_that_is_given_counts_until_one_is_logged():
    memory = Memory({"loss"})
    memory.give(3, {"loss": 9.0, "other": 1.0})
    assert memory.at(3) == {"loss": 9.0}
    assert Memory.replay(memory.to_plain(), (), {"loss"}, 0.0).at(3) == {"loss": 9.0}
    memory.log("loss", 3, 2.0)
    memory.give(3, {"loss": 9.0})
    assert memory.at(3) == {"loss": 2.0} and memory.to_plain()["given"] == {}


def test_what_is_given_and_never_logged_does_not_grow_without_end():
    memory = Memory({"loss"})
    for step in range(5000):
        memory.give(step, {"loss": float(step)})
    assert len(memory.to_plain()["given"]["loss"]) <= 2000
    again = Memory.replay(memory.to_plain(), (), {"loss"}, 0.0)
    early = EarlyStopping("loss", patience=10)
    assert again.standing(early) == memory.standing(early)


def test_history_of_an_older_version_is_read():
    plain = {
        "saved": [[4, ["EverySteps"], False, 0.1, 0.2]],
        "values": {"loss": [3.0]},
        "lowest": {"loss": 3.0},
        "highest": {"loss": 3.0},
        "since": 1.0,
    }
    memory = Memory.replay(plain, [("loss", 4, 3.0)], {"loss"}, 0.0)
    assert memory.history(5).lowest == {"loss": 3.0}
    assert memory.history(5).saved == (Saved(4, ("EverySteps",), False, 0.1, 0.2),)


# --- a run that is killed and resumed ---


class Row(NamedTuple):
    """A row of the record: a value of the loss, or None for one of other metrics."""

    step: int
    value: float | None


class Checkpoint(NamedTuple):
    """What a resume has: the saves, how many rows there were, and which checkpoints exist."""

    saves: Any
    position: int
    kept: frozenset[int]


class Plan(NamedTuple):
    """A loop that logs a row of each step, and its policies.

    Attributes:
        before, after: What else it logs before and after the boundary of each step.
    """

    before: list[list[Row]]
    after: list[list[Row]]
    save: SavePolicy
    keep: Keep
    stop: EarlyStopping


def rows_of(record: list[Row], checkpoint: Checkpoint, step: int) -> list[Row]:
    """Those that belong to a checkpoint, as `checkpoint.disk.logged.ends_of` says."""
    end = checkpoint.position
    while end < len(record) and record[end].step <= step:
        end += 1
    return record[:end]


class Run:
    """A process that trains, from the start or from a checkpoint."""

    def __init__(self, plan: Plan, last_step: int):
        self.plan, self.last_step = plan, last_step
        self.record: list[Row] = []
        self.memory = Memory({"loss"})
        self.kept: frozenset[int] = frozenset()
        self.first = 0
        self.checkpoints: dict[int, Checkpoint] = {}
        self.decisions: dict[int, Any] = {}

    def resume(self, record: list[Row], checkpoint: Checkpoint, step: int) -> None:
        self.record = rows_of(record, checkpoint, step)
        rows = [("loss", row.step, row.value) for row in self.record if row.value is not None]
        self.memory = Memory.replay(json.loads(checkpoint.saves), rows, {"loss"}, 0.0)
        self.kept, self.first = checkpoint.kept, step + 1

    def log(self, rows: list[Row]) -> None:
        for row in rows:
            self.record.append(row)
            if row.value is not None:
                self.memory.log("loss", row.step, row.value)

    def train(self) -> None:
        for step in range(self.first, self.last_step + 1):
            self.log([Row(step, None), *self.plan.before[step]])
            now = Moment(step, 0.0, self.memory.at(step))
            asks = self.plan.save.asking(now, self.memory.history(step))
            stop = self.plan.stop.reason(self.memory.standing(self.plan.stop))
            if asks or stop:
                self.commit(step, now, tuple(ask.policy for ask in asks))
            self.decisions[step] = asks, stop, self.kept
            if stop:
                return
            self.log(self.plan.after[step])

    def commit(self, step: int, now: Moment, policies: tuple[str, ...]) -> None:
        self.memory.save(now, Saved(step, policies))
        self.kept |= {step}
        values = self.memory.series["loss"]
        candidates = [
            Candidate(s, {} if (v := values.get(s)) is None else {"loss": v}, True)
            for s in self.kept
        ]
        # Without the one that was resumed from, which stays beside what the numbers ask for.
        self.kept = frozenset(self.plan.keep.kept(candidates))
        saves = json.dumps(self.memory.to_plain())
        self.checkpoints[step] = Checkpoint(saves, len(self.record), self.kept)
        self.memory.end_save(step, stall_seconds=0.1, durable_seconds=0.1)


def plans() -> st.SearchStrategy[Plan]:
    def build(draw: Callable[[Any], Any]) -> Plan:
        size = draw(st.integers(2, 14))
        before = [
            draw(st.lists(st.builds(Row, st.integers(0, step + 2), VALUES), max_size=2))
            for step in range(size)
        ]
        # Of steps that are done, in any order.
        after = [
            draw(st.lists(st.builds(Row, st.integers(0, step), VALUES), max_size=3))
            for step in range(size)
        ]
        save = draw(
            st.sampled_from(
                [
                    EverySteps(2) | OnImprovement("loss", min_delta=0.1),
                    OnImprovement("loss", noise_sigmas=1),
                    OnImprovement("loss", mode="max") | EvenlySpaced(size, 1, 3),
                ]
            )
        )
        mode = "max" if "max" in str(save) else "min"
        keep = Keep(last=1, best=draw(st.integers(1, 2)), metric="loss", mode=mode)
        patience = draw(st.integers(1, 4))
        return Plan(before, after, save, keep, EarlyStopping("loss", patience, 0.05, mode))

    return st.composite(build)()


def resumed_like_whole(plan: Plan, kill: int, step: int) -> bool:
    """Whether a run that is killed after `kill` and resumed at `step` decides as without that."""
    whole, first, second = (Run(plan, len(plan.before) - 1) for _ in range(3))
    whole.train()
    first.last_step = kill
    first.train()
    second.resume(first.record, first.checkpoints[step], step)
    if whole.decisions[step][1]:
        return True  # It had stopped there.
    second.train()
    expected = {s: decision for s, decision in whole.decisions.items() if s > step}
    return repr(second.decisions) == repr(expected)


def possible_resumes(plan: Plan) -> list[tuple[int, int]]:
    whole = Run(plan, len(plan.before) - 1)
    whole.train()
    return [(kill, step) for kill in whole.decisions for step in whole.checkpoints if step <= kill]


@given(plans(), st.data())
def test_a_resumed_run_saves_keeps_and_stops_like_one_that_was_not_killed(
    plan: Plan, data: st.DataObject
):
    resumes = possible_resumes(plan)
    if resumes:
        kill, step = data.draw(st.sampled_from(resumes))
        assert resumed_like_whole(plan, kill, step)


LATE = Plan(
    # The evaluation of each step comes after its save; that of step 1 three steps late.
    before=[[] for _ in range(9)],
    after=[[Row(0, 1.0)], [], [Row(2, 5.0)], [Row(3, 6.0)], [Row(1, 0.5)], [], [], [], []],
    save=EverySteps(1),
    keep=Keep(last=1, best=1, metric="loss", mode="min"),
    stop=EarlyStopping("loss", 3),
)


def test_late_values_count_the_same_after_every_resume():
    resumes = possible_resumes(LATE)
    assert len(resumes) > 20
    assert all(resumed_like_whole(LATE, kill, step) for kill, step in resumes)


@pytest.mark.parametrize("rows", ["all", "before the save", "none"])
def test_another_choice_of_rows_decides_differently(rows: str, monkeypatch: pytest.MonkeyPatch):
    """The negative control: rows that come again, or none after the save, or no replay."""
    wrong = {
        "all": lambda record, checkpoint, step: record,
        "before the save": lambda record, checkpoint, step: record[: checkpoint.position],
        "none": lambda record, checkpoint, step: [],
    }
    monkeypatch.setitem(globals(), "rows_of", wrong[rows])
    assert not all(resumed_like_whole(LATE, *resume) for resume in possible_resumes(LATE))
