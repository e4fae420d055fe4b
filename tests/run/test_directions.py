"""The direction of a run's metrics: defined, taken from its policies, recorded, refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

import mlflow_track as mt


def recorded(run: mt.Run) -> Any:
    return json.loads((run.path / "run.json").read_text()).get("directions")


def steps(run: mt.Run) -> list[int]:
    return [checkpoint.step for checkpoint in mt.load_run(run.path).checkpoints]


def save_all(checkpoints: Any, values: list[float]) -> None:
    for step, value in enumerate(values):
        checkpoints.step(step, {"w": step}, metrics={"temperature": value})
    checkpoints.wait()


def test_define_metric_is_recorded_and_decides_for_policies_without_a_mode() -> None:
    with mt.start_run() as run:
        run.define_metric("temperature", mode="max")
        run.define_metric("loss", mode="none")
        keep = mt.Keep(last=1, best=1, metric="temperature")
        save_all(run.checkpoints(save=mt.EverySteps(1), keep=keep), [0, 1, 9, 3, 2])
    assert recorded(run) == {"temperature": "max", "loss": "none"}
    assert steps(run) == [2, 4]


def test_keep_takes_the_mode_that_another_policy_gives() -> None:
    with mt.start_run() as run:
        save = mt.EverySteps(1) | mt.OnImprovement("temperature", "max")
        keep = mt.Keep(last=1, best=1, metric="temperature")
        save_all(run.checkpoints(save=save, keep=keep), [0, 1, 9, 3, 2])
        settings = run._attempt.record.info.checkpoints
        assert settings and settings.keep and settings.keep.mode == "max"
    assert steps(run) == [2, 4] and recorded(run) == {"temperature": "max"}


def test_a_resumed_run_takes_the_direction_that_was_recorded() -> None:
    with mt.start_run() as run:
        run.checkpoints(save=mt.OnImprovement("temperature", "max"))
        run.finish("FAILED")
    with mt.start_run(resume=run.id) as run:
        save_all(run.checkpoints(save=mt.OnImprovement("temperature")), [0, 1, 0, 2])
    assert steps(run) == [0, 1, 3]


def test_early_stopping_takes_and_records_the_direction() -> None:
    with mt.start_run() as run:
        run.define_metric("temperature", mode="max")
        checkpoints = run.checkpoints(stop=mt.EarlyStopping("temperature", patience=1))
        for step, value in enumerate([1.0, 2.0, 1.5]):
            run.log_metric("temperature", value, step=step)
            checkpoints.step(step, {"w": 1})
            assert run.should_stop == (step == 2)
    with mt.start_run() as run:
        run.checkpoints(stop=mt.EarlyStopping("acc", patience=1))
    assert recorded(run) == {"acc": "max"}


CONTRADICTIONS: list[Any] = [
    {"save": mt.OnImprovement("acc", "max"), "keep": mt.Keep(best=1, metric="acc", mode="min")},
    {"save": mt.OnImprovement("acc", "max") | mt.OnImprovement("acc", "min")},
    {"save": mt.OnImprovement("t", "min")},
    {"keep": mt.Keep(metric="t", mode="min")},
    {"keep": mt.Keep(metric="unclear")},
    {"stop": mt.EarlyStopping("unclear", 1)},
    {"save": mt.OnImprovement("acc", "max"), "stop": mt.EarlyStopping("acc", 1, mode="min")},
    {"save": mt.EverySteps(1) | mt.OnImprovement("unclear")},
]


@pytest.mark.parametrize("backend", ["local", "off"])
@pytest.mark.parametrize("plan", CONTRADICTIONS)
def test_checkpoints_refuses_contradictions_and_unknown_directions(
    plan: dict[str, Any], backend: str
) -> None:
    with mt.start_run(backend=backend) as run:
        run.define_metric("t", mode="max")
        with pytest.raises(ValueError, match=r"contradicts .*mode=|cannot tell .*'unclear'"):
            run.checkpoints(**plan)
        run.checkpoints(save=mt.OnImprovement("t"), keep=mt.Keep(metric="acc"))
        with pytest.raises(
            ValueError, match=r"define_metric\('acc', mode='min'\) contradicts Keep"
        ):
            run.define_metric("acc", mode="min")


@pytest.mark.parametrize("backend", ["local", "off"])
@pytest.mark.parametrize(
    ("name", "mode"), [("", "min"), (3, "min"), ("step", "max"), ("a", "down"), ("a", None)]
)
def test_define_metric_refuses(name: Any, mode: Any, backend: str) -> None:
    with mt.start_run(backend=backend) as run:
        with pytest.raises((TypeError, ValueError), match=r"metric's name must be|mode must be"):
            run.define_metric(name, mode=mode)


def test_define_metric_after_the_end_is_refused() -> None:
    with mt.start_run() as run:
        pass
    with pytest.raises(RuntimeError, match="has ended"):
        run.define_metric("a", mode="min")
