"""The event files of a run: appended to, and replaced by a rewind.

Readers take the files of a folder in the order of their names. Number 0 describes the run and is
replaced whenever that changes. The others hold what the run logs: the newest one is appended to,
until it turns out to be cut, which ends it for every reader: then another begins.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

from mlflow_track.backends.tensorboard.events import Held, is_restart
from mlflow_track.backends.tensorboard.protos import first_event, restart_event
from mlflow_track.formats.tfrecord import frame, read_records
from mlflow_track.record import layout
from mlflow_track.record.files import (
    FILE_MODE,
    link_error,
    open_regular,
    sync_folder,
    write_all,
    write_new,
)

_DESCRIPTION = 0
_BATCH = 1000
_FLAGS = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class EventFiles:
    """The event files in one folder, made where there is none; what kills left is put in order.

    Attributes:
        folder: That folder.
        held: What is in the files, but for the description.

    Raises:
        OSError: The folder cannot be used.
    """

    def __init__(self, run: Path, name: str) -> None:
        self.folder = run / layout.TENSORBOARD / name
        for folder in (self.folder.parent, self.folder):
            if folder.is_symlink():
                raise link_error(folder)
            # Not the run's own folder: it may have been deleted.
            folder.mkdir(exist_ok=True)
        for leftover in self.folder.glob(f"{layout.TEMPORARY}*"):
            leftover.unlink()
        self._drop_replaced()
        self.held = Held()
        # The file that is appended to, and its size; None where another one begins.
        self._current: Path | None = None
        self._size = 0
        self._look()

    def append(self, events: list[bytes]) -> None:
        """Write events to the newest file.

        Raises:
            OSError: They are not there, or only some are: the folder must be opened again.
        """
        if self._current is None:
            self._begin(events)
        else:
            data = frame(events)
            descriptor = os.open(self._current, _FLAGS | os.O_APPEND)
            try:
                if os.fstat(descriptor).st_size != self._size:
                    raise OSError(f"{self._current} was changed by something else")
                write_all(descriptor, data)
            finally:
                os.close(descriptor)
            self._size += len(data)
        for each in events:
            self.held.add(each)

    def describe(self, events: list[bytes]) -> None:
        """Replace the description of the run."""
        path, content = self.folder / layout.event_file(_DESCRIPTION), frame(events)
        try:
            with open_regular(path) as file:
                if file.read() == content:
                    return
        except FileNotFoundError:
            pass
        self._publish(path, [content])

    def keep(self, chosen: Callable[[Iterable[bytes]], Iterator[bytes]]) -> None:
        """Put one file with only the chosen events in the place of all but the description.

        A reader that has followed the files takes it for a restart; a new one sees no more than
        what was chosen. A kill leaves the files as they were, or both, of which the new one counts.
        """
        numbers = self._numbers()
        if not numbers:
            return
        now = time.time()
        begin = [first_event(now), restart_event(now)]
        held = Held()

        def kept() -> Iterator[bytes]:
            for data in chosen(data for number in numbers for data, _ in self._read(number)):
                held.add(data)
                yield data

        path = self._path(numbers[-1] + 1)
        self._publish(path, chain([frame(begin)], map(frame, _batches(kept()))))
        self._drop_replaced()
        self._current, self._size, self.held = path, path.stat().st_size, held

    def sync(self) -> None:
        """Make what was appended survive a power loss."""
        if self._current is not None:
            descriptor = os.open(self._current, _FLAGS)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_folder(self.folder)

    # --- inside ---

    def _path(self, number: int) -> Path:
        return self.folder / layout.event_file(number)

    def _numbers(self) -> list[int]:
        """The numbers of the files with what the run has logged."""
        found = (layout.number_of_event_file(name) for name in os.listdir(self.folder))
        return sorted(number for number in found if number)

    def _read(self, number: int, damaged: list[str] | None = None) -> Iterator[tuple[bytes, int]]:
        """The intact events of a file, each with its end; how it is damaged goes to `damaged`."""
        damaged = damaged if damaged is not None else []
        with open_regular(self._path(number)) as file:
            for record in read_records(file, lambda _, how: damaged.append(how)):
                yield record.data, record.end

    def _drop_replaced(self) -> None:
        """Empty the files that came before one that replaced them.

        TensorBoard's reader in Python never gets past a file that it follows and that is removed.
        """
        numbers = self._numbers()
        for at, number in reversed(list(enumerate(numbers))):
            if any(is_restart(data) for data, _ in islice(self._read(number), 2)):
                for earlier in numbers[:at]:
                    os.truncate(self._path(earlier), 0)
                return

    def _look(self) -> None:
        """Read all files; the newest is continued where it is intact."""
        for number in self._numbers():
            damaged: list[str] = []
            self._current, self._size = None, 0
            for data, end in self._read(number, damaged):
                self._current, self._size = self._path(number), end
                self.held.add(data)
            if damaged:
                self._current = None

    def _begin(self, events: list[bytes]) -> None:
        """Write events to another file; of one that cannot be written nothing is left."""
        path = self._path(1 + max(self._numbers(), default=_DESCRIPTION))
        data = frame([first_event(time.time()), *events])
        write_new(path, data)
        self._current, self._size = path, len(data)

    def _publish(self, path: Path, pieces: Iterable[bytes]) -> None:
        """Replace a file: whole or not at all."""
        # Not a name that TensorBoard would read.
        temporary = layout.temporary(self.folder / "events")
        descriptor = os.open(temporary, _FLAGS | os.O_CREAT | os.O_EXCL, FILE_MODE)
        try:
            for piece in pieces:
                write_all(descriptor, piece)
            os.fsync(descriptor)
            os.rename(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
        sync_folder(self.folder)


def _batches(events: Iterator[bytes]) -> Iterator[list[bytes]]:
    while batch := list(islice(events, _BATCH)):
        yield batch
