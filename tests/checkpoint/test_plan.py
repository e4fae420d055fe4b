"""The plan of saves against real runs: the same steps, the same ones kept, the same bytes."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

import mlflow_track as mt
from mlflow_track.checkpoint.policy.plan import Plan
from mlflow_track.record.files import folder_size

SCENARIOS, SAMPLE = 200, (18, 69, 77, 78, 79, 84, 89, 126, 178, 198)
# What is logged with a step is not known before; see `sizing`.
CLOSE = 0.01


@dataclass(frozen=True)
class PowersOfTwo(mt.SavePolicy):
    """One of the user's own, which looks at the step alone."""

    def due(self, now: Any, history: Any) -> str | None:
        return "a power of two" if now.step & (now.step - 1) == 0 else None


@dataclass(frozen=True)
class AtLeastApart(mt.SavePolicy):
    """One that looks at the saves before."""

    steps: int

    def due(self, now: Any, history: Any) -> str | None:
        last = history.saved[-1].step if history.saved else -1
        return f"{self.steps} steps" if now.step - last >= self.steps else None


@dataclass
class Scenario:
    """A run that is drawn at random.

    Attributes:
        steps: How many it has.
        save, keep: Its policies.
        knows_end: Whether `max_steps` is given.
        killed_at: The step after which it is killed, and continued; None: never.
        width: Of the model.
        is_watched: Whether the folder is watched at full speed, and not looked at after each save.
    """

    steps: int
    save: mt.SavePolicy
    keep: mt.Keep | None
    knows_end: bool
    killed_at: int | None
    width: int
    is_watched: bool
    values: list[float] = field(default_factory=list)

    @property
    def max_steps(self) -> int | None:
        return self.steps if self.knows_end else None


def scenario(number: int) -> Scenario:
    draw = random.Random(number)
    steps = draw.randint(1, 60)
    kinds = [
        lambda: mt.EvenlySpaced(steps, draw.randint(0, 70), draw.randint(1, 8)),
        lambda: mt.EvenlySpaced(steps, 0, draw.randint(1, 30)),
        lambda: mt.EverySteps(draw.randint(1, 15)),
        lambda: mt.AtSteps([draw.randint(0, 70) for _ in range(draw.randint(1, 5))]),
        PowersOfTwo,
        lambda: AtLeastApart(draw.randint(1, 20)),
        lambda: mt.OnImprovement("loss", min_delta=draw.choice([0.0, 0.3])),
        lambda: mt.Continuous(),
        lambda: mt.EveryMinutes(draw.choice([10.0, 0.0005])),
    ]
    # Those that time or metrics decide, less often: of them the plan says less.
    chosen = draw.choices(kinds, weights=[4, 2, 4, 3, 2, 1, 1, 1, 1], k=draw.choice([1, 1, 2, 3]))
    save, *others = [make() for make in chosen]
    for other in others:
        save |= other
    width = draw.choice([8, 40, 120])
    best, size = draw.choice([0, 0, 0, 1, 2]), 4 * 3 * width * width + 24_000
    keep = mt.Keep(
        last=draw.randint(1, 4),
        best=best,
        metric="loss" if best else None,
        milestones=draw.random() < 0.6,
        max_bytes=draw.choice([None, None, None, int(size * (draw.randint(1, 6) + 0.5))]),
    )
    return Scenario(
        steps=steps,
        save=save,
        keep=None if draw.random() < 0.25 else keep,
        knows_end=draw.random() < 0.5,
        killed_at=draw.randrange(steps) if draw.random() < 0.3 else None,
        width=width,
        is_watched=draw.random() < 0.5,
        values=[draw.random() for _ in range(steps)],
    )


@dataclass
class Seen:
    """What a real run did: the steps saved, what was there after each save, the bytes.

    Attributes:
        saved: The steps saved.
        kept: What was there after each save.
        left: What was there at the end.
        peak, final: The bytes of the whole folder.
        most: The most bytes at a moment, where each save was waited for; a watcher may miss it.
    """

    saved: list[int] = field(default_factory=list)
    kept: dict[int, list[int]] = field(default_factory=dict)
    left: list[int] = field(default_factory=list)
    peak: int = 0
    final: int = 0
    most: int = 0


@contextmanager
def watched(folder: Path, seen: Seen) -> Iterator[None]:
    """Looks at the folder all the time, from another thread."""
    is_over = threading.Event()

    def look() -> None:
        while not is_over.wait(0.001):
            seen.peak = max(seen.peak, folder_size(folder))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


class Job:
    """A training job with all that is in a state."""

    def __init__(self, case: Scenario) -> None:
        torch.manual_seed(0)
        self.case = case
        self.model = torch.nn.Linear(case.width, case.width)
        optimizer = torch.optim.AdamW(self.model.parameters())
        self.state = {"model": self.model, "optimizer": optimizer, "note": ["text", 1.5]}

    def learn(self, run: mt.Run, step: int) -> None:
        self.state["optimizer"].zero_grad()
        self.model(torch.ones(1, self.case.width)).mean().backward()
        self.state["optimizer"].step()
        run.log_metrics({"loss": self.case.values[step]}, step=step)


def play(case: Scenario, runs: Path) -> tuple[Plan, Seen]:
    """The plan of the last attempt, and what that attempt did."""
    for number, end in enumerate([case.killed_at, case.steps - 1]):
        if end is None:
            continue
        job, seen = Job(case), Seen()
        with mt.start_run(run_name="planned", resume="auto", directory=runs) as run:
            checkpoints = run.checkpoints(save=case.save, keep=case.keep, max_steps=case.max_steps)
            plan = checkpoints.plan(job.state) if not number or case.killed_at is None else None
            first = checkpoints.restore(job.state)
            plan = plan or checkpoints.plan(job.state)
            folder = run.path / "checkpoints"
            seen.most = there = folder_size(folder)
            with watched(folder, seen):
                for step in range(first, end + 1):
                    job.learn(run, step)
                    if checkpoints.step(step, job.state):
                        seen.saved.append(step)
                        if not case.is_watched:
                            seen.kept[step] = [c.step for c in checkpoints.list()]
                            new = folder_size(checkpoints.list()[-1].path)
                            seen.most = max(seen.most, there + new)
                            there = folder_size(folder)
                seen.left = [c.step for c in checkpoints.list()]
            seen.final = folder_size(folder)
            if end != case.steps - 1:
                run.finish("KILLED")
    return plan, seen


def differences(case: Scenario, plan: Plan, seen: Seen) -> list[str]:
    """Where the plan and the run differ."""
    found = []
    # Of a run without a known end the plan says how it begins.
    saves = [save for save in plan if save.step < case.steps]
    steps = [save.step for save in saves]
    has_end = plan.last_step is not None or (plan.is_complete and steps == list(plan.steps))
    keeps_best = case.keep is not None and case.keep.best > 0
    if not set(steps) <= set(seen.saved) or (not plan.may and steps != seen.saved[: len(steps)]):
        found.append(f"planned {steps}, saved {seen.saved}")
    if not plan.may and has_end and steps != seen.saved:
        found.append(f"planned only {steps}, saved {seen.saved}")
    if not plan.may and not keeps_best:
        for save in saves:
            if list(save.kept) != seen.kept.get(save.step, list(save.kept)):
                found.append(f"after {save.step} kept {seen.kept[save.step]}, planned {save.kept}")
        if has_end:
            left = list(saves[-1].kept) if saves else seen.left
            found += [f"left {seen.left}, planned {left}"] * (left != seen.left)
            found += not_close("final", plan.final_bytes, seen.final)
            if not case.is_watched:
                found += not_close("peak", plan.peak_bytes, seen.most)
    for save in saves:
        if plan.is_bounded and len(seen.kept.get(save.step, ())) > save.most_kept:
            found.append(f"after {save.step} kept {seen.kept[save.step]} of {save.most_kept}")
    for name in ("peak", "final"):
        planned, real = getattr(plan, f"{name}_bytes"), getattr(seen, name)
        if planned is not None and real > planned:
            found.append(f"{name} {real} bytes, planned at most {planned}")
    return found


def not_close(name: str, planned: int | None, real: float) -> list[str]:
    is_close = planned is not None and real <= planned <= (1 + CLOSE) * real
    return [] if is_close else [f"{name} {real} bytes, planned {planned}"]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACK_SYSTEM_METRICS", "0")


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(number, marks=() if number in SAMPLE else pytest.mark.tables)
        for number in range(SCENARIOS)
    ],
)
def test_the_plan_is_what_a_real_run_does(number: int, tmp_path: Path) -> None:
    case = scenario(number)
    plan, seen = play(case, tmp_path)
    assert differences(case, plan, seen) == [], f"{case}\n{plan}"
