"""Does each flag about checkpoints become the policy that it names?"""

from __future__ import annotations

import pytest

import mlflow_track as mt
from train.config import Config
from train.saving import policies_of

EVEN = mt.EvenlySpaced(1000, 100, 5)


def save(**settings: object) -> object:
    return policies_of(Config(**{"max_checkpoints": 0, **settings}))["save"]


@pytest.mark.parametrize(
    ("settings", "policy"),
    [
        ({}, None),
        ({"max_checkpoints": 5}, EVEN),
        ({"save_every_steps": 7}, mt.EverySteps(7)),
        ({"save_every_minutes": 0.5}, mt.EveryMinutes(0.5)),
        ({"save_at_steps": "10, 100"}, mt.AtSteps(10, 100)),
        ({"save_on_improvement": 0.0}, mt.OnImprovement("val/loss")),
        ({"save_on_improvement": 0.01}, mt.OnImprovement("val/loss", min_delta=0.01)),
        (
            {
                "save_on_improvement": 0.01,
                "save_improvement_relative": True,
                "save_improvement_noise": 2.0,
            },
            mt.OnImprovement("val/loss", min_delta=0.01, relative=True, noise_sigmas=2),
        ),
        ({"save_budget": 0.02, "keep_last": 2}, mt.Budget(0.02)),
        (
            {"save_budget": 0.02, "mean_time_between_failures": 9.0, "keep_last": 2},
            mt.Budget(0.02, 9.0),
        ),
        ({"save_continuously": True, "keep_max_bytes": 10}, mt.Continuous()),
        ({"max_checkpoints": 5, "save_every_steps": 7}, EVEN | mt.EverySteps(7)),
        (
            {"max_checkpoints": 5, "save_at_steps": "3", "save_on_improvement": 0.01},
            EVEN | mt.AtSteps(3) | mt.OnImprovement("val/loss", min_delta=0.01),
        ),
    ],
    ids=str,
)
def test_save_is_what_the_flags_name(settings, policy):
    assert save(**settings) == policy


@pytest.mark.parametrize(
    ("settings", "keep"),
    [
        ({}, None),
        ({"keep_last": 3}, mt.Keep(last=3)),
        ({"keep_best": 2}, mt.Keep(last=1, best=2, metric="val/loss")),
        ({"keep_milestones": False}, mt.Keep(last=1, milestones=False)),
        ({"keep_last": 2, "keep_max_bytes": 10**9}, mt.Keep(last=2, max_bytes=10**9)),
    ],
    ids=str,
)
def test_keep_is_what_the_flags_name(settings, keep):
    assert policies_of(Config(**settings))["keep"] == keep


def test_stop_is_what_the_flags_name():
    stops = [{}, {"early_stopping_patience": 3}]
    stops.append({"early_stopping_patience": 3, "early_stopping_min_delta": 0.1})
    found = [policies_of(Config(**settings))["stop"] for settings in stops]
    assert found == [
        None,
        mt.EarlyStopping("val/loss", 3),
        mt.EarlyStopping("val/loss", 3, 0.1),
    ]
