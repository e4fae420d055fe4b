"""The policies of a run: when to save, what to keep and when to stop, from the settings."""

from __future__ import annotations

from typing import TypedDict

import mlflow_track as mt
from train.config import Config

_METRIC = "val/loss"


class Policies(TypedDict):
    """The arguments of `run.checkpoints`."""

    save: mt.SavePolicy | None
    keep: mt.Keep | None
    stop: mt.EarlyStopping | None


def policies_of(config: Config) -> Policies:
    """The policies that the settings ask for; the last step is saved by `max_steps` in any case."""
    save: mt.SavePolicy | None = None
    for policy in _save_policies(config):
        save = policy if save is None else save | policy
    patience, delta = config.early_stopping_patience, config.early_stopping_min_delta
    return {
        "save": save,
        "keep": _keep(config),
        "stop": mt.EarlyStopping(_METRIC, patience, delta) if patience else None,
    }


def _save_policies(config: Config) -> list[mt.SavePolicy]:
    policies: list[mt.SavePolicy] = []
    if count := config.max_checkpoints:
        policies.append(mt.EvenlySpaced(config.max_steps, config.warmup_steps, count))
    if config.steps_to_save:
        policies.append(mt.AtSteps(config.steps_to_save))
    if config.save_every_steps:
        policies.append(mt.EverySteps(config.save_every_steps))
    if config.save_every_minutes:
        policies.append(mt.EveryMinutes(config.save_every_minutes))
    if config.save_on_improvement is not None:
        policies.append(
            mt.OnImprovement(
                _METRIC,
                min_delta=config.save_on_improvement,
                relative=config.save_improvement_relative,
                noise_sigmas=config.save_improvement_noise,
            )
        )
    if config.save_budget:
        policies.append(mt.Budget(config.save_budget, config.mean_time_between_failures or None))
    if config.save_continuously:
        policies.append(mt.Continuous())
    return policies


def _keep(config: Config) -> mt.Keep | None:
    """None keeps all."""
    last, best, most = config.keep_last, config.keep_best, config.keep_max_bytes
    if not (last or best or most) and config.keep_milestones:
        return None
    return mt.Keep(
        last=last or 1,
        best=best,
        metric=_METRIC if best else None,
        milestones=config.keep_milestones,
        max_bytes=most or None,
    )
