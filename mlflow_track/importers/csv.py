"""Reads CSV files of metrics: the folders of Lightning's CSVLogger, and single exported files."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

from mlflow_track.importers.source import FolderSource, ForeignRun, FoundRun, foreign_files
from mlflow_track.importers.yaml import read_yaml
from mlflow_track.record import layout
from mlflow_track.record.files import open_regular
from mlflow_track.record.rows import MOST_LINE_BYTES
from mlflow_track.series import Series
from mlflow_track.wording import count_text, shown

_PARAMS = "hparams.yaml"
# Lower case, as different programs call them.
_STEPS = ("step", "_step", "global_step", "global step", "trainer/global_step", "iteration")
_TIMES = ("time", "timestamp", "_timestamp", "wall_time", "wall time")
_MOST_SHOWN = 3


class CsvSource(FolderSource):
    """One file, or all files named metrics.csv in a folder and below it."""

    format: ClassVar[str] = "csv"
    what: ClassVar[str] = "metrics.csv of Lightning's CSVLogger, a .csv file with a column step"

    @classmethod
    def recognise(cls, where: str, *, is_certain: bool) -> CsvSource | None:
        root = Path(where)
        if root.is_dir():
            return cls(root) if is_certain or any(map(_has_steps, cls.files(root))) else None
        is_csv = is_certain or root.suffix.lower() == ".csv"
        return cls(root) if is_csv and _has_steps(root) else None

    @classmethod
    def files(cls, root: Path) -> Iterator[Path]:
        return (f for f in foreign_files(root) if f.name == layout.METRICS or not root.is_dir())

    def find(self) -> Iterator[FoundRun]:
        for file in self.files(self._root):
            yield FoundRun(str(file), partial(_read, file))


def single_files(folder: Path) -> list[Path]:
    """The exported files that lie in a folder: only the user knows which of them are runs."""
    names = [] if (folder / layout.RUN).exists() else sorted(os.listdir(folder))
    files = [folder / n for n in names if n.lower().endswith(".csv") and n != layout.METRICS]
    return [file for file in files if _has_steps(file)]


def _has_steps(file: Path) -> bool:
    try:
        with open_regular(file) as content:
            return _column(_cells(_header(content)), _STEPS) is not None
    except (OSError, ValueError):
        return False


def _column(names: Sequence[str], known: Sequence[str]) -> int | None:
    """The column that goes by the first of the known names that is there."""
    lower = [name.lower() for name in names]
    return next((lower.index(name) for name in known if name in lower), None)


def _read(file: Path) -> ForeignRun:
    is_logger = file.name == layout.METRICS
    with open_regular(file) as content:
        changed = os.fstat(content.fileno()).st_mtime
        table = _Table(content, changed, is_logger)
    params: dict[str, Any] = {}
    started = table.first_time
    beside = file.parent / _PARAMS
    if is_logger and os.path.lexists(beside):
        try:
            params = read_yaml(beside)
            started = min(started, os.lstat(beside).st_mtime)
        except (OSError, ValueError) as error:
            table.problems.append(f"the params are missing: {error}")
    return ForeignRun(
        identity=str(file),
        started=started,
        ended=max(table.last_time, started),
        # The folder of CSVLogger is <name>/version_<number>.
        experiment=file.parent.parent.name if is_logger else None,
        name=file.parent.name if is_logger else file.stem,
        params=params,
        metrics=table.series,
        problems=table.problems,
        notes=() if table.has_times else ("it has no times: all rows get the time of the file",),
    )


class _Table:
    """The content of a file, metric by metric.

    Args:
        content: The file.
        changed: The time of rows that have none, in Unix seconds.
        is_torn: Whether a last line without an end is not whole, as the logger ends all of them.
    """

    def __init__(self, content: BinaryIO, changed: float, is_torn: bool) -> None:
        names = _cells(_header(content))
        step, moment = _column(names, _STEPS), _column(names, _TIMES)
        if step is None:
            raise ValueError("there is no column step")
        self.has_times = moment is not None
        self.problems = [
            f"column {shown(name)} is there {count:,} times: the first one is imported"
            for name, count in Counter(names).items()
            if count > 1 and name
        ]
        self._bad: list[str] = []
        self._bad_count = 0
        columns = {
            at: Series(name, [], [], [])
            for at, name in enumerate(names)
            if at not in (step, moment) and name and name not in names[:at]
        }
        self.first_time = self.last_time = changed
        times: list[float] = []
        for number, line in enumerate(self._lines(content, is_torn), 2):
            try:
                cells = _cells(line)
                if len(cells) > len(names):
                    raise ValueError(f"{len(cells)} cells for {len(names)} columns")
                row_step = _step(cells[step])
                now = changed if moment is None else _time(cells[moment])
            except (ValueError, IndexError) as error:
                self._note(number, str(error))
                continue
            times.append(now)
            for at, cell in enumerate(cells):
                one = columns.get(at)
                if not cell or one is None:
                    continue
                try:
                    value = _number(cell)
                except ValueError:
                    self._note(number, f"{names[at]} is {shown(cell)}")
                    continue
                one.steps.append(row_step)  # type: ignore[union-attr]
                one.times.append(now)  # type: ignore[union-attr]
                one.values.append(value)  # type: ignore[union-attr]
        if times:
            self.first_time, self.last_time = min(times), max(times)
        self.series = list(columns.values())
        if self._bad_count:
            more = self._bad_count - len(self._bad)
            rest = [f"and {more:,} more"] if more else []
            count = count_text(self._bad_count, "place")
            self.problems.append(f"damaged in {count}: {'; '.join([*self._bad, *rest])}")

    def _note(self, number: int, why: str) -> None:
        self._bad_count += 1
        if len(self._bad) < _MOST_SHOWN:
            self._bad.append(f"line {number}: {why}")

    def _lines(self, content: BinaryIO, is_torn: bool) -> Iterator[bytes]:
        number = 1
        while line := content.readline(MOST_LINE_BYTES):
            number += 1
            if not line.endswith(b"\n"):
                if len(line) == MOST_LINE_BYTES:
                    self._note(
                        number, f"longer than {MOST_LINE_BYTES:,} bytes; the rest is not read"
                    )
                    return
                if is_torn:
                    self._note(number, "it has no end, so it is not whole")
                    return
            if line.strip():
                yield line


def _header(content: BinaryIO) -> bytes:
    line = content.readline(MOST_LINE_BYTES)
    if len(line) == MOST_LINE_BYTES:
        raise ValueError(f"the first line is longer than {MOST_LINE_BYTES:,} bytes")
    return line


def _cells(line: bytes) -> list[str]:
    text = line.decode("utf-8-sig").rstrip("\r\n")
    if '"' not in text:
        return text.split(",")
    try:
        return next(csv.reader([text]), [])
    except csv.Error as error:
        raise ValueError(str(error)) from None


def _number(cell: str) -> float:
    try:
        # Python reads 1_0 as 10.
        return float("" if "_" in cell else cell)
    except ValueError:
        raise ValueError(f"{shown(cell)} is not a number") from None


def _step(cell: str) -> int:
    number = _number(cell)
    if not number.is_integer():
        raise ValueError(f"the step is {shown(cell)}")
    return int(number)


def _time(cell: str) -> float:
    """Unix seconds; a date in ISO 8601 without a zone is one of UTC."""
    try:
        return _number(cell)
    except ValueError:
        pass
    import datetime

    found = datetime.datetime.fromisoformat(cell.replace("Z", "+00:00"))
    return found.replace(tzinfo=found.tzinfo or datetime.timezone.utc).timestamp()
