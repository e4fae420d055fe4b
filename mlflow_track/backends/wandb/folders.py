"""The folders that the client writes for a run, one for each time it is started.

The client acknowledges a row long before it is in its file, and a kill cuts the file anywhere: only
the file says what has arrived.
"""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, NamedTuple

from mlflow_track.formats.leveldb_log import HEADER, read_records
from mlflow_track.formats.protobuf import read_parts
from mlflow_track.formats.wandb_records import (
    HISTORY,
    MEDIA_POSITION_KEY,
    OUR_KEYS,
    RUN,
    items,
    value,
)
from mlflow_track.record.files import open_regular

_PREFIX, _MEDIA = b"_mlflow_track/", MEDIA_POSITION_KEY.encode()


class Place(NamedTuple):
    """How far the rows in a folder go.

    Attributes:
        number: The folder's number; 0 where it has no row.
        positions: The last position by the key that it has in rows.
    """

    number: int = 0
    positions: Mapping[str, str] = MappingProxyType({})

    def last(self, key: str) -> str:
        """The last position under a key; "" where there is none."""
        return self.positions.get(key, "")


def number_and_position(text: str) -> tuple[int, str]:
    """The number of the folder and the position that a row has; (0, "") where that is damaged."""
    number, _, position = text.partition(" ")
    return (int(number), position) if number.isdecimal() else (0, "")


class Tail:
    """Follows a `.wandb` file while the client writes it.

    Attributes:
        place: The last row that is in it.
        end: The end of the last whole record.
        has_run: Whether the run itself is in it: before that W&B cannot read it at all.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.place = Place()
        self.end = len(HEADER)
        self.has_run = False

    def read(self) -> Place:
        """Read what has come since the last call."""
        try:
            with open_regular(self.path) as file:
                self._read(file)
        except FileNotFoundError:
            pass
        return self.place

    def _read(self, file: BinaryIO) -> None:
        newest: dict[bytes, bytes] = {}
        for data, end in read_records(file, self.end):
            try:
                self.has_run = self.has_run or any(True for _ in read_parts(data, RUN))
                # A summary holds the keys as well.
                if _PREFIX in data:
                    kind = _MEDIA if _MEDIA in data else _PREFIX
                    newest[kind] = next(read_parts(data, HISTORY), newest.get(kind, b""))
            except ValueError:
                break  # whole, but not a message: as good as the end
            self.end = end
        for history in newest.values():
            self._note(history)

    def _note(self, history: bytes) -> None:
        for key, text in items(history):
            if len(key) == 1 and key[0] in OUR_KEYS:
                number, position = number_and_position(str(value(text)))
                if number:
                    self.place = Place(number, {**self.place.positions, key[0]: position})


def settle(root: Path, run_id: str) -> Place:
    """Make the folders of a run readable for W&B, and find how far its rows go.

    Nobody may be writing them. W&B ends at the first torn record, which is cut off. A folder
    without the run itself, as a kill leaves it, is removed: W&B would read no other either.

    Args:
        root: The folder that they are in.
        run_id: W&B's id of the run.
    """
    places = [Place()]
    for path in root.glob(f"*run-*/run-{glob.escape(run_id)}.wandb"):
        tail = Tail(path)
        places.append(tail.read())
        if not tail.has_run:
            shutil.rmtree(path.parent)
        elif path.stat().st_size > tail.end:
            os.truncate(path, tail.end)
    places.sort(key=lambda place: place.number)
    merged: dict[str, str] = {}
    for place in places:
        merged.update(place.positions)
    return Place(places[-1].number, merged)
