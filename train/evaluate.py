"""Evaluates the model: loss on fixed windows. Draws no random number."""

from __future__ import annotations

import math

import torch
from torch import nn

from train.data import Corpus, Tokens
from train.hardware import Hardware
from train.model import cross_entropy
from train.ranks import Ranks

ALONE = Ranks()
_WINDOWS_PER_BATCH = 48


@torch.no_grad()
def evaluate(
    model: nn.Module,
    corpus: Corpus,
    hardware: Hardware,
    *,
    context_length: int,
    windows: int = 0,
    ranks: Ranks = ALONE,
) -> dict[str, float]:
    """Loss over the validation split.

    Args:
        windows: The number of windows, spread evenly over the split; 0: all of it, without overlap.
        ranks: The job, whose ranks share the windows.

    Returns:
        `val/loss` in nats per token, and `val/bits_per_byte` where bytes per token are known.
    """
    model.eval()
    total, count = 0.0, 0.0
    starts = window_starts(corpus.val, context_length, windows)[ranks.rank :: ranks.world_size]
    for begin in range(0, len(starts), _WINDOWS_PER_BATCH):
        pieces = [
            torch.from_numpy(corpus.val.cut(start, context_length + 1))
            for start in starts[begin : begin + _WINDOWS_PER_BATCH]
        ]
        batch = torch.stack(pieces).to(hardware.device)
        with hardware.autocast():
            logits = model(batch[:, :-1])
        total += cross_entropy(logits, batch[:, 1:]).item() * len(pieces)
        count += len(pieces)
    model.train()
    total, count = ranks.sum_numbers(total, count, device=hardware.device)
    loss = total / count
    result = {"val/loss": loss}
    if corpus.bytes_per_token is not None:
        result["val/bits_per_byte"] = loss / math.log(2) / corpus.bytes_per_token
    return result


def window_starts(tokens: Tokens, context_length: int, windows: int) -> list[int]:
    """The starts of the windows: the same at every evaluation."""
    available = (len(tokens) - 1) // context_length
    count = min(windows or available, available)
    return [index * available // count * context_length for index in range(count)]
