"""Writes the images, texts and histograms of steps, in a thread beside the loop.

A call copies what it was given and returns; the thread makes the file and lists it in the index.
What waits for it is bounded: a loop that logs faster than the disk writes waits at the call. A
crash takes what was not written yet; the end of the run waits for it.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mlflow_track import checks
from mlflow_track.media.values import Encodable
from mlflow_track.record import layout
from mlflow_track.record.directory import RunDirectory
from mlflow_track.record.files import legible, make_folder, replace_file
from mlflow_track.record.media.index import MediaEntry
from mlflow_track.record.media.writer import MediaIndex, MediaRewind
from mlflow_track.wording import count_text, expected, shown, typed, value_error

_MOST_WAITING, _MOST_WAITING_BYTES = 1000, 64 << 20
_MOST_KEY = 500
# Names that say another kind of image than the file would be.
_OTHER_IMAGES = (".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".svg", ".pdf")


class _Waiting(NamedTuple):
    entry: MediaEntry
    content: Encodable


class MediaLog:
    """The media of one attempt of a run. Threads may share it.

    Args:
        record: The run's folder.
        tell: Takes a line for the user.
    """

    def __init__(self, record: RunDirectory, tell: Callable[[str], None]) -> None:
        self._record, self._tell = record, tell
        self._queue: deque[_Waiting] = deque()
        self._files: set[str] = set()
        self._waiting_bytes = self._lost = 0
        self._is_closing = self._has_waited = False
        # Its lock is reentrant: a signal handler may log while a call waits.
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._index: MediaIndex | None = None
        if record.is_kept:
            with self._warned("images, texts and histograms of steps are not kept"):
                self._index = MediaIndex(record.path)

    @property
    def position(self) -> int:
        """The number of the next item: where a checkpoint that is saved now belongs."""
        return self._index.number if self._index is not None else 0

    def log(self, kind: str, name: Any, step: Any, take: Callable[[str], Encodable]) -> Path:
        """Copy one item, to be written soon; returns the path of its file.

        Args:
            kind: "image", "text" or "histogram".
            name: The name as it was given, for images and texts with or without the file's ending.
            step: The step as it was given.
            take: Copies the content; its argument is the name, for a message.

        Raises:
            TypeError, ValueError: An argument is invalid.
            RuntimeError: The run has ended, or this process was forked from the one that writes it.
        """
        record = self._record
        record.require_open()
        step = checks.step_number(step)
        key, folder, ending = _place(record.artifacts_path, kind, name, step)
        content = take(key)
        with self._changed:
            path = self._free(folder, step, ending)
            if self._index is not None:
                self._await_room(content.size_bytes)
                file = path.relative_to(record.artifacts_path).as_posix()
                number = self._index.take_number()
                entry = MediaEntry(
                    number=number, kind=kind, key=key, step=step, time=time.time(), file=file
                )
                self._put(_Waiting(entry, content))
        return path

    def plan_rewind(self, step: int, *, begin: int = 0, before: int | None = None) -> MediaRewind:
        """What comes again after a rewind to `step`.

        Args:
            step: Items of later steps move.
            begin: Only from the number of the first of these on; see `position`. Other steps
                move as well then: an item may be logged over epochs, beside batches.
            before: Only items before this number, and only those of later steps.
        """
        if self._index is None:
            return MediaRewind()
        self.drain()
        with self._warned("images, texts and histograms are not rewound"):
            if before is not None:
                return self._index.plan_rewind(step, 0, before)
            return self._index.plan_rewind(-1, self._index.first_later(begin, step))
        return MediaRewind()

    def rewind(self, plan: MediaRewind) -> int:
        """Move what comes again aside; returns how many items.

        To be called before the rows are rewound: who sees that in run.json finds the index rewound.
        """
        if self._index is not None and plan.moved:
            with self._warned("some of what is logged again may be there twice"):
                self._index.rewind(self._record.attempt, plan)
        return len(plan.moved)

    def note_rewind(self, plan: MediaRewind, step: int) -> None:
        """Note in run.json a rewind to `step` that moved no row: destinations must know."""
        attempt, last = self._record.attempt, max(step, plan.last_kept)
        entry = {"attempt": attempt, "step": last, "time": time.time()}
        self._record.add("rewinds", {**entry, "file": layout.rewound_metrics(attempt)})

    def drain(self) -> None:
        """Return when everything that was logged is written."""
        with self._changed:
            while self._queue and self._thread is not None:
                self._changed.wait()

    def close(self) -> None:
        """Write what waits, and end."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        if self._index is not None:
            self._index.close()
        if self._lost > 1:
            self._tell(f"WARNING: {count_text(self._lost, 'media item')} could not be written")

    def abandon(self) -> None:
        """In a forked child: what waits is the parent's to write."""
        # A thread that does not exist here may have held the lock.
        self._changed = threading.Condition()
        self._queue, self._thread, self._index = deque(), None, None

    # --- inside ---

    def _free(self, folder: Path, step: int, ending: str) -> Path:
        """A file that no item has: of a step that is logged twice the later item counts.

        One that a kill has left unlisted is replaced, as an artifact that is logged again.
        """
        root, number = self._record.artifacts_path, 1
        while True:
            path = folder / layout.media_file(step, ending, number)
            file = path.relative_to(root).as_posix()
            is_listed = self._index is None or self._index.is_listed(file)
            is_taken = path.is_dir() or (is_listed and os.path.lexists(path))
            if not is_taken and file not in self._files:
                return path
            number += 1

    def _await_room(self, size_bytes: int) -> None:
        """Wait until the queue has room; one item it takes, however large."""
        while self._queue and (
            len(self._queue) >= _MOST_WAITING
            or self._waiting_bytes + size_bytes > _MOST_WAITING_BYTES
        ):
            if not self._has_waited:
                self._has_waited = True
                self._tell(
                    "WARNING: images, texts and histograms are logged faster than they can be "
                    "written: the calls wait"
                )
            self._changed.wait()

    def _put(self, item: _Waiting) -> None:
        if self._thread is None:
            thread = threading.Thread(target=self._work, name="mlflow-track media", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                # No more threads, or the interpreter ends.
                self._write(item)
                return
            self._thread = thread
        self._queue.append(item)
        self._files.add(item.entry.file)
        self._waiting_bytes += item.content.size_bytes
        self._changed.notify_all()

    def _work(self) -> None:
        changed = self._changed
        while True:
            with changed:
                while not self._queue and not self._is_closing:
                    changed.wait()
                if not self._queue:
                    return
                item = self._queue[0]
            # It stays in the queue meanwhile: an empty one means that everything is written.
            self._write(item, is_last=len(self._queue) == 1)
            with changed:
                self._queue.popleft()
                self._files.discard(item.entry.file)
                self._waiting_bytes -= item.content.size_bytes
                changed.notify_all()

    def _write(self, item: _Waiting, *, is_last: bool = True) -> None:
        assert self._index is not None
        path = self._record.artifacts_path / item.entry.file
        try:
            data = item.content.encode()
            make_folder(path.parent)
            replace_file(path, data)
            try:
                self._index.append(item.entry)
            except OSError:
                path.unlink(missing_ok=True)
                raise
            if is_last:
                self._index.sync()
        except Exception as error:
            self._lost += 1
            if self._lost == 1:
                entry = item.entry
                why = error.strerror if isinstance(error, OSError) and error.strerror else error
                self._tell(
                    f"WARNING: {entry.kind} {shown(entry.key)} of step {entry.step} is not kept: "
                    f"{why}; training continues"
                )

    @contextlib.contextmanager
    def _warned(self, consequence: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._tell(f"WARNING: {error}: {consequence}")


def _place(root: Path, kind: str, name: Any, step: int) -> tuple[str, Path, str]:
    """The key that a name stands for, the folder of its files, and their ending."""
    if kind == "histogram" and not _is_name(name):
        # Unlike the other verbs: as `add_histogram` of TensorBoard has them.
        message = expected("a histogram's name", "a string", typed(name))
        raise TypeError(f"{message} (arguments are name, values)")
    endings, text = layout.MEDIA_ENDINGS[kind], os.fspath(name) if _is_name(name) else ""
    stem, ending = os.path.splitext(text)
    ending = ending.lower()
    if kind == "image" and ending in _OTHER_IMAGES:
        what = "one ending in .png, or without an ending"
        raise value_error("the name of the images of steps", what, shown(name))
    if kind == "histogram" or ending not in endings:
        stem, ending = text, endings[0]
    file = os.path.join(stem, layout.media_file(step, ending))
    # Of what is not a name the check says what it must be.
    folder = checks.artifact_path(root, file if stem else name).parent
    key = folder.relative_to(root).as_posix()
    if legible(key) != key or not 1 <= len(key) <= _MOST_KEY or key == ".":
        what = f"1 to {_MOST_KEY} characters of text"
        raise value_error("the name of media of steps", what, shown(name))
    return key, folder, ending


def _is_name(name: Any) -> bool:
    return isinstance(name, str | os.PathLike) and isinstance(os.fspath(name), str)
