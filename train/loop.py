"""The training loop, top to bottom."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn

import mlflow_track as mt
from train.config import Config
from train.data import Corpus, batch
from train.evaluate import ALONE, evaluate
from train.hardware import Hardware
from train.model import cross_entropy
from train.optimizer import clip_gradients, learning_rate_at, make_optimizer
from train.progress import Progress
from train.ranks import Ranks

# Without these a checkpoint is another model's; and what cannot change a weight.
_REQUIRE_SAME = "d_model num_layers num_heads d_ff position ffn norm tie_embeddings".split()
_ALLOW_CHANGED = "eval_interval eval_batches log_interval max_checkpoints".split()


def train(
    run: mt.Run,
    config: Config,
    corpus: Corpus,
    model: nn.Module,
    hardware: Hardware,
    ranks: Ranks = ALONE,
) -> None:
    """Train `model` from where `run` stands to the last step.

    Under torchrun every rank calls this, and together they take the steps of one process.

    Raises:
        FloatingPointError: A loss or gradient is not finite; the weights are those of the step
            before.
    """
    optimizer = make_optimizer(
        model, learning_rate=config.learning_rate, weight_decay=config.weight_decay
    )
    forward = cast(nn.Module, torch.compile(model)) if config.compile else model
    patience = config.early_stopping_patience
    state: dict[str, Any] = {
        "model": model,
        "optimizer": optimizer,
        "data_sha256": corpus.sha256,
    }
    checkpoints = run.checkpoints(
        save=mt.EvenlySpaced(config.max_steps, config.warmup_steps, config.max_checkpoints),
        stop=mt.EarlyStopping("val/loss", patience) if patience else None,
        require_same=_REQUIRE_SAME,
        allow_changed=_ALLOW_CHANGED,
    )
    # The generators of a checkpoint beat the seed. Each rank drops out its own activations.
    torch.manual_seed(config.seed + ranks.rank)
    decays = [group["weight_decay"] for group in optimizer.param_groups]
    first_step = checkpoints.restore(state)
    # The checkpoint brings its own: what was asked for here is used.
    for group, decay in zip(optimizer.param_groups, decays, strict=True):
        group["weight_decay"] = decay
    if state["data_sha256"] != corpus.sha256:
        raise ValueError(
            f"the sha256 of {corpus.name} must be {state['data_sha256']}, as at the checkpoint, "
            f"got {corpus.sha256}; use the same data or start a new run"
        )
    model.train()
    pace = _Pace(config.batch_size * config.context_length)
    with Progress(first_step, config.max_steps, run, ranks.rank == 0) as progress:
        for step in range(first_step, config.max_steps):
            loss, trained = _step(forward, model, optimizer, config, corpus, hardware, step, ranks)
            pace.count()
            row = trained | pace.metrics() if _is_due(config, step, config.log_interval) else {}
            evaluated: dict[str, float] = {}
            if _is_due(config, step, config.eval_interval):
                evaluated = _evaluate(run, forward, config, corpus, hardware, step, ranks)
            if row or evaluated:
                run.log_metrics({**row, **evaluated}, step=step)
            if row:
                progress.update(step, row)
            checkpoints.step(step, state, metrics={"train/loss": loss})
            if row or evaluated:
                pace.restart()
            if run.should_stop:
                break
    checkpoints.wait()


class _Pace:
    """Measures the time of a step since the last row, without evaluating and saving."""

    def __init__(self, tokens_per_step: int) -> None:
        self._tokens_per_step = tokens_per_step
        self.restart()

    def restart(self) -> None:
        self._began, self._steps = time.perf_counter(), 0

    def count(self) -> None:
        self._steps += 1

    def metrics(self) -> dict[str, float]:
        seconds = (time.perf_counter() - self._began) / self._steps
        return {
            "perf/tokens_per_second": self._tokens_per_step / seconds,
            "perf/step_ms": 1000 * seconds,
        }


def _is_due(config: Config, step: int, interval: int) -> bool:
    return (step + 1) % interval == 0 or step == config.max_steps - 1


def _evaluate(
    run: mt.Run,
    forward: nn.Module,
    config: Config,
    corpus: Corpus,
    hardware: Hardware,
    step: int,
    ranks: Ranks,
) -> dict[str, float]:
    evaluated = evaluate(
        forward,
        corpus,
        hardware,
        context_length=config.context_length,
        windows=config.eval_batches * config.batch_size,
        ranks=ranks,
    )
    run.print(f"step {step}  " + "  ".join(f"{k} {v:.4f}" for k, v in evaluated.items()))
    return evaluated


def _step(
    forward: Any,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: Config,
    corpus: Corpus,
    hardware: Hardware,
    step: int,
    ranks: Ranks,
) -> tuple[float, dict[str, float]]:
    """One optimizer step; returns the loss, and with it what a row says of the step."""
    inputs, targets = batch(
        corpus.train,
        seed=config.seed,
        step=step,
        batch_size=config.batch_size,
        context_length=config.context_length,
        rank=ranks.rank,
        world_size=ranks.world_size,
    )
    with hardware.autocast():
        logits = forward(inputs.to(hardware.device))
    # This rank's part of the mean over the global batch; the sum over ranks is that mean.
    loss = cross_entropy(logits, targets.to(hardware.device)) * (len(inputs) / config.batch_size)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    ranks.sum_in_place([param.grad for param in model.parameters() if param.grad is not None])
    norm = clip_gradients(model, config.grad_clip)
    (value,) = ranks.sum_numbers(loss.item(), device=hardware.device)
    if not (math.isfinite(value) and math.isfinite(norm)):
        raise FloatingPointError(
            f"step {step}: loss is {value} and the norm of the gradient {norm}; the weights are "
            "left as they were. Try a lower --learning-rate or a longer --warmup-steps"
        )
    learning_rate = learning_rate_at(
        step,
        peak=config.learning_rate,
        minimum=config.min_learning_rate,
        warmup_steps=config.warmup_steps,
        max_steps=config.max_steps,
    )
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    return value, {"train/loss": value, "train/lr": learning_rate, "train/grad_norm": norm}


def describe(sources: Mapping[str, str], config: Config) -> str:
    """The settings that differ from the defaults, and the origin of each."""
    if not sources:
        return "all settings have their defaults"
    parts = [f"{name}={getattr(config, name)} ({source})" for name, source in sources.items()]
    return "settings that differ from the defaults: " + ", ".join(parts)
