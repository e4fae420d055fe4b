"""Sends the metrics of a record to a backend: each value once, despite rewinds and faults."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from mlflow_track.backends.protocol import MetricPoint, Unavailable, has
from mlflow_track.mirror.media import note_removed
from mlflow_track.mirror.progress import Position
from mlflow_track.mirror.repeated import Repeated
from mlflow_track.mirror.rewinds import bytes_before, rewinds_of
from mlflow_track.mirror.state import Ledger
from mlflow_track.record.row_format import MOST_STEP
from mlflow_track.record.rows import Row, Rows, read_rows
from mlflow_track.record.schema import RewoundFile

_PIECE_BYTES = 512 << 10
_BATCH = 1000
_LEAST_BATCH = 50
_MOST_PIECES = 20


class ForkNeeded(Exception):
    """Rows that the destination has were rewound, and the run is to continue in another one."""


class MetricRows:
    """Sends files of metrics that share their names: what one was rewound, the other may repeat.

    Args:
        ledger: The run, the server, and its acknowledgements.
        files: The files' names in the run's folder.
        is_rewound: Whether the rewinds of run.json are rewinds of these files.
    """

    def __init__(self, ledger: Ledger, *files: str, is_rewound: bool) -> None:
        self._ledger = ledger
        self.files = files
        self.is_rewound = is_rewound
        self._batch = _BATCH
        self.repeated = Repeated()
        # How many rewinds of each file `repeated` holds.
        self.repeated_of = dict.fromkeys(files, 0)

    def forget(self) -> None:
        """Send the rows to a new run of the server."""
        self.repeated.clear()
        self.repeated_of = dict.fromkeys(self.files, 0)

    def send(self) -> bool:
        """Send rows, about as many as a minute ships; whether all that were there are sent.

        Rows added meanwhile are for the next call: together they make a batch worth its cost.

        Raises:
            ForkNeeded: See there.
        """
        return any(not self.send_piece() for _ in range(_MOST_PIECES))

    def send_piece(self) -> bool:
        """Send about half a megabyte of rows of each file; whether there may be more."""
        rewinds = self.rewinds()
        if rewinds is None:
            time.sleep(0.02)
            return True
        self._account_for_rewinds(rewinds)
        is_more = False
        for file in self.files:
            position = self.position(file)
            piece = read_rows(self._ledger.path / file, position.acknowledged, _PIECE_BYTES)
            if self.rewinds() != rewinds:
                return True
            size_bytes = piece.position - position.acknowledged
            if size_bytes:
                self._send_rows(file, piece)
            is_more |= size_bytes >= _PIECE_BYTES
        return is_more

    # --- rows ---

    def position(self, file: str) -> Position:
        return self._ledger.state.position(file)

    def _send_rows(self, file: str, piece: Rows) -> None:
        position = self.position(file)
        if position.sending < piece.position:
            # Before the first byte leaves: an answer that gets lost must not be forgotten.
            position.sending = piece.position
            self._ledger.save(is_durable=True)
        for points, end in self._batches(file, piece):
            self._send_points(points)
            position.acknowledged, position.values = end, 0
            self._ledger.save()

    def _batches(self, file: str, piece: Rows) -> Iterator[tuple[list[MetricPoint], int]]:
        """Points of whole rows, and the position that is reached when they have arrived."""
        begin = done = self.position(file).acknowledged
        size_bytes = piece.position - begin
        points: list[MetricPoint] = []
        has_sent = is_cut = False
        for end, new in self._points(file, piece):
            if points and len(points) + len(new) > self._batch:
                yield points, done
                has_sent, is_cut, points = True, False, []
            points += new
            while len(points) > self._batch:
                # Of the row only a part: it counts when all of it has arrived.
                yield points[: self._batch], done
                is_cut, points = True, points[self._batch :]
            done = end
        if is_cut or not (has_sent and size_bytes >= _PIECE_BYTES):
            yield points, piece.position
        # Else more rows follow: the remainder fills a batch with them.

    def _send_points(self, points: list[MetricPoint]) -> None:
        if not points:
            return
        try:
            refused = self._ledger.backend.log_metrics(points)
        except Unavailable:
            # A server that needs longer than a timeout for a batch gets smaller ones.
            self._batch = max(min(_LEAST_BATCH, _BATCH), self._batch // 2)
            raise
        self._batch = min(_BATCH, self._batch * 2)
        self._ledger.note_refused(refused)

    def _points(self, file: str, piece: Rows) -> Iterator[tuple[int, list[MetricPoint]]]:
        """For each row of a piece the position after it, and its points that are to be sent."""
        position, others = self.position(file), self._ledger.state.text(but=file)
        known, begin, rewinds = position.values, position.acknowledged, position.rewinds_text()
        for row, end in zip(piece.rows, piece.ends, strict=True):
            within = f"{others}{file}={begin}:{end}:{rewinds}:"
            after = f"{others}{file}={end}:{end}:{rewinds}:0"
            yield end, self._points_of(row, known, within, after)
            known, begin = 0, end

    def _points_of(self, row: Row, known: int, within: str, after: str) -> list[MetricPoint]:
        """The points of a row, without the first `known` values, which have arrived.

        Args:
            row: The row.
            known: The number of its values that have arrived.
            within: The position after one of its values, without the number of the value.
            after: The position after all of them.
        """
        points = []
        timestamp = round(1000 * row.time)
        for number, (name, value) in enumerate(row.values.items(), 1):
            if number <= known:
                continue
            earlier = self.repeated.get(name, row.step)
            if earlier is not None:
                self._compare(name, value, earlier)
                continue
            where = after if number == len(row.values) else f"{within}{number}"
            points.append(MetricPoint(name, value, timestamp, row.step, where))
        return points

    def _compare(self, name: str, value: float, earlier: float) -> None:
        """Note by how much an attempt differs from the one that it repeats."""
        differences = self._ledger.state.differences
        is_same = value == earlier or (math.isnan(value) and math.isnan(earlier))
        difference = 0.0 if is_same else abs(value - earlier)
        if not difference <= differences.get(name, -1.0):
            differences[name] = difference

    # --- rewinds ---

    def rewinds(self) -> dict[str, list[RewoundFile]] | None:
        """The rewinds that each file has behind it; None during one."""
        if not self.is_rewound:
            return {file: [] for file in self.files}
        return rewinds_of(self._ledger, self.files)

    def _account_for_rewinds(self, rewinds: Mapping[str, list[RewoundFile]]) -> None:
        """Rows that a rewind took out and that the server has are not sent a second time."""
        for number in range(max(map(len, rewinds.values()))):
            for file in self.files:
                if number >= len(rewinds[file]):
                    continue
                rewind, known = rewinds[file][number], self.position(file).rewinds
                step = self._step_of(number)
                if number >= len(known):
                    self._account_for(file, rewind, step)
                if number >= self.repeated_of[file]:
                    known = self.position(file).rewinds
                    self.remember(self._ledger.path / rewind.file, known[number], step)
                    self.repeated_of[file] += 1

    def _account_for(self, file: str, rewind: RewoundFile, step: int) -> None:
        position = self.position(file)
        acknowledged = bytes_before(position.acknowledged, rewind.removed)
        begun = bytes_before(max(position.acknowledged, position.sending), rewind.removed)
        if begun and self._forks():
            raise ForkNeeded
        after = Position(
            acknowledged=position.acknowledged - acknowledged,
            sending=max(position.acknowledged - acknowledged, position.sending - begun),
            rewinds=[*position.rewinds, begun],
            # Unless it is sent again below, the row of which a part arrived is still in the file.
            values=position.values if begun == acknowledged else 0,
        )
        if (begun or self._ledger.state.media.last_step > step) and self._can_rewind:
            note_removed(self._ledger, step)
            self._ledger.backend.rewind(step)
        if begun > acknowledged:
            # The answer to these rows got lost. Sent again as they were, they are there once.
            others = f"{self._ledger.state.text(but=file)}{file}="
            self.send_again(
                *(self._ledger.path / rewind.file, acknowledged, begun, self._last_kept(step)),
                known=position.values,
                within=f"{others}{position.text().rpartition(':')[0]}:",
                after=others + after.text(),
            )
        self._ledger.state.files[file] = replace(after, unknown=position.unknown)
        self._ledger.save()

    def _forks(self) -> bool:
        wanted = self._ledger.read_info().mirror
        is_wanted = wanted is not None and wanted.rewind == "fork"
        return is_wanted and has(self._ledger.backend, "fork")

    def send_again(
        self,
        aside: Path,
        begin: int,
        end: int,
        last_step: int = MOST_STEP,
        *,
        known: int = 0,
        within: str = "",
        after: str = "",
    ) -> None:
        """Send rows that were set aside, up to a step; the rest of it: see `_points_of`."""
        while begin < end:
            piece = read_rows(aside, begin, min(_PIECE_BYTES, end - begin))
            if piece.position == begin:
                return
            points: list[MetricPoint] = []
            for row in piece.rows:
                if row.step <= last_step:
                    points += self._points_of(row, known, within, after)
                known = 0
            for at in range(0, len(points), self._batch):
                self._send_points(points[at : at + self._batch])
            begin = piece.position

    def _step_of(self, number: int) -> int:
        """The last step that a rewind left, by the number of the rewind."""
        info = self._ledger.read_info()
        rewind = info.rewinds[number] if number < len(info.rewinds) else info.rewinding
        return rewind.step if rewind is not None else MOST_STEP

    def _last_kept(self, step: int) -> int:
        """The last step that a destination keeps of what a rewind to `step` took out here."""
        return step if self._can_rewind else MOST_STEP

    @property
    def _can_rewind(self) -> bool:
        return has(self._ledger.backend, "rewind")

    def remember(self, aside: Path, size: int, step: int) -> None:
        """The rows in the first `size` bytes of `aside` are there, but for what `rewind` removed.

        Args:
            aside: The rows that a rewind took out of a file.
            size: As far as they have arrived.
            step: The last step that the rewind left.
        """
        position = 0
        last = self._last_kept(step)
        while position < size:
            piece = read_rows(aside, position, min(_PIECE_BYTES, size - position))
            for row in piece.rows:
                for name, value in row.values.items() if row.step <= last else ():
                    self.repeated.add(name, row.step, value)
            if piece.position == position:
                break
            position = piece.position
