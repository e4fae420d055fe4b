"""Sends the images, texts and histograms of a record to a backend: each once, despite rewinds.

Their numbers never come twice, so the number of the next one is all there is to remember. What a
rewind moved aside is listed in a separate index: it is removed from the destination as well.
Where nothing can be taken out, what an attempt logs again is not sent a second time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

from mlflow_track.backends.protocol import MediaItem, Refused, Unavailable, has
from mlflow_track.mirror.progress import MediaProgress
from mlflow_track.mirror.retries import Retries
from mlflow_track.mirror.state import Ledger
from mlflow_track.record import layout
from mlflow_track.record.media.index import MediaEntry, MediaReader, entries_of, file_of, newest

_BATCH = 20


class Media:
    """Sends media, in the order of their calls."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._reader = MediaReader(ledger.path / layout.MEDIA)
        self._batch = _BATCH
        self._aside: dict[str, list[MediaEntry]] = {}
        self.retries = Retries()

    def continue_from(self, position: str) -> None:
        """Take the position from the destination, which counts."""
        if position and not position.isdecimal():
            raise Unavailable(
                f"the last item there has the position {position!r}, which does not belong to this "
                "record"
            )
        progress = self._ledger.state.media
        progress.acknowledged = int(position or 0)
        kept = progress.kept.items()
        progress.kept = {name: min(end, progress.acknowledged) for name, end in kept}
        progress.sending = max(progress.sending, progress.acknowledged)

    def send(self) -> None:
        """Send what is new; raises `Unavailable` where the destination does not take it now."""
        progress = self._ledger.state.media
        aside = self._rewound()
        if not progress.is_taken:
            return
        with contextlib.suppress(FileNotFoundError):
            # A file that goes meanwhile is moved by a rewind: the next call looks again.
            self._reader.read()
            pending = [e for e in pending_media(self._reader.entries, progress) if e not in aside]
            self.retries.keep_only({_label(entry) for entry in pending})
            while pending:
                batch, pending = pending[: self._batch], pending[self._batch :]
                if not self._send(batch):
                    return

    def _send(self, entries: list[MediaEntry]) -> bool:
        """Send some items; returns whether later ones may follow."""
        ledger, progress = self._ledger, self._ledger.state.media
        label = _label(entries[0])
        if not self.retries.is_due(label):
            return False
        items, gone = self._items(entries)
        last = entries[-1].number + 1
        progress.sending = max(progress.sending, last)
        progress.last_step = max(progress.last_step, *(entry.step for entry in entries))
        # Before the first byte leaves: what may be there has to be taken out by a rewind.
        ledger.save(is_durable=True)
        try:
            refused = [*gone, *(ledger.backend.log_media(items) if items else ())]
        except Refused as error:
            refused = [*gone, *((_label(entry), str(error)) for entry in entries)]
        except Unavailable as error:
            if not error.is_answer:
                raise
            if len(entries) > 1:
                # One of them may be the reason.
                self._batch = 1
                return self._send(entries[:1]) and self._send(entries[1:])
            if not self.retries.failed(label, error, ledger.is_there):
                raise
            refused = [(label, str(error))]
        self._batch = min(_BATCH, 2 * self._batch)
        self.retries.done(label)
        ledger.note_refused(refused)
        progress.acknowledged = max(progress.acknowledged, last)
        progress.again = [n for n in progress.again if n not in {e.number for e in entries}]
        ledger.save()
        return True

    def _items(
        self, entries: Iterable[MediaEntry]
    ) -> tuple[list[MediaItem], list[tuple[str, str]]]:
        """Entries as a backend gets them, and those whose files are gone."""
        items: list[MediaItem] = []
        gone: list[tuple[str, str]] = []
        kept = self._kept()
        for entry in entries:
            if entry.identity in kept:
                continue
            if (file := file_of(self._ledger.path, entry)) is None:
                gone.append((_label(entry), f"its file {entry.file} is gone"))
            else:
                # What is sent again comes after what is there already.
                reached = max(entry.number + 1, self._ledger.state.media.acknowledged)
                items.append(_item(entry, file, reached))
        return items, gone

    def _rewound(self) -> set[MediaEntry]:
        """Take out what newer rewinds moved aside, where it may be there; returns all of it.

        An index of it is written before anything moves, so that nothing of it is sent any more.
        """
        path, progress = self._ledger.path, self._ledger.state.media
        for aside in layout.media_indexes_aside(path):
            if aside.name not in self._aside:
                self._aside[aside.name] = entries_of(aside)
            if aside.name not in progress.rewinds:
                self._take_out(aside.name, progress)
                progress.rewinds.append(aside.name)
                self._ledger.save()
        return {entry for entries in self._aside.values() for entry in entries}

    def _kept(self) -> set[tuple[str, str, int]]:
        """What is there of rewound items, by kind, key and step."""
        return {
            entry.identity
            for index, end in self._ledger.state.media.kept.items()
            for entry in self._aside.get(index, [])
            if entry.number < end
        }

    def _take_out(self, index: str, progress: MediaProgress) -> None:
        entries = self._aside[index]
        state, backend, root = self._ledger.state, self._ledger.backend, self._ledger.path
        if not progress.is_taken:
            for entry in entries:
                if has(backend, "remove") and entry.file in state.artifacts:
                    # One that was logged again meanwhile is sent again.
                    with contextlib.suppress(Refused):
                        backend.remove(entry.file)
                    state.artifacts.pop(entry.file)
            return
        if not has(backend, "remove_media") and not has(backend, "rewind"):
            progress.kept[index] = progress.acknowledged
        sent = [entry for entry in entries if entry.number < progress.sending]
        if sent and has(backend, "remove_media"):
            artifacts = root / layout.ARTIFACTS
            with contextlib.suppress(Refused):
                backend.remove_media([_item(entry, artifacts / entry.file, 0) for entry in sent])


def pending_media(entries: Iterable[MediaEntry], progress: MediaProgress) -> list[MediaEntry]:
    """What a backend lacks, in order; of what was logged twice the later item."""
    known = (entry for entry in entries if entry.kind in layout.MEDIA_ENDINGS)
    return [
        entry
        for entry in newest(known)
        if entry.number >= progress.acknowledged or entry.number in progress.again
    ]


def note_removed(ledger: Ledger, step: int) -> None:
    """Before a destination removes all past `step`: what of it stays in the record is sent again.

    A destination that tells its position may be told of one rewind twice, if its last point is
    older than the rewind and the first items that were logged after it have arrived.
    """
    progress = ledger.state.media
    entries = entries_of(ledger.path / layout.MEDIA)
    progress.again = [
        entry.number
        for entry in entries
        if entry.number < progress.acknowledged
        and (entry.step > step or entry.number in progress.again)
    ]
    progress.last_step = max((entry.step for entry in entries), default=-1)


def count_pending(path: Path, progress: MediaProgress) -> int:
    """The number of media that a backend lacks; of one that takes none they are artifacts."""
    if not progress.is_taken:
        return 0
    return len(pending_media(entries_of(path / layout.MEDIA), progress))


def _label(entry: MediaEntry) -> str:
    return f"{entry.kind} {entry.key!r} at step {entry.step}"


def _item(entry: MediaEntry, file: Path, reached: int) -> MediaItem:
    return MediaItem(
        kind=entry.kind,
        key=entry.key,
        step=entry.step,
        timestamp=round(1000 * entry.time),
        path=file,
        position=str(reached),
    )
