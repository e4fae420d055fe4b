"""How a file that is not append-only is replaced: whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from pathlib import Path
from typing import Any, BinaryIO

from mlflow_track.record import layout

FILE_MODE = 0o644
FOLDER_MODE = 0o755
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")


def make_folder(path: Path) -> None:
    """Make a folder and its parents, none of them writable by others, whatever the umask.

    A power loss cannot take back those that it made.
    """
    for folder in (*reversed(path.parents), path):
        # Not is_dir first: another process may be making the same one.
        try:
            folder.mkdir(mode=FOLDER_MODE)
        except OSError:
            if not folder.is_dir():
                raise
        else:
            sync_folder(folder.parent)


def open_new(path: Path) -> BinaryIO:
    """Open a file that does not exist yet for writing, with our mode from its first instant."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, FILE_MODE), "wb")


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading. Whatever else lies there is neither waited for nor followed.

    Raises:
        OSError: There is no such file, or it is a link, a folder, a pipe or a device.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "must be a regular file, got a link", str(path)) from None
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "must be a regular file", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def sync_folder(folder: Path) -> None:
    """Make renames and creations inside `folder` survive a power loss."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """`os.write` until all is written; one call may take less than it was given."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def replace_file(path: Path, *pieces: bytes | memoryview) -> None:
    """Write `pieces` under a temporary name, fsync, rename over `path`, fsync the folder."""
    temporary = layout.temporary(path)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    try:
        for piece in pieces:
            write_all(descriptor, piece)
        os.fsync(descriptor)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)
    os.rename(temporary, path)
    sync_folder(path.parent)


def legible(text: str) -> str:
    """The text with half characters, as names in another encoding bring them, as `\\udce9`."""
    return text.encode("utf-8", "backslashreplace").decode()


def write_json(path: Path, content: Any) -> None:
    """Replace `path` by `content` as indented JSON, atomically; half characters become legible."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    # Two backslashes: for JSON one is an escape, and would bring the half character back.
    text = _HALF_CHARACTER.sub(lambda half: rf"\\u{ord(half.group()):04x}", text)
    replace_file(path, text.encode())


def read_json(path: Path) -> Any:
    """Parse a JSON file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not JSON; the message names the file.
    """
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
