"""The process that writes checkpoints: started by `process.py`, and no part of any other program.

`python -I -S main.py MEMORY_DESCRIPTOR FOLDER…` where the folders are those in which its
imports are found. Requests come as lines of JSON on standard input, answers leave on standard
output. It ends when its trainer has (the end of standard input) and all that was asked for is done.
Until then it holds the lock of the checkpoints, by a descriptor that it inherits.
"""

import json
import mmap
import os
import select
import signal
import sys
import time

if __name__ == "__main__":
    sys.path += sys.argv[2:]
    # The cores belong to the trainer; arrays here are only read, never multiplied.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from mlflow_track.checkpoint.disk import publish
from mlflow_track.record import layout


class Memory(Protocol):
    """The memory that holds the image."""

    def view(self, size: int) -> memoryview: ...


class SharedMemory:
    """The trainer's image, mapped once: mapping it again would cost a fault for every page."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._map: mmap.mmap | None = None

    def view(self, size: int) -> memoryview:
        if self._map is None or len(self._map) < size:
            whole = os.fstat(self._descriptor).st_size
            self._map = mmap.mmap(self._descriptor, whole, prot=mmap.PROT_READ)
        return memoryview(self._map)


def publish_from(memory: memoryview, request: dict[str, Any], tell: Callable[[int], None]) -> None:
    """Publish the content of `memory`: the image, then state.json, then the rest."""
    at, image_bytes = request["image_bytes"], request["image_bytes"]
    document = memory[at : at + request["document_bytes"]]
    at += request["document_bytes"]
    order = json.loads(bytes(memory[at : at + request["order_bytes"]]))
    publish.publish(
        Path(order["folder"]),
        order["step"],
        {
            layout.STATE_TENSORS: publish.Content.of(memory[:image_bytes], order["spans"]),
            layout.STATE_JSON: publish.Content.of(document),
        },
        order["manifest"],
        sync_first=order["sync_first"],
        is_repeat=request["is_repeat"],
        progress=tell,
    )


def answer(request: dict[str, Any], memory: Memory, tell: Callable[[int], None]) -> dict[str, Any]:
    """Handle a request; the answer has its outcome and its time."""
    problem = None
    try:
        size = sum(request[f"{part}_bytes"] for part in ("image", "document", "order"))
        publish_from(memory.view(size), request, tell)
    except OSError as error:
        problem = [error.errno, error.strerror or str(error), error.filename]
    except Exception as error:
        problem = [None, f"{type(error).__name__}: {error}", None]
    return {"error": problem, "at": time.monotonic()}


def main() -> None:
    # A stop of the job signals all its processes; the trainer decides when this one ends.
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    os.nice(5)
    memory = SharedMemory(int(sys.argv[1]))

    def say(content: dict[str, Any]) -> None:
        try:
            os.write(1, json.dumps(content).encode() + b"\n")
        except OSError:
            pass  # Nobody listens any more, and the work is done all the same.

    def tell(written: int) -> None:
        # A trainer that does not look must not stop the writer: the pipe is small.
        if select.select([], [1], [], 0)[1]:
            say({"written": written})

    for line in sys.stdin.buffer:
        say(answer(json.loads(line), memory, tell))


if __name__ == "__main__":
    main()
