"""Which checkpoints belong on the server? Tables."""

from __future__ import annotations

from pathlib import Path

import pytest

import mlflow_track as mt
from mlflow_track.checkpoint.disk.store import CheckpointStore
from mlflow_track.mirror.checkpoints import wanted_checkpoints
from mlflow_track.record.schema import MirrorSettings


@pytest.fixture
def checkpoints(tmp_path: Path):
    store = CheckpointStore(tmp_path / "checkpoints")
    for step, loss in ((10, 3.0), (20, 1.0), (30, 1.0), (40, "nan"), (50, "-inf")):
        store.publish(step, {}, {"metrics": {"loss": loss}})
    return store.list()


@pytest.mark.parametrize(
    ("mirror", "steps"),
    [
        ({}, [10, 20, 30, 40, 50]),
        ({"upload": "all"}, [10, 20, 30, 40, 50]),
        ({"upload": "last"}, [50]),
        ({"upload": "none"}, []),
        ({"upload": "best", "metric": "loss", "mode": "min"}, [20]),
        ({"upload": "best", "metric": "loss", "mode": "max"}, [10]),
        ({"upload": "best", "metric": "acc", "mode": "max"}, []),
        ({"upload": "best", "metric": "loss"}, [20]),
        ({"upload": "best", "metric": "temperature", "mode": "down"}, []),
    ],
)
def test_the_policy_chooses(checkpoints, mirror, steps):
    settings = MirrorSettings(**mirror)
    assert [c.step for c in wanted_checkpoints(checkpoints, settings)] == steps
    assert wanted_checkpoints([], settings) == []


def test_best_takes_a_value_that_was_logged_after_the_save():
    with mt.start_run(backend="local") as run:
        checkpoints = run.checkpoints(save=mt.EverySteps(1))
        for step, loss in enumerate([3.0, 1.0, 2.0]):
            checkpoints.step(step, {"w": step})
            run.log_metric("loss", loss, step=step)
        checkpoints.wait()
    best = MirrorSettings(upload="best", metric="loss", mode="min")
    assert [c.step for c in wanted_checkpoints(mt.load_run(run.path).checkpoints, best)] == [1]


def test_best_needs_a_metric_and_other_words_are_refused_at_the_call(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_TRACK_FINISH_TIMEOUT", "0")
    monkeypatch.setenv("MLFLOW_TRACK_MIRROR_LINGER", "0")
    with mt.start_run() as run:
        with pytest.raises(ValueError, match="metric"):
            run.checkpoints(upload="best")
        with pytest.raises(ValueError, match="all, best, last, none"):
            run.checkpoints(upload="newest")
        run.checkpoints(upload="best", keep=mt.Keep(best=1, metric="loss", mode="max"))
        assert run._attempt.record.info.mirror.mode == "max"
