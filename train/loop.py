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
_MUST_MATCH = "d_model num_layers num_heads d_ff position ffn norm tie_embeddings".split()
_FREE = "eval_interval eval_batches log_interval max_checkpoints".split()


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
    # There are never as many evaluations as steps to wait for.
    patience = config.early_stopping_patience or config.max_steps
    early_stopping = mt.EarlyStopping("val/loss", patience=patience)
    state: dict[str, Any] = {
        "model": model,
        "optimizer": optimizer,
        "early_stopping": early_stopping,
        "data_sha256": corpus.sha256,
    }
    checkpoints = run.checkpoints(
        save=mt.EvenlySpaced(config.max_steps, config.warmup_steps, config.max_checkpoints),
        must_match=_MUST_MATCH,
        free=_FREE,
    )
    # The generators of a checkpoint beat the seed. Each rank drops out activations of its own.
    torch.manual_seed(config.seed + ranks.rank)
    first_step = checkpoints.restore(state)
    if state["data_sha256"] != corpus.sha256:
        raise ValueError(
            f"the checkpoint was trained on data with sha256 {state['data_sha256']}, and "
            f"{corpus.name} here has {corpus.sha256}; bring the same data or start a new run"
        )
    model.train()
    row_began, rows_steps = time.perf_counter(), 0
    with Progress(first_step, config.max_steps, run.print, ranks.rank == 0) as progress:
        for step in range(first_step, config.max_steps):
            learning_rate = learning_rate_at(
                step,
                peak=config.learning_rate,
                minimum=config.min_learning_rate,
                warmup_steps=config.warmup_steps,
                max_steps=config.max_steps,
            )
            loss, norm = _step(
                forward, model, optimizer, config, corpus, hardware, step, learning_rate, ranks
            )
            rows_steps += 1
            is_last = step == config.max_steps - 1
            evaluated: dict[str, float] = {}
            metrics: dict[str, float] = {}
            if is_last or (step + 1) % config.log_interval == 0:
                seconds = (time.perf_counter() - row_began) / rows_steps
                tokens = config.batch_size * config.context_length
                metrics = {
                    "train/loss": loss,
                    "train/lr": learning_rate,
                    "train/grad_norm": norm,
                    "perf/tokens_per_second": tokens / seconds,
                    "perf/step_ms": 1000 * seconds,
                }
            if is_last or (step + 1) % config.eval_interval == 0:
                evaluated = evaluate(
                    forward,
                    corpus,
                    hardware,
                    context_length=config.context_length,
                    windows=config.eval_batches * config.batch_size,
                    ranks=ranks,
                )
                run.print(
                    f"step {step}  " + "  ".join(f"{k} {v:.4f}" for k, v in evaluated.items())
                )
                early_stopping.update(evaluated)
            if metrics or evaluated:
                run.log_metrics({**metrics, **evaluated}, step=step)
            if metrics:
                progress.update(step, metrics)
            checkpoints.step(step, state, metrics={"train/loss": loss, **evaluated})
            if metrics or evaluated:
                # Evaluation and saving are no part of a step's time.
                row_began, rows_steps = time.perf_counter(), 0
            if run.should_stop:
                break
            if early_stopping.should_stop:
                checkpoints.save(step, state, metrics={"train/loss": loss, **evaluated})
                run.print(f"stopped at step {step}: val/loss has not improved since")
                break
    checkpoints.wait()


def _step(
    forward: Any,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: Config,
    corpus: Corpus,
    hardware: Hardware,
    step: int,
    learning_rate: float,
    ranks: Ranks,
) -> tuple[float, float]:
    """One optimizer step; returns the loss and the norm of the gradient before clipping."""
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
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    return value, norm


def describe(sources: Mapping[str, str], config: Config) -> str:
    """Which settings differ from the defaults, and where each came from."""
    if not sources:
        return "all settings have their defaults"
    parts = [f"{name}={getattr(config, name)} ({source})" for name, source in sources.items()]
    return "settings that differ from the defaults: " + ", ".join(parts)
