"""Sends the files of a record to the server's artifacts."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from mlflow_track.backends.protocol import Refused, Unavailable, has
from mlflow_track.mirror.retries import Retries
from mlflow_track.mirror.state import Ledger, MirrorState
from mlflow_track.record import layout
from mlflow_track.record.files import files_below
from mlflow_track.record.media.index import listed_files
from mlflow_track.wording import missing_text

# What of the record itself goes along, and under which folder of the artifacts.
RECORD_FOLDER = "record"
RECORD_FILES = (layout.CONFIG, layout.RUN, layout.REQUIREMENTS, layout.PATCH)
RECORD_FILES_AT_END = (
    layout.LOG,
    layout.METRICS,
    layout.METRICS_LONG,
    layout.SYSTEM_METRICS,
    layout.MEDIA,
)
# Of the time that passes, this part may go into looking whether files have changed.
_LOOKING_SHARE = 0.02
# And this part into one file that changes again and again.
_SENDING_SHARE = 0.1
_MOST_FAILURES = 3
_CHECKPOINTS = f"{layout.CHECKPOINTS}/"


class Artifacts:
    """Sends files that are new or have changed; a file that changes meanwhile is sent again."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._look_after = 0.0
        self._send_after: dict[str, float] = {}
        self.retries = Retries()
        # What the destination was seen to have, and how often it lacked what it had acknowledged.
        self._seen: dict[str, list[int]] = {}
        self._lacked: Counter[str] = Counter()

    def send(self, *, is_at_end: bool) -> None:
        """Send the pending files.

        One that the destination answers with a no waits for its next attempt, and holds up nothing;
        after some attempts it is set aside.

        Raises:
            Unavailable: The destination does not answer.
        """
        self._send_pending(is_at_end=is_at_end)
        again = self._ledger.again
        while is_at_end and (files := {n for n in again if not n.startswith(_CHECKPOINTS)}):
            again -= files
            self._send_pending(is_at_end=is_at_end)

    def _send_pending(self, *, is_at_end: bool) -> None:
        began = time.monotonic()
        if began < self._look_after and not is_at_end:
            return
        pending = list(pending_artifacts(self._ledger.path, self._ledger.state, is_at_end))
        self._look_after = began + (time.monotonic() - began) / _LOOKING_SHARE
        self.retries.keep_only({_item(name) for _, name, _ in pending})
        # Those that failed before come last.
        pending.sort(key=lambda each: self.retries.attempts(_item(each[1])))
        failures = 0
        for file, name, stamp in pending:
            is_early = began < self._send_after.get(name, 0.0) and not is_at_end
            if is_early or not self.retries.is_due(_item(name)):
                self._look_after = 0.0
                continue
            try:
                since = time.monotonic()
                self.send_one(file, name, stamp)
                now = time.monotonic()
                self._send_after[name] = now + (now - since) / _SENDING_SHARE
            except Unavailable as error:
                self._look_after = 0.0
                if not error.is_answer:
                    raise
                self._ledger.doubts.failed(name)
                if self.retries.failed(_item(name), error, self._ledger.is_there):
                    self._ledger.set_aside(name, stamp, _item(name), str(error))
                failures += 1
                if failures >= _MOST_FAILURES:
                    break

    def send_one(self, file: Path, name: str, stamp: list[int]) -> None:
        try:
            self._ledger.backend.upload(file, name)
        except FileNotFoundError:
            return
        except Refused as error:
            self.retries.done(_item(name))
            self._ledger.set_aside(name, stamp, _item(name), str(error))
            return
        self.retries.done(_item(name))
        self._ledger.state.artifacts[name] = stamp
        self._ledger.accept(name, _item(name))

    def look_back(self) -> None:
        """Look whether the destination has the files that it acknowledged.

        Raises:
            Unavailable: It lacks one; the next round sends it again.
        """
        state, backend = self._ledger.state, self._ledger.backend
        if not has(backend, "lacks"):
            return
        own = {name for _, name in all_artifacts(self._ledger.path, is_at_end=True)}
        sent = {n: s for n, s in state.artifacts.items() if n in own and self._seen.get(n) != s}
        lacking = sorted(backend.lacks(list(sent))) if sent else []
        self._seen |= sent
        for name in lacking:
            stamp = state.artifacts.pop(name)
            del self._seen[name]
            self._lacked[name] += 1
            if self._lacked[name] >= _MOST_FAILURES:
                why = "the destination acknowledged it several times, and does not list it"
                self._ledger.set_aside(name, stamp, _item(name), why)
        self._ledger.save()
        if left := [name for name in lacking if name not in state.set_aside]:
            raise Unavailable(missing_text(_item(left[0])), is_answer=True)

    def forget(self) -> None:
        """Another run, or what there is of this one, gets the files."""
        self._seen.clear()

    def send_record_files(self, *names: str) -> None:
        """Send files of the record itself that have changed."""
        files = ((self._ledger.path / name, f"{RECORD_FOLDER}/{name}") for name in names)
        for file, target, stamp in _pending(files, self._ledger.state):
            self.send_one(file, target, stamp)


def _item(name: str) -> str:
    return f"artifact {name}"


def pending_artifacts(
    path: Path, state: MirrorState, is_at_end: bool
) -> Iterator[tuple[Path, str, list[int]]]:
    """Files that the server lacks or has in an older form: (file, path on the server, stamp)."""
    if not state.takes_files:
        return iter(())
    files = all_artifacts(path, is_at_end)
    return _pending(
        _without_media(path, files, is_at_end) if state.media.is_taken else files, state
    )


def _without_media(
    path: Path, files: Iterator[tuple[Path, str]], is_at_end: bool
) -> Iterator[tuple[Path, str]]:
    """All files but those that go to the backend as images, texts and histograms of steps.

    Each of them is there before the index lists it. What is not listed at the end never will be.
    """
    listed: set[str] | None = None
    for file, name in files:
        if layout.may_be_media(file.name):
            if not is_at_end:
                continue
            if listed is None:
                listed = listed_files(path)
            if name in listed:
                continue
        yield file, name


def all_artifacts(path: Path, is_at_end: bool) -> Iterator[tuple[Path, str]]:
    """(file, path on the server) of everything that belongs there. Links are not followed."""
    for name in RECORD_FILES + (RECORD_FILES_AT_END if is_at_end else ()):
        if (path / name).is_file():
            yield path / name, f"{RECORD_FOLDER}/{name}"
    root = path / layout.ARTIFACTS
    for file in files_below(root):
        if not file.name.startswith(layout.TEMPORARY):
            yield file, file.relative_to(root).as_posix()


def _pending(
    files: Iterator[tuple[Path, str]], state: MirrorState
) -> Iterator[tuple[Path, str, list[int]]]:
    for file, name in files:
        try:
            stat = file.stat()
        except FileNotFoundError:
            continue
        stamp = [stat.st_size, stat.st_mtime_ns]
        if stamp not in (state.artifacts.get(name), state.set_aside.get(name)):
            yield file, name, stamp
