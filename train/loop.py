"""The training loop, top to bottom."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

import mlflow_track as mt
from train.config import Config
from train.data import Corpus, batch
from train.evaluate import ALONE, evaluate
from train.hardware import Hardware, compiled
from train.model import Transformer, cross_entropy
from train.optimizer import clip_gradients, gradients, learning_rate_at, make_optimizer
from train.pace import Pace, flops_per_token
from train.progress import Progress
from train.ranks import Ranks
from train.sample import sample_text
from train.saving import policies_of

# Readers mark the best value of the others by their names.
_DIRECTIONS = {
    **dict.fromkeys(("train/lr", "train/grad_norm", "perf/data_share", "perf/save_share"), "none"),
    **dict.fromkeys(("perf/peak_memory_mb", "perf/peak_cuda_memory_mb"), "none"),
    **{"perf/step_ms": "min", "perf/tokens_per_second": "max", "perf/mfu": "max"},
}
# Without these a checkpoint is another model's; and what cannot change a weight.
_REQUIRE_SAME = "d_model num_layers num_heads d_ff position ffn norm tie_embeddings".split()
_ALLOW_CHANGED = "eval_interval eval_batches sample_tokens log_interval max_checkpoints".split()
_ALLOW_CHANGED += ["save_*", "keep_*", "mean_time_between_failures"]


class _Job(NamedTuple):
    """What all parts of the loop need."""

    run: mt.Run
    config: Config
    corpus: Corpus
    hardware: Hardware
    ranks: Ranks


def train(
    run: mt.Run,
    config: Config,
    corpus: Corpus,
    model: Transformer,
    hardware: Hardware,
    ranks: Ranks = ALONE,
) -> None:
    """Train `model` from where `run` stands to the last step.

    Under torchrun every rank calls this, and together they take the steps of one process.

    Raises:
        FloatingPointError: A loss or gradient is not finite; the weights are those of the step
            before.
    """
    job = _Job(run, config, corpus, hardware, ranks)
    forward: nn.Module = model
    if config.compile:
        forward, warning = compiled(model, hardware.device)
        if warning:
            run.print(warning)
    optimizer, state = optimizer_and_state(config, corpus, model)
    checkpoints = open_checkpoints(run, config)
    first_step = _restore(job, checkpoints, optimizer, state)
    for name, mode in _DIRECTIONS.items():
        run.define_metric(name, mode=mode)
    model.train()
    tokens_per_step = config.batch_size * config.context_length
    pace = Pace(tokens_per_step, flops_per_token(model), hardware, ranks.world_size)
    with Progress(first_step, config.max_steps, run, ranks.rank == 0) as progress:
        for step in range(first_step, config.max_steps):
            tokens = _batch(job, step)
            pace.lap("data")
            loss, trained = _step(job, forward, optimizer, tokens, step)
            pace.lap("step")
            pace.count()
            row = trained | pace.metrics() if _is_due(config, step, config.log_interval) else {}
            is_evaluated = _is_due(config, step, config.eval_interval)
            if is_evaluated or (config.keep_best and checkpoints.due(step)):
                row |= _evaluate(job, forward, step) | pace.shares() | pace.memory()
                if is_evaluated and config.sample_tokens and ranks.rank == 0:
                    _log_sample(job, model, step)
                pace.lap("evaluate")
            if row:
                run.log_metrics(row, step=step)
            if trained.keys() <= row.keys():
                progress.update(step, row | pace.shares())
            pace.lap("record")
            checkpoints.step(step, state, metrics={"train/loss": loss})
            pace.lap("save")
            if run.should_stop:
                break
    checkpoints.wait()
    pace.lap("save")
    if summary := pace.summary():
        run.print(summary)


def optimizer_and_state(
    config: Config, corpus: Corpus, model: Transformer
) -> tuple[torch.optim.Optimizer, dict[str, Any]]:
    """The optimizer, and with it the state that checkpoints hold."""
    optimizer = make_optimizer(
        model, learning_rate=config.learning_rate, weight_decay=config.weight_decay
    )
    return optimizer, {"model": model, "optimizer": optimizer, "data_sha256": corpus.sha256}


def open_checkpoints(run: mt.Run, config: Config) -> mt.Checkpoints:
    """The checkpoints of `run` under the policies of the settings."""
    return run.checkpoints(
        **policies_of(config),
        max_steps=config.max_steps,
        require_same=_REQUIRE_SAME,
        allow_changed=_ALLOW_CHANGED,
    )


def _restore(
    job: _Job,
    checkpoints: mt.Checkpoints,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
) -> int:
    """The first step: that after the checkpoint which the run resumes from, or 0."""
    # The generators of a checkpoint beat the seed. Each rank drops out its own activations.
    torch.manual_seed(job.config.seed + job.ranks.rank)
    decays = [group["weight_decay"] for group in optimizer.param_groups]
    first_step = checkpoints.restore(state)
    # The checkpoint brings its own: what was asked for here is used.
    for group, decay in zip(optimizer.param_groups, decays, strict=True):
        group["weight_decay"] = decay
    if state["data_sha256"] != job.corpus.sha256:
        raise ValueError(
            f"the sha256 of {job.corpus.name} must be {state['data_sha256']}, as at the "
            f"checkpoint, got {job.corpus.sha256}; use the same data or start a new run"
        )
    return first_step


def _is_due(config: Config, step: int, interval: int) -> bool:
    return (step + 1) % interval == 0 or step == config.max_steps - 1


def _evaluate(job: _Job, forward: nn.Module, step: int) -> dict[str, float]:
    run, config, corpus, hardware, ranks = job
    length, windows = config.context_length, config.eval_batches * config.batch_size
    evaluated = evaluate(
        forward, corpus, hardware, context_length=length, windows=windows, ranks=ranks
    )
    run.print(f"step {step}  " + "  ".join(f"{k} {v:.4f}" for k, v in evaluated.items()))
    return evaluated


def _log_sample(job: _Job, model: nn.Module, step: int) -> None:
    """What the model writes at this step: a series of texts. Draws from a separate generator."""
    length, device = job.config.sample_tokens, job.hardware.device
    text = sample_text(model, job.config, job.corpus, length=length, device=device)
    job.run.log_text(text, "samples", step=step)


def _batch(job: _Job, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    return batch(
        job.corpus.train,
        seed=job.config.seed,
        step=step,
        batch_size=job.config.batch_size,
        context_length=job.config.context_length,
        rank=job.ranks.rank,
        world_size=job.ranks.world_size,
    )


def _step(
    job: _Job,
    forward: Any,
    optimizer: torch.optim.Optimizer,
    tokens: tuple[torch.Tensor, torch.Tensor],
    step: int,
) -> tuple[float, dict[str, float]]:
    """One optimizer step; returns the loss, and with it what a row says of the step."""
    _, config, _, hardware, ranks = job
    inputs, targets = tokens
    with hardware.autocast():
        logits = forward(inputs.to(hardware.device))
    # This rank's part of the mean over the global batch; the sum over ranks is that mean.
    loss = cross_entropy(logits, targets.to(hardware.device)) * (len(inputs) / config.batch_size)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    grads = gradients(optimizer)
    ranks.sum_in_place(grads)
    norm = clip_gradients(grads, config.grad_clip)
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
