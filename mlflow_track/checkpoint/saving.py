"""How live state becomes a published checkpoint: taken apart, copied, handed to the store."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from mlflow_track.checkpoint import codec, image
from mlflow_track.checkpoint.prefixes import strip_prefix
from mlflow_track.checkpoint.store import STATE_JSON, STATE_TENSORS, Checkpoint, CheckpointStore
from mlflow_track.record.metrics import MetricsFile


@dataclass(frozen=True, kw_only=True)
class SaveRequest:
    """One save.

    Attributes:
        step: The step just done.
        state: Objects with `state_dict`, or plain data, by name.
        beside: Plain data by name that goes into state.json beside the state (generators, history).
        manifest: JSON that the manifest says; the saver adds what it knows itself: `is_finite`,
            `metrics_position`, sizes and digests.
    """

    step: int
    state: Mapping[str, Any]
    beside: Mapping[str, Any] = field(default_factory=dict)
    manifest: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one save ended.

    Attributes:
        step: The step of the request.
        checkpoint: What was committed; None where the save failed.
        error: Why it failed.
        size_bytes: Bytes of tensors.
        stall_seconds: How long the call of `save` kept the training loop.
        durable_seconds: From the call until the checkpoint was durable, or had failed.
    """

    step: int
    checkpoint: Checkpoint | None
    error: OSError | None
    size_bytes: int
    stall_seconds: float
    durable_seconds: float


class Saver:
    """Publishes checkpoints of one run; at most one is in flight.

    Args:
        store: Where they go.
        metrics: The run's rows; those that a manifest counts become durable before it.
    """

    def __init__(self, store: CheckpointStore, metrics: MetricsFile) -> None:
        self._store = store
        self._metrics = metrics
        self._ended: list[Outcome] = []

    @property
    def in_flight(self) -> int | None:
        """The step that is being written; None where nothing is."""
        return None

    def save(self, request: SaveRequest) -> float:
        """Copy the state and have it published; waits first for the one in flight.

        Returns:
            Seconds that the call took.

        Raises:
            TypeError: The state holds something that a checkpoint cannot; the message has its path.
        """
        started = time.perf_counter()
        tensors, document = take_apart(request)
        layout = image.plan(tensors)
        buffer = torch.empty(layout.total_bytes, dtype=torch.uint8)
        image.fill(buffer, layout, tensors)
        checkpoint = error = None
        try:
            # The rows that the manifest counts must be as durable as the checkpoint.
            self._metrics.sync()
            checkpoint = self._store.publish(
                request.step,
                {STATE_TENSORS: buffer.numpy().data, STATE_JSON: document},
                {
                    **request.manifest,
                    "is_finite": _is_finite(image.views(buffer, layout)),
                    "metrics_position": self._metrics.position(),
                },
            )
        except OSError as failure:
            error = failure
        seconds = time.perf_counter() - started
        self._ended.append(
            Outcome(
                step=request.step,
                checkpoint=checkpoint,
                error=error,
                size_bytes=layout.total_bytes,
                stall_seconds=seconds,
                durable_seconds=seconds,
            )
        )
        return seconds

    def outcomes(self) -> list[Outcome]:
        """The saves that ended since the last call, oldest first. Never blocks, never raises."""
        ended, self._ended = self._ended, []
        return ended

    def wait(self) -> None:
        """Return when nothing is in flight; `outcomes` says how it ended."""

    def close(self) -> None:
        """Wait, and give back memory and processes. The saver is of no use afterwards."""
        self.wait()


def take_apart(request: SaveRequest) -> tuple[dict[str, torch.Tensor], bytes]:
    """The tensors of a request by path, and everything else as the bytes of state.json.

    Raises:
        TypeError: Something that a checkpoint cannot hold; the message names its path.
    """
    encoder = codec.Encoder()
    parts = {}
    for name, entry in request.state.items():
        if not isinstance(name, str) or not name:
            raise TypeError(f"the state has the name {name!r}; names are non-empty strings")
        plain = strip_prefix(entry.state_dict()) if hasattr(entry, "state_dict") else entry
        parts[name] = encoder.encode(plain, name)
    beside = {name: codec.Encoder().encode(value, name) for name, value in request.beside.items()}
    return encoder.tensors, (json.dumps({"state": parts, **beside}) + "\n").encode()


def _is_finite(tensors: Mapping[str, torch.Tensor]) -> bool:
    return all(
        bool(torch.isfinite(t if t.element_size() > 1 else t.float()).all())
        for t in tensors.values()
        if t.is_floating_point()
    )
