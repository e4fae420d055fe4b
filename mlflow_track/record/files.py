"""Replaces files that are not append-only: completely or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import stat
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from mlflow_track.record import layout
from mlflow_track.wording import value_error

# For `os.open`, whose default is that of a program; what others may not do the umask takes away.
FILE_MODE = 0o666
# What a file system answers that cannot do what it is asked: to lock, or to sync a folder.
WITHOUT = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK}
WITHOUT_FOLDER = (
    "the working folder was deleted; change to one that exists, or use an absolute path"
)
MOST_JSON_BYTES, _MOST_DEPTH = 64 << 20, 100
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")


def absolute(path: str | os.PathLike[str]) -> Path:
    """The path from the root of the file system.

    Raises:
        FileNotFoundError: It is relative, and the working folder was deleted.
    """
    try:
        return Path(path).expanduser().absolute()
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, WITHOUT_FOLDER, str(path)) from None


def make_folder(path: Path, *, with_parents: bool = True) -> None:
    """Make a folder and its parents; a power loss cannot take back those that it made.

    Raises:
        FileNotFoundError: The parent does not exist, and `with_parents` is False.
    """
    for folder in (*reversed(path.parents if with_parents else ()), path):
        # Not is_dir first: another process may be making the same one.
        try:
            folder.mkdir()
        except OSError:
            if not folder.is_dir():
                raise
        else:
            sync_folder(folder.parent)


def sync_folder(folder: Path) -> bool:
    """Make renames and creations inside `folder` survive a power loss.

    Returns:
        Whether the file system can; some know this for files alone.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in WITHOUT:
            raise
        return False
    finally:
        os.close(descriptor)
    return True


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading; this never waits, and follows no link.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: It is something else: a link, a pipe, a folder, a device.
    """
    return os.fdopen(_open_regular(path, os.O_RDONLY), "rb")


def open_to_append(path: str | os.PathLike[str]) -> int:
    """A descriptor of a regular file, made where there is none; see `open_regular`."""
    return _open_regular(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def _open_regular(path: str | os.PathLike[str], flags: int) -> int:
    flags |= os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, FILE_MODE)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise link_error(path) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return descriptor


def link_error(path: str | os.PathLike[str]) -> OSError:
    """The error for a link in a run: it could lead anywhere."""
    return OSError(errno.ELOOP, "it is a link, which is not followed", str(path))


def files_below(folder: Path) -> Iterator[Path]:
    """The regular files in a folder and below it, by name; links are passed over."""
    if folder.is_symlink():
        return
    for place, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            file = Path(place, name)
            if stat.S_ISREG(file.lstat().st_mode):
                yield file


def read_file(path: str | os.PathLike[str], most_bytes: int) -> bytes:
    """The content of a regular file of a bounded size.

    Raises:
        ValueError: It is larger than `most_bytes`.
        OSError: See `open_regular`.
    """
    with open_regular(path) as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise value_error(f"the size of {path}", f"at most {most_bytes:,} bytes", "more")
    return content


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """`os.write` until all is written; one call may take less than it was given."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def replace_file(path: Path, *pieces: bytes | memoryview) -> None:
    """Write `pieces` under a temporary name, fsync, rename over `path`, fsync the folder."""
    temporary = layout.temporary(path)
    write_new(temporary, *pieces)
    os.rename(temporary, path)
    sync_folder(path.parent)


@contextlib.contextmanager
def removed_on_error(path: Path) -> Iterator[None]:
    """Leave no file at `path` if what writes it fails."""
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def write_new(path: Path, *pieces: bytes | memoryview) -> None:
    """Write `pieces` to a file that must not exist, and fsync it; after an error there is none."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    with removed_on_error(path):
        try:
            for piece in pieces:
                write_all(descriptor, piece)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def legible(text: str) -> str:
    """The text with half characters, as names in another encoding bring them, as `\\udce9`."""
    return text.encode("utf-8", "backslashreplace").decode()


def write_json(path: Path, content: Any) -> None:
    """Replace `path` by `content` as indented JSON, atomically; half characters become legible."""
    replace_file(path, json_bytes(content))


def json_bytes(content: Any) -> bytes:
    """The content of a file of `write_json`."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    # Two backslashes: for JSON one is an escape, and would bring the half character back.
    text = _HALF_CHARACTER.sub(lambda half: rf"\\u{ord(half.group()):04x}", text)
    return text.encode()


def read_json(path: Path) -> Any:
    """Parse a JSON file, of at most 64 MiB and 100 levels.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: It is not a regular file.
        ValueError: It is not JSON; the message names the file.
    """
    data = read_file(path, MOST_JSON_BYTES)
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if _is_deep(content):
        raise ValueError(f"{path} is nested deeper than {_MOST_DEPTH} levels")
    return content


def _is_deep(content: Any) -> bool:
    level = [content]
    for _ in range(_MOST_DEPTH):
        holders = [
            x.values() if isinstance(x, dict) else x for x in level if isinstance(x, dict | list)
        ]
        level = list(chain.from_iterable(holders))
        if not level:
            return False
    return True


def folder_size(path: Path | str) -> int:
    """The bytes of all files in a folder. No link is followed; what cannot be read counts 0."""
    total = 0
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    total += folder_size(entry.path)
                elif stat.S_ISREG(status.st_mode):
                    total += status.st_size
    except OSError:
        pass
    return total
