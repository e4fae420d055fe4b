"""The numbers that every tracker of `loading.py` writes and reads back."""

from __future__ import annotations

NAMES = ("train/loss", "train/lr", "train/grad_norm", "perf/tokens_per_second", "perf/step_ms")


def values(run: int, step: int) -> list[float]:
    """Five metrics as a training loop has them, digits and all."""
    x = step + 1 + 0.123456789 * (run + 1)
    return [4.2 / x, 2e-3 / x, 1.7 / x, 15000 + x, 3 + 1 / x]
