"""The warm memory that a state is copied into: as large as the state, touched before it is used."""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import threading
import weakref
from pathlib import Path
from typing import Any

import torch

from mlflow_track.checkpoint.disk.publish import PAGE_BYTES
from mlflow_track.record.system import memory_groups, memory_of_groups

_POPULATE_WRITE = 23  # MADV_POPULATE_WRITE of Linux 5.14; Python has no name for it.
# Reserved for the machine: a process that takes the last byte is killed for it.
_RESERVE_SHARE = 0.05
_UNLIMITED = 1 << 62


class WarmMemory:
    """Anonymous memory that another process can map, where the system has it (memfd).

    The first touch of a page costs about ten times what a copy into it does, so that all pages are
    touched beforehand, in a thread of low priority.

    Attributes:
        descriptor: The memfd, which a child process may inherit; -1 where there is none.
        tensor: All of it as one flat uint8 tensor.
    """

    def __init__(self) -> None:
        self.descriptor = _make_memfd()
        self.tensor = torch.empty(0, dtype=torch.uint8, device="cpu")
        self._warming: threading.Thread | None = None
        self._pinned = 0
        self._close = weakref.finalize(self, _close_memfd, self.descriptor)

    def __len__(self) -> int:
        return self.tensor.numel()

    def view(self, size: int) -> memoryview:
        """At least `size` bytes from the beginning."""
        assert size <= len(self)
        return self.tensor.numpy().data

    def reserve(self, size: int) -> None:
        """Have at least `size` bytes, and begin to touch them; what was in it stays in it.

        Raises:
            OSError: The system gives no more memory.
        """
        if size <= len(self):
            return
        self.ready()
        self.unpin()
        whole = -(-size // PAGE_BYTES) * PAGE_BYTES
        if self.descriptor >= 0:
            os.ftruncate(self.descriptor, whole)
            mapped = mmap.mmap(self.descriptor, whole)
        else:
            mapped = mmap.mmap(-1, whole)
        # A save in inference mode may be the first to need memory, and one outside the next.
        with torch.inference_mode(False):
            self.tensor = torch.frombuffer(mapped, dtype=torch.uint8)
        self._warming = threading.Thread(
            target=_touch, args=(self.tensor.data_ptr(), whole), daemon=True, name="warm-up"
        )
        self._warming.start()

    def ready(self) -> None:
        """Return when every page is touched."""
        if self._warming is not None:
            self._warming.join()
            self._warming = None

    def pin(self) -> None:
        """Let CUDA copy straight into it; without this it still can, by a detour."""
        if self._pinned != self.tensor.data_ptr():
            self.unpin()
            address, size = self.tensor.data_ptr(), len(self)
            if int(_cuda_runtime().cudaHostRegister(address, size, 0)) == 0:
                self._pinned = address

    def unpin(self) -> None:
        if self._pinned:
            _cuda_runtime().cudaHostUnregister(self._pinned)
            self._pinned = 0

    def close(self) -> None:
        """Give the memory back. Views of it that are still held keep their pages."""
        self.ready()
        self.unpin()
        self.tensor = torch.empty(0, dtype=torch.uint8, device="cpu")
        self._close()
        self.descriptor = -1


def available_bytes() -> int:
    """The memory still available: of the machine, and of every cgroup around this process.

    A large number where the system does not say.
    """
    left = [limit - used for limit, used in memory_of_groups(memory_groups(), _UNLIMITED)]
    if (machine := _of_machine()) is not None:
        left.append(machine)
    return int(min(left) * (1 - _RESERVE_SHARE)) if left else _UNLIMITED


def _cuda_runtime() -> Any:
    return torch.cuda.cudart()


def _make_memfd() -> int:
    try:
        return os.memfd_create("checkpoint", os.MFD_CLOEXEC)
    except (AttributeError, OSError):
        return -1


def _close_memfd(descriptor: int) -> None:
    if descriptor >= 0:
        os.close(descriptor)


def _touch(address: int, size: int) -> None:
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
    except (AttributeError, OSError):
        pass
    # ctypes gives the interpreter to the training thread meanwhile.
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    if madvise(address, size, _POPULATE_WRITE) != 0:
        ctypes.memset(address, 0, size)


def _of_machine() -> int | None:
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
        return int(found[1]) * 1024 if found else None
    except OSError:
        return None
