"""Saves live state as a checkpoint: one copy into warm memory, the rest elsewhere.

The loop pays for taking the state apart and for one copy of its tensors into memory that is laid
out as the final file. A writer does the rest: a process that lives on when the trainer is killed,
so that a save whose call has returned is published; a thread where there is no memory to share
with a process; and, where memory is too small for a copy of the state, the call itself, block by
block.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import torch

from mlflow_track.checkpoint.disk import safetensors, verify
from mlflow_track.checkpoint.disk.publish import Content, publish
from mlflow_track.checkpoint.disk.store import CheckpointStore
from mlflow_track.checkpoint.state.flatten import SaveRequest, take_apart
from mlflow_track.checkpoint.writer.outcome import Outcome, Pending, as_error
from mlflow_track.checkpoint.writer.process import ProcessWriter, ThreadWriter, WriterDiedError
from mlflow_track.checkpoint.writer.shared_memory import WarmMemory, available_bytes
from mlflow_track.record import layout
from mlflow_track.record.metrics import MetricsFile
from mlflow_track.record.rows import files_of
from mlflow_track.wording import count_text, size_text

# The history of saves grows in state.json; without slack every save would need new memory.
_PIECEWISE = "writing saves piece by piece; the loop waits until each is durable"
_SLACK_BYTES = 256 << 10
_MOST_WRITERS_PER_SAVE = 3


class Saver:
    """Publishes checkpoints of one run; at most one is in flight.

    It holds the lock of the store, and so does its writer: a process that continues the run waits
    here until the writer of a killed trainer is done.

    Args:
        metrics: The rows to make durable before they are counted.

    Raises:
        TimeoutError: The writer of a previous process does not end.
    """

    def __init__(
        self, store: CheckpointStore, metrics: MetricsFile, announce: Callable[[str], None]
    ) -> None:
        self._store, self._metrics, self._announce = store, metrics, announce
        self._lock = store.lock(announce)
        self._memory = WarmMemory()
        self._writer: ProcessWriter | ThreadWriter | None = None
        self._planned = safetensors.CachedPlan()
        self._memory_of_state: dict[str, Any] = {}
        self._pending: deque[Pending] = deque()
        self._ended: list[Outcome] = []
        self._written_bytes = 0
        self._is_prepared = False
        self._said: set[str] = set()

    @property
    def in_flight(self) -> int | None:
        """The step that is being written; None where nothing is."""
        return self._pending[0].step if self._pending else None

    def prepare(self, state: Mapping[str, Any]) -> int | None:
        """Have memory warm and a writer running before the first save. Later calls do nothing.

        Call it when the state has its full size: after the first step of the optimizer.

        Returns:
            The bytes of the state; None at later calls.
        """
        if self._is_prepared:
            return None
        self._is_prepared = True
        tensors, document = take_apart(SaveRequest(step=0, state=state), self._memory_of_state)
        plan = self._planned.of(tensors)
        if self._has_memory(size := plan.total_bytes + len(document)):
            self._start_writer()
        return size

    def save(self, request: SaveRequest) -> float:
        """Copy the state and have it published; waits first for the one in flight.

        Returns:
            Seconds that the call took.

        Raises:
            TypeError: The state holds something that a checkpoint cannot; the message has its path.
        """
        started = time.monotonic()
        self._is_prepared = True
        while self.in_flight is not None:
            self._take_answer(None)
        tensors, document = take_apart(request, self._memory_of_state)
        plan = self._planned.of(tensors)
        wide, long = self._metrics.positions(are_kept=True)
        manifest = {**request.manifest, "metrics_position": wide, "metrics_long_position": long}
        order = self._order(request.step, plan, manifest)
        if not self._has_memory(plan.total_bytes + len(document) + len(order)):
            return self._stream(request.step, plan, tensors, document, manifest, started)
        self._start_writer()
        self._fill(plan, tensors, document + order)
        pending = Pending(
            {
                "image_bytes": plan.total_bytes,
                "document_bytes": len(document),
                "order_bytes": len(order),
                "is_repeat": False,
            },
            request.step,
            plan.total_bytes,
            started,
        )
        assert self._writer is not None
        self._pending.append(pending)
        self._writer.send(pending.request)
        pending.stall_seconds = time.monotonic() - started
        return pending.stall_seconds

    def outcomes(self) -> list[Outcome]:
        """The saves that ended since the last call, oldest first. Never blocks, never raises."""
        while self._pending and self._take_answer(0.0):
            pass
        ended, self._ended = self._ended, []
        return ended

    def wait(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Return when nothing is in flight; see `outcomes` for the results.

        Args:
            progress: Called about every second with the bytes written of the save in flight, and
                its bytes in all.
        """
        while self._pending:
            has_answer = self._take_answer(None if progress is None else 1.0)
            if not has_answer and progress is not None:
                progress(self._written_bytes, self._pending[0].size_bytes)

    def close(self) -> None:
        """Wait, and release memory, processes and the lock. Call nothing else afterwards."""
        self.wait()
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._memory.close()
        self._lock.close()

    # --- memory ---

    def _has_memory(self, size: int) -> bool:
        """Whether the warm memory holds `size` bytes; grows it where memory is free."""
        if size <= len(self._memory):
            return True
        needed = size + _SLACK_BYTES
        # A mapping that grows keeps its pages.
        if needed - len(self._memory) <= available_bytes():
            try:
                self._memory.reserve(needed)
                return True
            except (OSError, ValueError) as error:
                self._say_once(
                    f"cannot reserve {size_text(needed)} of memory for a copy of the state "
                    f"({error}): {_PIECEWISE}"
                )
                return False
        self._say_once(
            f"a copy of the state needs {size_text(size)} but only {size_text(available_bytes())} "
            f"of memory are free: {_PIECEWISE}"
        )
        return False

    def _fill(
        self, plan: safetensors.Layout, tensors: Mapping[str, torch.Tensor], tail: bytes
    ) -> None:
        self._memory.ready()
        if torch.cuda.is_initialized() and any(tensor.is_cuda for tensor in tensors.values()):
            self._memory.pin()
        self._planned.fill(self._memory.tensor, tensors)
        view = self._memory.view(plan.total_bytes + len(tail))
        view[plan.total_bytes : plan.total_bytes + len(tail)] = tail

    # --- the writer ---

    def _start_writer(self) -> None:
        if self._writer is not None:
            return
        if self._memory.descriptor >= 0:
            try:
                self._writer = ProcessWriter(self._memory, self._lock.descriptor)
                return
            except OSError as error:
                self._say_once(f"cannot start a process to write checkpoints: {error}")
        self._writer = ThreadWriter(self._memory)
        self._say_once(
            "writing checkpoints in a thread (no writer process available): a save survives a "
            "kill only after wait()"
        )

    def _take_answer(self, timeout_seconds: float | None) -> bool:
        """Take one answer of the writer, if one comes in time; replaces a writer that died."""
        assert self._writer is not None
        try:
            answer = self._writer.receive(timeout_seconds)
        except WriterDiedError as error:
            self._replace_writer(error)
            return True
        if answer is None:
            return False
        if "written" in answer:
            self._written_bytes = answer["written"]
        else:
            self._written_bytes = 0
            self._end(self._pending.popleft(), as_error(answer["error"]), answer["at"])
        return True

    def _replace_writer(self, error: WriterDiedError) -> None:
        """Start a new writer for the dead one's requests: the memory still holds the image."""
        assert self._writer is not None
        self._writer.close()
        self._writer = None
        self._store.sweep()
        first = self._pending[0]
        if first.writers >= _MOST_WRITERS_PER_SAVE:
            self._pending.popleft()
            self._end(
                first, OSError(f"{error}, {count_text(first.writers, 'time')}"), time.monotonic()
            )
        else:
            first.writers += 1
            self._announce(f"{error}; restarted the writer and retrying")
        self._start_writer()
        assert self._writer is not None
        for pending in self._pending:
            pending.request["is_repeat"] = True
            self._writer.send(pending.request)

    def _end(self, pending: Pending, error: OSError | None, at: float) -> None:
        self._ended.append(
            Outcome(
                step=pending.step,
                error=error,
                size_bytes=pending.size_bytes,
                stall_seconds=pending.stall_seconds,
                durable_seconds=at - pending.started,
            )
        )

    def _order(self, step: int, plan: safetensors.Layout, manifest: Mapping[str, Any]) -> bytes:
        """The request to the writer, without the bytes."""
        return json.dumps(
            {
                "folder": str(self._store.path.absolute()),
                "step": step,
                "spans": plan.float_spans,
                "manifest": manifest,
                # The rows that the manifest counts must be as durable as the checkpoint.
                "sync_first": self._counted_files(),
            }
        ).encode()

    def _counted_files(self) -> list[str]:
        return [str(file) for file in files_of(self._metrics.path.absolute())]

    # --- without memory ---

    def _stream(
        self,
        step: int,
        plan: safetensors.Layout,
        tensors: Mapping[str, torch.Tensor],
        document: bytes,
        manifest: Mapping[str, Any],
        started: float,
    ) -> float:
        """Publish within the call, with two blocks of memory."""
        pieces = safetensors.blocks(plan, tensors, verify.CHUNK_BYTES)
        error = None
        try:
            publish(
                self._store.path,
                step,
                {
                    layout.STATE_TENSORS: Content(plan.total_bytes, pieces, plan.float_spans),
                    layout.STATE_JSON: Content.of(document),
                },
                manifest,
                sync_first=self._counted_files(),
            )
        except OSError as failure:
            error = failure
        now = time.monotonic()
        pending = Pending({}, step, plan.total_bytes, started, now - started)
        self._end(pending, error, now)
        return now - started

    def _say_once(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self._announce(line)
