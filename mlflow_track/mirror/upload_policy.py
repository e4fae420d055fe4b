"""WHICH checkpoints belong on the server: a pure function of the list of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mlflow_track.checkpoint.disk.store import Checkpoint, CorruptCheckpointError


def wanted_checkpoints(
    checkpoints: Sequence[Checkpoint], mirror: Mapping[str, Any]
) -> list[Checkpoint]:
    """Those of `checkpoints` (oldest first) that the server is to hold.

    Args:
        checkpoints: The committed ones.
        mirror: What run.json says: "upload", and for "best" its "metric" and "mode".
    """
    upload = mirror.get("upload", "all")
    if upload == "none":
        return []
    if upload == "last":
        return list(checkpoints[-1:])
    if upload == "best":
        metric, sign = mirror.get("metric"), -1 if mirror.get("mode") == "max" else 1
        scored = [(sign * value, c.step, c) for c in checkpoints for value in _value(c, metric)]
        return [min(scored, key=lambda item: item[:2])[2]] if scored else []
    return list(checkpoints)


def _value(checkpoint: Checkpoint, metric: str | None) -> list[float]:
    """The metric of a checkpoint, as a list of one; empty where it cannot be compared."""
    try:
        value = checkpoint.metrics.get(metric or "", math.nan)
    except CorruptCheckpointError:
        return []
    return [] if math.isnan(value) else [value]
