"""What a file system may show after a power loss: a log of calls, replayed up to any point.

Only what was fsynced is sure: the bytes of a file by an fsync of it, its name by one of its folder.
What was not may be there or not, and names may be there whose bytes are not.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

Operation = tuple[Any, ...]


@contextmanager
def recorded(root: Path, log: list[Operation]) -> Iterator[None]:
    """Add every call that changes something below `root`, or makes it durable, to `log`."""
    lock = threading.Lock()

    def inside(path: Any, dir_fd: int | None = None) -> str:
        base = f"/proc/self/fd/{dir_fd}" if dir_fd is not None else "."
        return os.path.relpath(Path(os.path.realpath(base)) / os.fspath(path), root)

    def of_descriptor(descriptor: int) -> str:
        return os.path.relpath(os.readlink(f"/proc/self/fd/{descriptor}"), root)

    def watch(name: str, describe: Callable[..., Operation | None]) -> None:
        original = getattr(os, name)

        def call(*arguments: Any, **named: Any) -> Any:
            with lock:
                operation = describe(*arguments, **named)
                result = original(*arguments, **named)
                if operation is not None and not operation[1].startswith(".."):
                    log.append(operation)
                return result

        patch.setattr(os, name, call)

    def created(path: Any, flags: int, *_: Any, dir_fd: int | None = None) -> Operation | None:
        return ("create", inside(path, dir_fd)) if flags & os.O_CREAT else None

    with pytest.MonkeyPatch.context() as patch:
        watch("open", created)
        watch("write", lambda fd, data: ("write", of_descriptor(fd), bytes(data)))
        watch("fsync", lambda fd: ("fsync", of_descriptor(fd)))
        watch("mkdir", lambda path, *_, dir_fd=None: ("mkdir", inside(path, dir_fd)))
        watch("rename", lambda old, new: ("rename", inside(old), inside(new)))
        watch("unlink", lambda path, *, dir_fd=None: ("remove", inside(path, dir_fd)))
        watch("rmdir", lambda path, *, dir_fd=None: ("remove", inside(path, dir_fd)))
        yield


@dataclass
class File:
    data: bytes = b""
    durable: bytes = b""


@dataclass
class Folder:
    entries: dict[str, File | Folder] = field(default_factory=dict)
    durable: dict[str, File | Folder] = field(default_factory=dict)


class Disk:
    """A root folder, and what of it is durable."""

    def __init__(self) -> None:
        self.root = Folder()

    def apply(self, operation: Operation) -> None:
        kind, path, *rest = operation
        if kind == "fsync":
            node = self._node(path)
            if isinstance(node, File):
                node.durable = node.data
            else:
                node.durable = dict(node.entries)
        elif kind == "write":
            node = self._node(path)
            assert isinstance(node, File)
            node.data += rest[0]
        elif kind == "rename":
            parent, name = self._parent(path)
            onto, new_name = self._parent(rest[0])
            onto.entries[new_name] = parent.entries.pop(name)
        elif kind in ("create", "mkdir"):
            parent, name = self._parent(path)
            parent.entries.setdefault(name, File() if kind == "create" else Folder())
        elif kind == "remove":
            parent, name = self._parent(path)
            del parent.entries[name]

    def show(self, path: Path, *, names_are_kept: bool, data_is_kept: bool) -> None:
        """Write what a reader finds after the power loss into the new folder `path`."""

        def write(node: File | Folder, at: Path) -> None:
            if isinstance(node, File):
                at.write_bytes(node.data if data_is_kept else node.durable)
                return
            at.mkdir()
            for name, child in (node.entries if names_are_kept else node.durable).items():
                write(child, at / name)

        write(self.root, path)

    def _node(self, path: str) -> File | Folder:
        node: File | Folder = self.root
        for part in Path(path).parts:
            assert isinstance(node, Folder)
            node = node.entries[part]
        return node

    def _parent(self, path: str) -> tuple[Folder, str]:
        parent = self._node(str(Path(path).parent))
        assert isinstance(parent, Folder)
        return parent, Path(path).name
