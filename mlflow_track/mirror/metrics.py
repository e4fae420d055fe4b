"""How the rows of a file of metrics reach the server: each once, also around rewinds and faults."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from mlflow_track.backends.protocol import Cell, Unavailable
from mlflow_track.mirror.repeated import Repeated
from mlflow_track.mirror.state import Ledger, Position, name_at_server
from mlflow_track.record.info import is_held
from mlflow_track.record.rows import Row, Rows, iterate_rows, read_header, read_rows
from mlflow_track.record.schema import Rewind

_PIECE_BYTES = 512 << 10
_BATCH = 1000
_LEAST_BATCH = 50
_MOST_PIECES = 20


class ForkNeeded(Exception):
    """Rows that the server has were rewound, and the run shall go on in a new MLflow run."""


class MetricRows:
    """Sends one file of metrics.

    Args:
        ledger: The run, the server, and what is acknowledged.
        file: The file's name in the run's folder.
        is_rewound: Whether the rewinds of run.json are rewinds of this file.
    """

    def __init__(self, ledger: Ledger, file: str, *, is_rewound: bool) -> None:
        self._ledger = ledger
        self._file = file
        self._is_rewound = is_rewound
        self._names: dict[str, str] = {}
        self._batch = _BATCH
        self._repeated = Repeated()
        # How many rewinds `_repeated` holds.
        self._repeated_of = 0

    def forget(self) -> None:
        """The rows go to another run of the server."""
        self._names.clear()
        self._repeated.clear()
        self._repeated_of = 0

    def send(self) -> bool:
        """Send rows, about as many as a minute ships; whether all that were there are sent.

        What the trainer adds meanwhile is for the next call: it makes a batch worth its cost.

        Raises:
            ForkNeeded: See there.
        """
        return any(not self.send_piece() for _ in range(_MOST_PIECES))

    def send_piece(self) -> bool:
        """Send about half a megabyte of rows; whether there may be more."""
        rewinds = self._rewinds()
        if rewinds is None:
            time.sleep(0.02)
            return True
        self._account_for_rewinds(rewinds)
        piece = read_rows(self._path, self._position.acknowledged, _PIECE_BYTES)
        if self._rewinds() != rewinds:
            return True
        size_bytes = piece.position - self._position.acknowledged
        if size_bytes:
            self._send_rows(piece)
        return size_bytes >= _PIECE_BYTES

    # --- rows ---

    @property
    def _path(self) -> Path:
        return self._ledger.path / self._file

    @property
    def _position(self) -> Position:
        return self._ledger.state.position(self._file)

    def _send_rows(self, piece: Rows) -> None:
        position = self._position
        if position.sending < piece.position:
            # Before the first byte leaves: an answer that gets lost must not be forgotten.
            position.sending = piece.position
            self._ledger.save()
        for cells, end in self._batches(piece, piece.position - position.acknowledged):
            self._send_cells(cells)
            position.acknowledged = end
            self._ledger.save()

    def _batches(self, piece: Rows, size_bytes: int) -> Iterator[tuple[list[Cell], int]]:
        """Cells of whole rows, and the position that is reached when they have arrived."""
        done = self._position.acknowledged
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
            names, _ = read_header(self._path)
            known = self._names[name] = name_at_server(self._ledger, "metrics", name, names)
        return known

    # --- rewinds ---

    def _rewinds(self) -> Sequence[Rewind] | None:
        """The rewinds that the file has behind it; None while one is going on."""
        if not self._is_rewound:
            return []
        info = self._ledger.read_info()
        done, current = info.rewinds, info.rewinding
        if not current:
            return done
        if is_held(self._ledger.path):
            return None
        # The trainer was killed in the middle of it: either all of it happened, or nothing.
        _, header_bytes = read_header(self._path)
        has_happened = self._path.stat().st_size - header_bytes != current.size_before
        return [*done, current] if has_happened else done

    def _account_for_rewinds(self, rewinds: Sequence[Rewind]) -> None:
        """Rows that a rewind took out and that the server has are not sent a second time."""
        for number, rewind in enumerate(rewinds):
            if number >= len(self._position.rewinds):
                self._account_for(rewind)
            if number >= self._repeated_of:
                self._remember(self._ledger.path / rewind.file, self._position.rewinds[number])
                self._repeated_of += 1

    def _account_for(self, rewind: Rewind) -> None:
        position = self._position
        acknowledged = _bytes_before(position.acknowledged, rewind.removed)
        begun = _bytes_before(max(position.acknowledged, position.sending), rewind.removed)
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
        before = round(1000 * moment)
        return max(
            (step for step, timestamp in self._own_moments() if timestamp < before), default=-1
        )

    def begin_again(self) -> None:
        """What was acknowledged does not fit the file: all is sent again, and dropped there."""
        self._position.acknowledged = self._position.sending = 0
        self.recover()

    def _files(self) -> list[Path]:
        rewinds = self._ledger.read_info().rewinds
        paths = [self._path, *(self._ledger.path / rewind.file for rewind in rewinds)]
        return [path for path in paths if path.exists()]

    def _own_moments(self) -> Iterator[tuple[int, int]]:
        for path in self._files():
            for row in iterate_rows(path):
                yield row.step, round(1000 * row.time)

    def _all_names(self) -> set[str]:
        return {name for path in self._files() for name in read_header(path)[0]}

    # --- when mirror.json was lost ---

    def recover(self) -> None:
        """Find out which of the rows that were rewound the server has, by asking it.

        Rows were sent in the order of the file, so what has arrived of a file set aside is its
        beginning: up to the last row of which the server has a value.
        """
        histories: dict[str, set[tuple[int, int]]] = {}
        known = []
        for rewind in self._ledger.read_info().rewinds:
            aside = self._ledger.path / rewind.file
            arrived = self._arrived(aside, histories)
            # Of the last row only a part may be there.
            self._send_again(aside, 0, arrived)
            known.append(arrived)
        self._position.rewinds = known
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


def last_step(path: Path) -> int:
    """The largest step in a file of metrics; -1 where it has none."""
    return max((row.step for row in iterate_rows(path)), default=-1)


def _bytes_before(position: int, ranges: Sequence[tuple[int, int]]) -> int:
    """How many bytes of the ranges (begin, end) lie before `position`."""
    return sum(max(0, min(end, position) - begin) for begin, end in ranges)
