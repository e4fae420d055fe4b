"""Every call that changes something below a folder, or makes it durable, as it is made."""

from __future__ import annotations

import builtins
import fcntl
import io
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest


class Change(NamedTuple):
    """Entries of folders: what a name leads to from now on, None where it is gone.

    Attributes:
        path: For people, and for controls that leave something out.
        entries: (folder, name, file or folder), each by its number. Several happen together.
        made: The kind of what the change makes: "file", "folder", or nothing.
    """

    path: str
    entries: tuple[tuple[int, str, int | None], ...]
    made: str = ""


class Write(NamedTuple):
    """Bytes in a file; `data` is None for a new size, which is `offset`."""

    path: str
    file: int
    offset: int
    data: bytes | None


class Sync(NamedTuple):
    """fsync of a file or folder."""

    path: str
    node: int


class Note(NamedTuple):
    """What a caller knows from here on: a call returned, a server answered."""

    kind: str
    content: Any = None


Operation = Change | Write | Sync | Note
ROOT = 0


class Recorder:
    """Watches the folder `root`.

    Attributes:
        log: The operations in their order; those that make what was there before come first.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.log: list[Operation] = []
        self._lock = threading.RLock()
        self._numbers = {_identity(os.stat(root)): ROOT}
        self._paths = {ROOT: "."}
        self._next = 1
        for path in sorted(root.rglob("*")):
            self._adopt(path)

    def _adopt(self, path: Path) -> None:
        """What is there when the recording begins is durable."""
        folder = self._numbers[_identity(path.parent.stat())]
        self._make("folder" if path.is_dir() else "file", (folder, path.name), path.stat())
        number = self._numbers[_identity(path.stat())]
        if path.is_file():
            self._wrote(number, 0, path.read_bytes())
        self.log += [Sync(self._paths[number], number), Sync(self._paths[folder], folder)]

    def note(self, kind: str, content: Any = None) -> None:
        with self._lock:
            self.log.append(Note(kind, content))

    @contextmanager
    def recording(self) -> Iterator[None]:
        """All writing of this process is seen meanwhile, by whichever function of Python."""
        with pytest.MonkeyPatch.context() as patch:
            self._patch(patch)
            yield

    def _patch(self, patch: pytest.MonkeyPatch) -> None:
        original = {name: getattr(os, name) for name in _CALLS}
        plain_open = io.open

        def watched(name: str) -> Callable[[Any], None]:
            def put(function: Any) -> None:
                def call(*arguments: Any, **named: Any) -> Any:
                    with self._lock:
                        return function(original[name], *arguments, **named)

                patch.setattr(os, name, call)

            return put

        @watched("open")
        def _(call: Any, path: Any, flags: int, *mode: Any, dir_fd: int | None = None) -> int:
            is_new = flags & os.O_CREAT and not _exists(path, dir_fd)
            descriptor = call(path, flags, *mode, dir_fd=dir_fd)
            where = self._entry(path, dir_fd) if is_new else None
            if where is not None:
                self._make("file", where, os.fstat(descriptor))
            elif flags & os.O_TRUNC:
                self._resize(descriptor, 0)
            return descriptor

        @watched("write")
        def _(call: Any, descriptor: int, data: Any) -> int:
            status = os.fstat(descriptor)
            number = self._number(status)
            if number is None:
                return call(descriptor, data)
            is_appending = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_APPEND
            at = status.st_size if is_appending else os.lseek(descriptor, 0, os.SEEK_CUR)
            count = call(descriptor, data)
            self._wrote(number, at, bytes(memoryview(data).cast("B")[:count]))
            return count

        @watched("pwrite")
        def _(call: Any, descriptor: int, data: Any, at: int) -> int:
            count = call(descriptor, data, at)
            number = self._number(os.fstat(descriptor))
            if number is not None:
                self._wrote(number, at, bytes(memoryview(data).cast("B")[:count]))
            return count

        @watched("ftruncate")
        def _(call: Any, descriptor: int, size: int) -> None:
            call(descriptor, size)
            self._resize(descriptor, size)

        @watched("posix_fallocate")
        def _(call: Any, descriptor: int, at: int, size: int) -> None:
            before = os.fstat(descriptor).st_size
            call(descriptor, at, size)
            self._resize(descriptor, max(before, at + size))

        for name in ("fsync", "fdatasync"):

            @watched(name)
            def _(call: Any, descriptor: int) -> None:
                call(descriptor)
                number = self._number(os.fstat(descriptor))
                if number is not None:
                    self.log.append(Sync(self._paths[number], number))

        @watched("mkdir")
        def _(call: Any, path: Any, *mode: Any, dir_fd: int | None = None) -> None:
            call(path, *mode, dir_fd=dir_fd)
            where = self._entry(path, dir_fd)
            if where is not None:
                self._make("folder", where, os.stat(path, dir_fd=dir_fd))

        for name in ("unlink", "remove", "rmdir"):

            @watched(name)
            def _(call: Any, path: Any, *, dir_fd: int | None = None) -> None:
                where = self._entry(path, dir_fd)
                call(path, dir_fd=dir_fd)
                if where is not None:
                    self.log.append(Change(self._path(where), ((*where, None),)))

        for name in ("rename", "replace"):

            @watched(name)
            def _(call: Any, old: Any, new: Any) -> None:
                place, target = self._entry(old), self._entry(new)
                number = self._number(os.lstat(old))
                call(old, new)
                if place is None and target is None:
                    return
                assert place is not None and target is not None and number is not None
                self._paths[number] = self._path(target)
                entries = ((*place, None), (*target, number))
                self.log.append(Change(self._path(target), entries))

        for name in ("link", "symlink", "truncate", "sendfile", "copy_file_range"):

            @watched(name)
            def _(call: Any, *arguments: Any, **named: Any) -> None:
                raise AssertionError("a call that this recorder does not know")

        def recorded_open(
            file: Any,
            mode: str = "r",
            buffering: int = -1,
            encoding: str | None = None,
            errors: str | None = None,
            newline: str | None = None,
            closefd: bool = True,
            opener: Any = None,
        ) -> Any:
            if not set(mode) & set("wax+"):
                named = {"closefd": closefd, "opener": opener}
                return plain_open(file, mode, buffering, encoding, errors, newline, **named)
            raw_mode = mode.replace("t", "").replace("b", "")
            opener = opener or (lambda path, flags: os.open(path, flags, 0o666))
            raw = _Raw(file, raw_mode, closefd, None if isinstance(file, int) else opener)
            if buffering == 0:
                return raw
            buffered = (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw)
            return (
                buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)
            )

        patch.setattr(io, "open", recorded_open)
        patch.setattr(builtins, "open", recorded_open)

    def _number(self, status: os.stat_result) -> int | None:
        return self._numbers.get(_identity(status))

    def _entry(self, path: Any, dir_fd: int | None = None) -> tuple[int, str] | None:
        """The folder, by its number, and the name in it; None for what lies elsewhere."""
        text = os.fsdecode(path)
        parent, name = os.path.split(text.rstrip("/"))
        try:
            folder = os.stat(parent or ".", dir_fd=dir_fd)
        except FileNotFoundError:
            return None
        number = self._number(folder)
        return None if number is None else (number, name)

    def _path(self, where: tuple[int, str]) -> str:
        return os.path.normpath(os.path.join(self._paths[where[0]], where[1]))

    def _make(self, kind: str, where: tuple[int, str], status: os.stat_result) -> None:
        number, self._next = self._next, self._next + 1
        # The number of an inode comes again when the file that had it is gone.
        self._numbers[_identity(status)] = number
        self._paths[number] = self._path(where)
        self.log.append(Change(self._paths[number], ((*where, number),), kind))

    def _wrote(self, number: int, at: int, data: bytes) -> None:
        self.log.append(Write(self._paths[number], number, at, data))

    def _resize(self, descriptor: int, size: int) -> None:
        number = self._number(os.fstat(descriptor))
        if number is not None:
            self.log.append(Write(self._paths[number], number, size, None))


_CALLS = (
    "open write pwrite ftruncate posix_fallocate fsync fdatasync mkdir unlink remove rmdir rename "
    "replace link symlink truncate sendfile copy_file_range"
).split()


class _Raw(io.FileIO):
    """A file whose bytes go through `os`, where they are seen."""

    def write(self, data: Any) -> int:
        return os.write(self.fileno(), data)

    def truncate(self, size: int | None = None) -> int:
        size = self.tell() if size is None else size
        os.ftruncate(self.fileno(), size)
        return size


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _exists(path: Any, dir_fd: int | None) -> bool:
    try:
        os.stat(path, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def tree_of(path: Path) -> dict[str, bytes | None]:
    """What lies in a folder: the bytes of each file, None for a folder."""
    return {
        str(found.relative_to(path)): None
        if stat.S_ISDIR(found.lstat().st_mode)
        else found.read_bytes()
        for found in path.rglob("*")
    }
