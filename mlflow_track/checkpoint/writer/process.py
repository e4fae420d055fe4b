"""Writes the warm memory to disk: in a process that outlives its trainer, or a thread."""

from __future__ import annotations

import json
import os
import queue
import select
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import xxhash

import mlflow_track
from mlflow_track.checkpoint.writer import main
from mlflow_track.checkpoint.writer.shared_memory import WarmMemory
from mlflow_track.record.lock import close_in_forked_children

_IMPORTS = (mlflow_track, numpy, xxhash)


class WriterDiedError(RuntimeError):
    """The writer ended without an answer."""


class ProcessWriter:
    """A small process in its own session, without torch; see `main.py`.

    It does requests in their order; at most one answer is awaited at a time.

    Args:
        memory: The memory to read; it has a memfd.
        lock: The descriptor of the lock that it holds as long as it lives.

    Raises:
        OSError: It cannot be started.
    """

    def __init__(self, memory: WarmMemory, lock: int) -> None:
        homes = {Path(module.__file__ or "").resolve().parent.parent for module in _IMPORTS}
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-I", "-S", str(main.__file__)),
                str(memory.descriptor),
                *map(str, homes),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            pass_fds=(memory.descriptor, lock),
            start_new_session=True,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._requests = self._process.stdin.fileno()
        self._answers = self._process.stdout.fileno()
        # Not `select`, which takes no descriptor above 1023.
        self._poll = select.poll()
        self._poll.register(self._answers, select.POLLIN)
        # A data loader that outlives its trainer must not keep the writer waiting for requests.
        close_in_forked_children(self._requests)
        self._received = b""
        self.pid = self._process.pid

    def send(self, request: Mapping[str, Any]) -> None:
        """Hand over a request. When this returns, it is done whatever becomes of this process."""
        line = json.dumps(request).encode() + b"\n"
        # A write smaller than a pipe's buffer is atomic.
        assert len(line) <= select.PIPE_BUF
        try:
            os.write(self._requests, line)
        except BrokenPipeError:
            pass  # It died; `receive` reports it.

    def receive(self, timeout_seconds: float | None) -> dict[str, Any] | None:
        """The next answer, or word of progress; None where none comes in time (None: for ever).

        Raises:
            WriterDiedError: None will ever come.
        """
        while b"\n" not in self._received:
            if not self._poll.poll(None if timeout_seconds is None else 1000 * timeout_seconds):
                return None
            more = os.read(self._answers, 65536)
            if not more:
                raise WriterDiedError(f"the writer process ended with {self._process.wait()}")
            self._received += more
        line, _, self._received = self._received.partition(b"\n")
        return json.loads(line)

    def close(self) -> None:
        """Return when all requests are done."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        self._process.wait()


class ThreadWriter:
    """The same work in a thread of this process: a save in flight dies with it."""

    def __init__(self, memory: WarmMemory) -> None:
        self._memory = memory
        self._requests: queue.SimpleQueue[Mapping[str, Any] | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True, name="checkpoint-writer")
        self._thread.start()

    def send(self, request: Mapping[str, Any]) -> None:
        self._requests.put(request)

    def receive(self, timeout_seconds: float | None) -> dict[str, Any] | None:
        try:
            return self._answers.get(timeout=timeout_seconds)
        except queue.Empty:
            return None

    def close(self) -> None:
        self._requests.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (request := self._requests.get()) is not None:
            self._answers.put(
                main.answer(
                    dict(request),
                    self._memory,
                    lambda written: self._answers.put({"written": written}),
                )
            )
