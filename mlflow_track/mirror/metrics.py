"""How the metrics of a record reach the server: each value once, also around rewinds and faults."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

from mlflow_track.backends.protocol import Cell, Unavailable
from mlflow_track.mirror.repeated import Repeated
from mlflow_track.mirror.rewinds import body_bytes, bytes_before, part_of, rewinds_of
from mlflow_track.mirror.state import Ledger, Position, name_at_server
from mlflow_track.record import layout
from mlflow_track.record.rows import (
    Row,
    Rows,
    iterate_rows,
    read_end,
    read_header,
    read_last_steps,
    read_rows,
)
from mlflow_track.record.schema import RewoundFile

_PIECE_BYTES = 512 << 10
_BATCH = 1000
_LEAST_BATCH = 50
_MOST_PIECES = 20


class ForkNeeded(Exception):
    """Rows that the server has were rewound, and the run shall go on in a new MLflow run."""


class MetricRows:
    """Sends files of metrics that share their names: what one was rewound, the other may repeat.

    Args:
        ledger: The run, the server, and what is acknowledged.
        files: The files' names in the run's folder.
        is_rewound: Whether the rewinds of run.json are rewinds of these files.
    """

    def __init__(self, ledger: Ledger, *files: str, is_rewound: bool) -> None:
        self._ledger = ledger
        self._files = files
        self._is_rewound = is_rewound
        self._names: dict[str, str] = {}
        self._batch = _BATCH
        self._repeated = Repeated()
        # How many rewinds of each file `_repeated` holds.
        self._repeated_of = dict.fromkeys(files, 0)

    def forget(self) -> None:
        """The rows go to another run of the server."""
        self._names.clear()
        self._repeated.clear()
        self._repeated_of = dict.fromkeys(self._files, 0)

    def send(self) -> bool:
        """Send rows, about as many as a minute ships; whether all that were there are sent.

        What the trainer adds meanwhile is for the next call: it makes a batch worth its cost.

        Raises:
            ForkNeeded: See there.
        """
        return any(not self.send_piece() for _ in range(_MOST_PIECES))

    def send_piece(self) -> bool:
        """Send about half a megabyte of rows of each file; whether there may be more."""
        rewinds = self._rewinds()
        if rewinds is None:
            time.sleep(0.02)
            return True
        self._account_for_rewinds(rewinds)
        is_more = False
        for file in self._files:
            position = self._position(file)
            piece = read_rows(self._ledger.path / file, position.acknowledged, _PIECE_BYTES)
            if self._rewinds() != rewinds:
                return True
            size_bytes = piece.position - position.acknowledged
            if size_bytes:
                self._send_rows(position, piece)
            is_more |= size_bytes >= _PIECE_BYTES
        return is_more

    # --- rows ---

    def _position(self, file: str) -> Position:
        return self._ledger.state.position(file)

    def _send_rows(self, position: Position, piece: Rows) -> None:
        if position.sending < piece.position:
            # Before the first byte leaves: an answer that gets lost must not be forgotten.
            position.sending = piece.position
            self._ledger.save(is_durable=True)
        for cells, end in self._batches(piece, position.acknowledged):
            self._send_cells(cells)
            position.acknowledged = end
            self._ledger.save()

    def _batches(self, piece: Rows, begin: int) -> Iterator[tuple[list[Cell], int]]:
        """Cells of whole rows, and the position that is reached when they have arrived."""
        done, size_bytes = begin, piece.position - begin
        cells: list[Cell] = []
        has_sent = False
        for row, end in zip(piece.rows, piece.ends, strict=True):
            new = list(self._cells(row))
            if cells and len(cells) + len(new) > self._batch:
                yield cells, done
                has_sent, cells = True, []
            cells += new
            while len(cells) > self._batch:
                yield cells[: self._batch], done
                cells = cells[self._batch :]
            done = end
        if not (has_sent and size_bytes >= _PIECE_BYTES):
            yield cells, piece.position
        # Else more rows follow: what is left over here fills a batch with them.

    def _send_cells(self, cells: list[Cell]) -> None:
        if not cells:
            return
        try:
            refused = self._ledger.sink.log_metrics(self._ledger.run_id, cells)
        except Unavailable:
            # A server that needs longer than a timeout for a batch gets smaller ones.
            self._batch = max(min(_LEAST_BATCH, _BATCH), self._batch // 2)
            raise
        self._batch = min(_BATCH, self._batch * 2)
        self._ledger.note_refused(refused)

    def _cells(self, row: Row) -> Iterator[Cell]:
        timestamp = round(1000 * row.time)
        for name, value in row.values.items():
            former = self._repeated.get(name, row.step)
            if former is not None:
                self._compare(name, value, former)
                continue
            if value - value != 0 and math.isinf(value):
                self._ledger.state.infinite.setdefault(name, row.step)
            yield Cell(self._name_at_server(name), value, timestamp, row.step)

    def _compare(self, name: str, value: float, former: float) -> None:
        """Note by how much an attempt differs from the one that it repeats."""
        differences = self._ledger.state.differences
        is_same = value == former or (math.isnan(value) and math.isnan(former))
        difference = 0.0 if is_same else abs(value - former)
        if not difference <= differences.get(name, -1.0):
            differences[name] = difference

    def _name_at_server(self, name: str) -> str:
        known = self._names.get(name)
        if known is None:
            others = (other for path in self._paths() for other in _names(path))
            known = self._names[name] = name_at_server(self._ledger, "metrics", name, others)
        return known

    # --- rewinds ---

    def _rewinds(self) -> dict[str, list[RewoundFile]] | None:
        """The rewinds that each file has behind it; None while one is going on."""
        if not self._is_rewound:
            return {file: [] for file in self._files}
        return rewinds_of(self._ledger, self._files)

    def _account_for_rewinds(self, rewinds: Mapping[str, list[RewoundFile]]) -> None:
        """Rows that a rewind took out and that the server has are not sent a second time."""
        for number in range(max(map(len, rewinds.values()))):
            for file in self._files:
                if number >= len(rewinds[file]):
                    continue
                rewind, known = rewinds[file][number], self._position(file).rewinds
                if number >= len(known):
                    self._account_for(file, rewind)
                if number >= self._repeated_of[file]:
                    self._remember(self._ledger.path / rewind.file, known[number])
                    self._repeated_of[file] += 1

    def _account_for(self, file: str, rewind: RewoundFile) -> None:
        position = self._position(file)
        acknowledged = bytes_before(position.acknowledged, rewind.removed)
        begun = bytes_before(max(position.acknowledged, position.sending), rewind.removed)
        if begun and self._forks():
            raise ForkNeeded
        if begun > acknowledged:
            # The answer to these rows got lost. Sent again as they were, they are there once.
            self._send_again(self._ledger.path / rewind.file, acknowledged, begun)
        position.acknowledged -= acknowledged
        position.sending = max(position.acknowledged, position.sending - begun)
        position.rewinds.append(begun)
        self._ledger.save()

    def _forks(self) -> bool:
        wanted = self._ledger.read_info().mirror
        return wanted is not None and wanted.rewind == "fork"

    def _send_again(self, aside: Path, begin: int, end: int) -> None:
        while begin < end:
            piece = read_rows(aside, begin, min(_PIECE_BYTES, end - begin))
            if piece.position == begin:
                return
            cells = (cell for row in piece.rows for cell in self._cells(row))
            while batch := list(islice(cells, self._batch)):
                self._send_cells(batch)
            begin = piece.position

    def _remember(self, aside: Path, size: int) -> None:
        """The rows in the first `size` bytes of `aside` are at the server."""
        position = 0
        while position < size:
            piece = read_rows(aside, position, min(_PIECE_BYTES, size - position))
            for row in piece.rows:
                for name, value in row.values.items():
                    self._repeated.add(name, row.step, value)
            if piece.position == position:
                break
            position = piece.position

    # --- when the server has rows that the record has not ---

    def find_foreign(self, last_steps: Mapping[str, int]) -> None:
        """Steps that somebody else logged, or that were lost here, are not sent once more.

        Another machine may have gone on with the run, and a power loss may have taken rows that
        had been sent already.

        Args:
            last_steps: Of each key at the server.
        """
        own = set(self._own_moments())
        for name in self._all_names():
            key = self._name_at_server(name)
            if key in last_steps:
                for cell in self._ledger.sink.history(self._ledger.run_id, key):
                    if (cell.step, cell.timestamp) not in own:
                        self._repeated.add(name, cell.step, cell.value)

    def last_step_before(self, moment: float) -> int:
        """The largest step that the record has, or had, of the time before `moment`."""
        end = round(1000 * moment)
        while True:
            rewinds = self._rewinds()
            last = max((step for step, at in self._own_moments() if at < end), default=-1)
            if rewinds is not None and rewinds == self._rewinds():
                return last
            # A rewind moves rows meanwhile.
            time.sleep(0.02)

    def begin_again(self) -> None:
        """What was acknowledged does not fit the files: all is sent again, and dropped there."""
        for file in self._files:
            self._position(file).acknowledged = 0
        self.recover()

    def _paths(self) -> list[Path]:
        """The files, and what was set aside of them."""
        names = list(self._files)
        for rewind in self._ledger.read_info().rewinds if self._is_rewound else ():
            names += [part_of(rewind, file).file for file in self._files]
        paths = [self._ledger.path / name for name in names if name]
        return [path for path in paths if path.exists()]

    def _own_moments(self) -> Iterator[tuple[int, int]]:
        for path in self._paths():
            for row in iterate_rows(path):
                yield row.step, round(1000 * row.time)

    def _all_names(self) -> set[str]:
        return {name for path in self._paths() for name in read_last_steps(path)}

    # --- when mirror.json was lost ---

    def recover(self) -> None:
        """Find out which of the rows that were rewound the server has, by asking it.

        Rows were sent in the order of the file, so what has arrived of a file set aside is its
        beginning: up to the last row of which the server has a value.
        """
        histories: dict[str, set[tuple[int, int]]] = {}
        self.forget()
        for file in self._files:
            # The server may have any of the rows, also where they are rewound before they are sent.
            self._position(file).sending = body_bytes(self._ledger.path / file)
            self._position(file).rewinds = []
        for rewind in self._ledger.read_info().rewinds:
            for file in self._files:
                aside = self._ledger.path / part_of(rewind, file).file
                arrived = self._arrived(aside, histories) if aside.is_file() else 0
                # Of the last row only a part may be there. What an earlier rewind took out is
                # there already, and not sent from here.
                self._send_again(aside, 0, arrived)
                self._remember(aside, arrived)
                self._repeated_of[file] += 1
                self._position(file).rewinds.append(arrived)
        self._ledger.save()

    def _arrived(self, aside: Path, histories: dict[str, set[tuple[int, int]]]) -> int:
        arrived = position = 0
        while True:
            piece = read_rows(aside, position, _PIECE_BYTES)
            for row, end in zip(piece.rows, piece.ends, strict=True):
                point = (row.step, round(1000 * row.time))
                if any(point in self._history(name, histories) for name in row.values):
                    arrived = end
            if piece.position == position:
                return arrived
            position = piece.position

    def _history(
        self, name: str, histories: dict[str, set[tuple[int, int]]]
    ) -> set[tuple[int, int]]:
        if name not in histories:
            points = self._ledger.sink.history(self._ledger.run_id, self._name_at_server(name))
            histories[name] = {(point.step, point.timestamp) for point in points}
        return histories[name]


def _names(path: Path) -> Iterator[str]:
    """The metrics that a file names at its beginning, or at its end."""
    if layout.is_long(path):
        yield from read_end(path, _PIECE_BYTES)[0].metrics
    else:
        yield from read_header(path)[0]
