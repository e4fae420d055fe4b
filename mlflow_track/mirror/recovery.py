"""Asks a server what it has of a record, where the stored positions do not tell."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from mlflow_track.mirror.metrics import MetricRows
from mlflow_track.mirror.rewinds import body_bytes, part_of
from mlflow_track.mirror.state import Ledger
from mlflow_track.record.rows import iterate_rows, read_last_steps, read_rows


class Recovery:
    """Compares files of metrics with their points at the server."""

    def __init__(self, ledger: Ledger, rows: MetricRows) -> None:
        self._ledger = ledger
        self._rows = rows

    def find_foreign(self, last_steps: Mapping[str, int]) -> None:
        """Steps that were logged elsewhere, or that were lost here, are not sent again.

        Another machine may have continued the run, and a power loss may have taken rows that
        had been sent already.

        Args:
            last_steps: The last step of each metric at the server.
        """
        own = set(self._own_moments())
        for name in self._all_names() & last_steps.keys():
            for point in self._ledger.backend.history(self._ledger.state.run_id, name):
                if (point.step, point.timestamp) not in own:
                    self._rows.repeated.add(name, point.step, point.value)

    def last_step_before(self, moment: float) -> int:
        """The largest step that the record has, or had, of the time before `moment`."""
        end = round(1000 * moment)
        while True:
            rewinds = self._rows.rewinds()
            last = max((step for step, at in self._own_moments() if at < end), default=-1)
            if rewinds is not None and rewinds == self._rows.rewinds():
                return last
            # A rewind moves rows meanwhile.
            time.sleep(0.02)

    def begin_again(self) -> None:
        """Sends everything again where the acknowledged positions do not match the files."""
        for file in self._rows.files:
            self._rows.position(file).acknowledged = 0
        self.recover()

    def _paths(self) -> list[Path]:
        """The files, and those set aside."""
        names = list(self._rows.files)
        for rewind in self._ledger.read_info().rewinds if self._rows.is_rewound else ():
            names += [part_of(rewind, file).file for file in self._rows.files]
        paths = [self._ledger.path / name for name in names if name]
        return [path for path in paths if path.exists()]

    def _own_moments(self) -> Iterator[tuple[int, int]]:
        for path in self._paths():
            for row in iterate_rows(path):
                yield row.step, round(1000 * row.time)

    def _all_names(self) -> set[str]:
        return {name for path in self._paths() for name in read_last_steps(path)}

    def recover(self) -> None:
        """Find out which of the rows that were rewound the server has, by asking it.

        Rows were sent in the order of the file, so what has arrived of a file set aside is its
        beginning: up to the last row of which the server has a value.
        """

        @functools.cache
        def moments(name: str) -> set[tuple[int, int]]:
            points = self._ledger.backend.history(self._ledger.state.run_id, name)
            return {(point.step, point.timestamp) for point in points}

        self._rows.forget()
        for file in self._rows.files:
            # The server may have any of the rows, also where they are rewound before they are sent.
            self._rows.position(file).sending = body_bytes(self._ledger.path / file)
            self._rows.position(file).rewinds = []
        for rewind in self._ledger.read_info().rewinds:
            for file in self._rows.files:
                aside = self._ledger.path / part_of(rewind, file).file
                arrived = _arrived(aside, moments) if aside.is_file() else 0
                # Of the last row only a part may be there. What an earlier rewind took out is
                # there already, and not sent from here.
                self._rows.send_again(aside, 0, arrived)
                self._rows.remember(aside, arrived, rewind.step)
                self._rows.repeated_of[file] += 1
                self._rows.position(file).rewinds.append(arrived)
        self._ledger.save()


def _arrived(aside: Path, moments: Callable[[str], set[tuple[int, int]]]) -> int:
    """The end of the last row of which the server has a value, by its moments of each metric."""
    arrived = position = 0
    while True:
        piece = read_rows(aside, position)
        for row, end in zip(piece.rows, piece.ends, strict=True):
            point = (row.step, round(1000 * row.time))
            if any(point in moments(name) for name in row.values):
                arrived = end
        if piece.position == position:
            return arrived
        position = piece.position
