"""The plan of saves: what it says, what it leaves alone, and the warning before step 0."""

from __future__ import annotations

import json
import os
import random
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import mlflow_track as mt
from mlflow_track.checkpoint import commits, pruning
from mlflow_track.checkpoint.disk import publish
from mlflow_track.checkpoint.policy.foresight import Foresight, foresee
from mlflow_track.checkpoint.policy.history import Moment
from mlflow_track.checkpoint.policy.limits import Limits
from mlflow_track.checkpoint.policy.plan import Plan
from mlflow_track.checkpoint.policy.save_policy import Ask
from mlflow_track.checkpoint.sizing import measure_tensors

EVENLY = mt.EvenlySpaced(1000, warmup_steps=100, max_checkpoints=5)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACK_SYSTEM_METRICS", "0")


def foreseen(save: mt.SavePolicy | None, max_steps: int | None = None, **others: Any) -> Foresight:
    options = {"first": 0, "saves": {"saved": []}, "size_bytes": 100, **others}
    return foresee(save, Limits(max_steps=max_steps), **options)


def steps_of(seen: Foresight) -> list[int]:
    return [save.step for save in seen.saves]


def small_state() -> dict[str, Any]:
    model = torch.nn.Linear(8, 8)
    return {"model": model, "optimizer": torch.optim.AdamW(model.parameters())}


def log_of(run: mt.Run) -> str:
    return (run.path / "training.log").read_text()


# --- what it says ---


def test_plan_has_steps_reasons_interval_and_formula() -> None:
    with mt.start_run() as run:
        plan = run.checkpoints(save=EVENLY).plan(small_state())
        assert plan.steps == tuple(save.step for save in plan) == (100, 325, 550, 774, 999)
        assert plan.saves[0].reason == "EvenlySpaced: the end of warm-up"
        assert plan.saves[-1].policies == {"EvenlySpaced": "the last step"}
        assert plan.saves[-1].kept == plan.steps and len(plan) == 5
        (spacing,) = plan.spacings
        assert spacing.interval == 224.75 == eval(spacing.numbers)
        names = {"max_steps": 1000, "warmup_steps": 100, "slots": spacing.slots}
        assert eval(spacing.formula, names) == 224.75
        assert plan.peak_bytes == plan.final_bytes and plan.fits
        assert str(plan) == repr(plan) and plan.to_dict()["saves"][0]["step"] == 100
        assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


@pytest.mark.parametrize(
    "save",
    [
        EVENLY,
        EVENLY | mt.EverySteps(7) | mt.OnImprovement("validation/perplexity") | mt.EveryMinutes(5),
        mt.EvenlySpaced(10**9, 0, 400) | mt.AtSteps(range(10**8, 2 * 10**8, 10**7)),
        mt.EverySteps(3) | mt.Continuous(),
    ],
)
def test_plan_fits_a_terminal(save: mt.SavePolicy) -> None:
    with mt.start_run() as run:
        keep = mt.Keep(last=30, best=2, metric="validation/perplexity")
        text = str(run.checkpoints(save=save, keep=keep).plan(small_state()))
        lines = [line for line in text.splitlines() if str(run.path) not in line]
        assert max(map(len, lines)) <= 80 and len(lines) < 60, text


def test_plan_names_what_time_and_metrics_decide() -> None:
    save = EVENLY | mt.OnImprovement("loss") | mt.EveryMinutes(10) | mt.Budget(0.01)
    seen = foreseen(save | mt.Continuous(), seconds=3600.0)
    assert steps_of(seen) == [100, 325, 550, 774, 999]
    most = {chance.policy: chance.most for chance in seen.chances}
    assert most == {"OnImprovement": 995, "EveryMinutes": 6, "Budget": 995, "Continuous": 995}
    assert "10 minutes" in next(c.when for c in seen.chances if c.policy == "EveryMinutes")


def test_plan_without_an_end_says_how_it_begins() -> None:
    with mt.start_run() as run:
        plan = run.checkpoints(save=mt.EverySteps(100)).plan(small_state())
        assert plan.steps[:3] == (100, 200, 300) and not plan.is_complete
        assert plan.last_step is plan.peak_bytes is plan.final_bytes is None
        assert str(plan).startswith(f"the first {len(plan)} saves in steps 0 to an unknown end")
        plan = run.checkpoints(save=mt.EverySteps(100), keep=mt.Keep(last=30)).plan(small_state())
        assert plan.peak_bytes == pytest.approx(31 * (plan.checkpoint_bytes or 0), rel=0.02)
        assert not run.checkpoints().plan().saves


def test_plan_without_a_state_takes_the_size_of_the_checkpoints_that_are_there() -> None:
    with mt.start_run() as run:
        checkpoints = run.checkpoints(save=mt.AtSteps(0, 5))
        assert checkpoints.plan().peak_bytes is None
        checkpoints.step(0, small_state())
        assert len(checkpoints.list()) == 1
        plan = checkpoints.plan()
        assert plan.steps == (5,) and plan.first_step == 1
        assert plan.peak_bytes == pytest.approx(2 * plan.present_bytes, rel=0.01)
    with pytest.raises(RuntimeError, match="closed"):
        checkpoints.plan()


def test_plan_after_a_restore_is_about_the_rest() -> None:
    state, policies = small_state(), (mt.EvenlySpaced(40, 30, 2), mt.EvenlySpaced(100, 0, 6))
    for save, steps in zip(policies, [(30, 39), (44, 58, 71, 85, 99)], strict=True):
        with mt.start_run(run_name="r", resume="auto") as run:
            checkpoints = run.checkpoints(save=save, keep=mt.Keep(milestones=False))
            first = checkpoints.restore(state)
            plan = checkpoints.plan(state)
            assert plan.steps == steps and plan.first_step == first
            for step in range(first, 35):
                checkpoints.step(step, state)
            run.finish("KILLED")
    # Slots of the new plan that are left, over the steps that are left.
    assert plan.saves[0].kept == (30, 44) and plan.saves[1].kept == (30, 58)
    (spacing,) = plan.spacings
    assert spacing.interval == eval(spacing.numbers) == (99 - 30) / 5
    assert "EvenlySpaced saves 5 steps: 44, 58, 71, 85, 99, interval 13.8" in log_of(run)


def test_several_evenly_spaced_follow_each_its_own_saves() -> None:
    sparse = mt.EvenlySpaced(21, max_checkpoints=3)
    dense = mt.EvenlySpaced(21, warmup_steps=19, max_checkpoints=5)
    with mt.start_run() as run:
        checkpoints = run.checkpoints(save=sparse | dense)
        steps = checkpoints.plan({}).steps
        assert steps == (0, 10, 19, 20)
        assert steps == tuple(step for step in range(21) if checkpoints.step(step, {}))
        assert "EvenlySpaced 2 saves 2 steps: 19, 20" in log_of(run)
    assert (sparse.name, dense.name) == ("EvenlySpaced", "EvenlySpaced")


def test_steps_of_evenly_spaced_stand_in_the_log_in_one_short_line() -> None:
    with mt.start_run() as run:
        checkpoints = run.checkpoints(save=mt.EvenlySpaced(10**6, 100, 5000) | mt.EverySteps(9999))
        checkpoints.step(0, {"w": 0})
        checkpoints.step(1, {"w": 0})
    (line,) = [line for line in log_of(run).splitlines() if "EvenlySpaced saves" in line]
    assert "5,000 steps: 100, 300," in line and line.endswith("999999, interval 200.02")
    assert len(line) < 200


# --- policies of the user's own ---


class Powers(mt.SavePolicy):
    def due(self, now: Any, history: Any) -> str | None:
        return "a power" if now.step & (now.step - 1) == 0 else None


class Nightly(mt.SavePolicy):
    def due(self, now: Any, history: Any) -> str | None:
        return "old" if now.step % 4 == 0 and now.time - history.since > 3600 else None


class Loss(mt.SavePolicy):
    watched = frozenset({"loss"})  # type: ignore[assignment]

    def due(self, now: Any, history: Any) -> str | None:
        return "low" if now.metrics["loss"] < 1 else None


class Shifted(mt.EverySteps):
    def due(self, now: Any, history: Any) -> str | None:
        return "shifted" if now.step % self.interval == 1 else None


class Patient(Powers):
    may_wait = True


class Apart(mt.SavePolicy):
    def due(self, now: Any, history: Any) -> str | None:
        return "apart" if not history.saved or now.step - history.saved[-1].step > 3 else None


class Broken(mt.SavePolicy):
    def due(self, now: Any, history: Any) -> str | None:
        return {}[now.step]


@pytest.mark.parametrize(
    ("save", "steps", "most"),
    [
        (Powers(), [0, 1, 2, 4, 8, 9], None),
        (Nightly(), [9], 3),
        (Loss(), [9], 10),
        (Shifted(4), [1, 5, 9], None),
        (Patient(), [9], 5),
        (Apart(), [0, 4, 8, 9], None),
        # It depends on what the other one saves.
        (Apart() | mt.EveryMinutes(1), [9], 10),
    ],
)
def test_policies_of_your_own_are_certain_where_the_steps_decide(
    save: mt.SavePolicy, steps: list[int], most: int | None
) -> None:
    seen = foreseen(save, max_steps=10)
    assert steps_of(seen) == steps
    own = [chance.most for chance in seen.chances if chance.policy != "EveryMinutes"]
    assert own == ([] if most is None else [most])


def test_a_policy_that_fails_fails_in_the_plan() -> None:
    with pytest.raises(KeyError):
        foreseen(Broken(), max_steps=10)


def test_policies_of_your_own_are_not_asked_at_the_start() -> None:
    asked = []

    class Counts(mt.SavePolicy):
        def due(self, now: Any, history: Any) -> str | None:
            asked.append(now.step)
            return None

    with mt.start_run() as run:
        checkpoints = run.checkpoints(save=Counts(), max_steps=50)
        checkpoints.restore(small_state())
        checkpoints.step(0, small_state())
    assert asked == [0]


# --- the last step, and what a plan counts on ---


def test_last_step_is_saved_also_where_another_save_may_wait() -> None:
    limits, last = Limits(max_steps=10), Moment(9, 0.0, {})
    waits, does_not = Ask("EveryMinutes", "old", may_wait=True), Ask("EverySteps", "every 3 steps")
    assert [ask.policy for ask in limits.amended((waits,), last)] == ["EveryMinutes", "LastStep"]
    assert limits.amended((does_not,), last) == (does_not,)
    assert limits.amended((waits,), Moment(8, 0.0, {})) == (waits,)


def most_at_once(monkeypatch: pytest.MonkeyPatch) -> int:
    """How many checkpoints there are at most where removing one takes a while."""
    counts, remove = [], pruning.CheckpointStore.remove

    def slowly(store: Any, checkpoint: Any) -> None:
        time.sleep(0.03)
        remove(store, checkpoint)

    save = commits.Saver.save

    def counted(saver: Any, request: Any) -> float:
        counts.append(len(saver._store.list()))
        return save(saver, request)

    monkeypatch.setattr(pruning.CheckpointStore, "remove", slowly)
    monkeypatch.setattr(commits.Saver, "save", counted)
    with mt.start_run() as run:
        checkpoints = run.checkpoints(save=mt.EverySteps(1), keep=mt.Keep(last=1))
        for step in range(6):
            checkpoints.step(step, {"w": 0})
    return max(counts) + 1


def test_a_save_waits_for_the_removals_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert most_at_once(monkeypatch) == 2


def test_a_save_that_does_not_wait_for_removals_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control."""
    monkeypatch.setattr(commits.pruning.BackgroundPruning, "wait", lambda self: None)
    assert most_at_once(monkeypatch) > 2


# --- sizes ---


@pytest.mark.parametrize(
    "make",
    [
        torch.optim.AdamW,
        lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
        lambda params: torch.optim.SGD(params, lr=0.1),
        lambda params: torch.optim.Adam(params, amsgrad=True),
        torch.optim.Adafactor,
        torch.optim.Adagrad,
    ],
)
def test_state_of_an_optimizer_is_known_before_its_first_step(make: Any) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(30, 40), torch.nn.Linear(40, 3))
    optimizer = make([{"params": model[0].parameters()}, {"params": model[1].parameters()}])
    nested = {"a": {"optimizers": [optimizer]}, "model": model}
    model[0].bias.requires_grad_(False)
    before, generator = measure_tensors(nested), torch.get_rng_state()
    state_before = len(optimizer.state)
    model(torch.ones(1, 30)).sum().backward()
    assert torch.equal(generator, torch.get_rng_state()) and len(optimizer.state) == state_before
    optimizer.step()
    assert measure_tensors(nested) == pytest.approx(before, rel=0.01)


class Draws:
    """A state that draws random numbers when it is asked for."""

    def state_dict(self) -> dict[str, Any]:
        return {"numbers": [random.random(), torch.rand(1)]}

    def load_state_dict(self, content: dict[str, Any]) -> None: ...


def test_plan_changes_nothing() -> None:
    state = {**small_state(), "draws": Draws()}
    with mt.start_run() as run:
        checkpoints = run.checkpoints(save=EVENLY)
        files = Counter(os.listdir(run.path / "checkpoints"))
        torch.manual_seed(7)
        random.seed(7)
        plan = checkpoints.plan(state)
        drawn = random.random(), float(torch.rand(1))
        torch.manual_seed(7)
        random.seed(7)
        assert drawn == (random.random(), float(torch.rand(1)))
        assert not state["optimizer"].state and not checkpoints.list()
        assert Counter(os.listdir(run.path / "checkpoints")) == files
        assert plan.steps == checkpoints.plan(state).steps


def test_plan_says_what_it_does_not_know() -> None:
    model = torch.nn.Linear(2, 2)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(4)))
    state = {"model": model, "optimizer": torch.optim.LBFGS(model.parameters()), "data": loader}
    loader.state_dict = loader.load_state_dict = pytest.fail  # type: ignore[attr-defined]
    with mt.start_run() as run:
        checkpoints = run.checkpoints(
            save=mt.EverySteps(5), stop=mt.EarlyStopping("loss", patience=3)
        )
        notes = "\n".join(checkpoints.plan(state).notes)
        assert "'optimizer' (LBFGS)" in notes and "loader 'data'" in notes
        assert "max_steps" in notes and "early stopping may end the run" in notes
        with pytest.raises(TypeError, match=r"state\['model'\]"):
            checkpoints.plan({"model": model.state_dict()})


def test_plan_of_the_backend_off_looks_at_the_folder_of_runs(tmp_path: Path) -> None:
    with mt.start_run(backend="off", directory=tmp_path / "later") as run:
        plan = run.checkpoints(save=EVENLY).plan(small_state())
        assert plan.steps[0] == 100 and plan.checkpoint_bytes and plan.fits
        assert plan.folder == str(tmp_path / "later")


# --- the warning ---


def full(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    """A volume on which `free` bytes are free, wherever the tests run."""
    monkeypatch.setattr(publish.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))


@pytest.mark.parametrize("restores", [True, False])
@pytest.mark.parametrize(("count", "is_warned"), [(5, True), (2, False)])
def test_a_plan_that_does_not_fit_is_warned_of_once_before_it_fails(
    restores: bool, count: int, is_warned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {"w": torch.zeros(100_000)}
    full(monkeypatch, 1_000_000)
    with mt.start_run() as run:
        checkpoints = run.checkpoints(save=mt.EvenlySpaced(10, 0, count))
        if restores:
            checkpoints.restore(state)
            assert ("do not fit" in log_of(run)) == is_warned
        for step in range(3):
            checkpoints.step(step, state)
    lines = [line for line in log_of(run).splitlines() if "do not fit" in line]
    assert len(lines) == is_warned
    assert all("2.0 MB" in line and "1.0 MB are free in" in line for line in lines)


def test_an_optimizer_counts_before_its_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.Linear(300, 300)
    state = {"model": model, "optimizer": torch.optim.AdamW(model.parameters())}
    full(monkeypatch, 1_500_000)
    with mt.start_run() as run:
        run.checkpoints(save=mt.EvenlySpaced(10, 0, 2)).restore(state)
        assert "they need 2.2 MB at the peak (1.1 MB each)" in log_of(run)


def test_what_may_come_counts_only_where_keep_limits_it(monkeypatch: pytest.MonkeyPatch) -> None:
    state = {"w": torch.zeros(100_000)}
    full(monkeypatch, 900_000)
    for keep, is_warned in ((None, False), (mt.Keep(last=1), False), (mt.Keep(last=2), True)):
        with mt.start_run() as run:
            checkpoints = run.checkpoints(save=mt.EveryMinutes(9), keep=keep, max_steps=100)
            checkpoints.restore(state)
            assert ("do not fit" in log_of(run)) == is_warned, keep


class Milestones(mt.SavePolicy):
    """All of its saves are kept, as far as `max_bytes` allows."""

    is_milestone = True

    def due(self, now: Any, history: Any) -> str | None:
        return "always"


@pytest.mark.parametrize("max_steps", [None, 1000])
def test_saves_that_nothing_limits_are_warned_of_where_few_fit(
    max_steps: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {"w": torch.zeros(100_000)}
    few, many, text = 5_000_000, 50_000_000, "are enough for only 12 saves"
    for save, keep, free, is_warned in (
        (mt.Continuous(), None, few, True),
        (mt.Budget(0.01) | mt.AtSteps([5]), None, few, True),
        (mt.EverySteps(5), None, few, max_steps is None),  # Else it does not fit, which is said.
        (mt.Continuous(), mt.Keep(last=2), few, False),
        (mt.Continuous(), mt.Keep(max_bytes=few), few, False),
        (Milestones(), mt.Keep(max_bytes=few), few, False),
        (mt.Continuous(), None, many, False),
        (mt.AtSteps([1, 2, 3]), None, few, False),
    ):
        full(monkeypatch, free)
        with mt.start_run() as run:
            checkpoints = run.checkpoints(save=save, keep=keep, max_steps=max_steps)
            checkpoints.restore(state)
            assert (text in log_of(run)) == is_warned, (save, keep, free)
            checkpoints.step(0, {"w": torch.zeros(1)})
            assert log_of(run).count("are enough for") == is_warned
