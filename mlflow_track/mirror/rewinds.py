"""The rewinds of a run, as each of its files of metrics has them behind it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mlflow_track.mirror.state import Ledger
from mlflow_track.record import layout
from mlflow_track.record.info import is_held
from mlflow_track.record.rows import read_header
from mlflow_track.record.schema import Rewind, RewoundFile


def rewinds_of(ledger: Ledger, files: Sequence[str]) -> dict[str, list[RewoundFile]] | None:
    """The ranges that rewinds removed from each file, in order; None during a rewind."""
    info = ledger.read_info()
    current = info.rewinding
    if current and is_held(ledger.path):
        return None
    rewinds = {}
    for file in files:
        rewinds[file] = [part_of(rewind, file) for rewind in info.rewinds]
        # The trainer was killed in the middle of it: of each file it has taken all, or nothing.
        if current and _has_happened(ledger, file, part_of(current, file)):
            rewinds[file].append(part_of(current, file))
    return rewinds


def part_of(rewind: Rewind, file: str) -> RewoundFile:
    """The part that a rewind removed from one file of a run."""
    return rewind if file == layout.METRICS else rewind.long or RewoundFile()


def bytes_before(position: int, ranges: Sequence[Sequence[int]]) -> int:
    """Counts the bytes of the ranges (begin, end) before `position`."""
    return sum(max(0, min(end, position) - begin) for begin, end in ranges)


def body_bytes(path: Path) -> int:
    """The bytes after the header of a file of metrics; 0 where there is none."""
    try:
        return path.stat().st_size - read_header(path)[1]
    except FileNotFoundError:
        return 0


def _has_happened(ledger: Ledger, file: str, rewind: RewoundFile) -> bool:
    return bool(rewind.rows) and body_bytes(ledger.path / file) != rewind.size_before
