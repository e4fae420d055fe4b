"""Selects the artifacts that a report can show: pictures and short texts."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mlflow_track.record import layout
from mlflow_track.record.files import files_below, read_file
from mlflow_track.record.media.content import read_text
from mlflow_track.record.media.index import listed_files

_KINDS = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".gif": "image/gif",
    ".webp": "image/webp",
    ".svg": "image/svg+xml",
}
_TEXTS = (".txt", ".md", ".log")
_MOST_FILES = 6
# A report is sent by mail: a file that is larger stays where it is.
_MOST_PICTURE_BYTES, _MOST_TEXT_BYTES = 600_000, 6_000


class Shown(NamedTuple):
    """A file of a run: its path below the artifacts, and its text or its data URI."""

    name: str
    content: str


def pictures(run: Path) -> list[Shown]:
    """The pictures of the run in the folder `run`, as data URIs."""
    found = []
    for file, name in _files(run, tuple(_KINDS), _MOST_PICTURE_BYTES):
        data = base64.b64encode(read_file(file, _MOST_PICTURE_BYTES)).decode()
        found.append(Shown(name, f"data:{_KINDS[file.suffix.lower()]};base64,{data}"))
    return found


def texts(run: Path) -> list[Shown]:
    """The texts of the run in the folder `run`; of a long one the beginning."""
    found = []
    for file, name in _files(run, _TEXTS, 1 << 30):
        found.append(Shown(name, read_text(file, _MOST_TEXT_BYTES)))
    return found


def _files(run: Path, suffixes: tuple[str, ...], most_bytes: int) -> Iterator[tuple[Path, str]]:
    root, count = run / layout.ARTIFACTS, 0
    # Those of steps have a place of their own.
    listed = listed_files(run)
    for file in files_below(root):
        name = file.relative_to(root).as_posix()
        if name in listed:
            continue
        if file.suffix.lower() in suffixes and not file.name.startswith("."):
            if count == _MOST_FILES:
                return
            if file.lstat().st_size <= most_bytes:
                count += 1
                yield file, name
