"""Reads what neptune-exporter has saved of Neptune: Parquet files by run, beside their files."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy

from mlflow_track.importers.media import histogram_json, media_of
from mlflow_track.importers.source import (
    FolderSource,
    ForeignFile,
    ForeignMedia,
    ForeignRun,
    FoundRun,
    file_inside,
    foreign_files,
    local_file,
    made_file,
    not_metrics,
)
from mlflow_track.record.files import open_regular
from mlflow_track.record.schema import FAILED, FINISHED, Attempt, Provenance
from mlflow_track.series import Series
from mlflow_track.wording import count_text, expected

_PART = re.compile(r".+_part_\d{1,6}\.parquet")
_COLUMNS = ("project_id", "run_id", "attribute_path", "attribute_type", "step", "timestamp")
# The kinds of attributes with one value, and the column of each.
_SCALARS = {
    "float": "float_value",
    "int": "int_value",
    "string": "string_value",
    "bool": "bool_value",
    "datetime": "datetime_value",
    "string_set": "string_set_value",
}
_SYS, _MONITORING = "sys/", "monitoring/"
# Steps have six decimal places at the most.
_MOST_FACTOR = 10**6


class NeptuneSource(FolderSource):
    """The folder that was given to neptune-exporter as --data-path, or one around it."""

    format: ClassVar[str] = "neptune"
    what: ClassVar[str] = "Parquet files of neptune-exporter"

    @classmethod
    def files(cls, root: Path) -> Iterator[Path]:
        return (file for file in foreign_files(root) if _PART.fullmatch(file.name))

    def find(self) -> Iterator[FoundRun]:
        runs: dict[Path, list[Path]] = {}
        for file in self.files(self._root):
            name, _, _ = file.name.rpartition("_part_")
            runs.setdefault(file.parent / name, []).append(file)
        for place, files in runs.items():
            files.sort(key=_number)
            yield FoundRun(str(place), partial(_read, files))


def _number(file: Path) -> int:
    return int(file.stem.rpartition("_part_")[2])


def _read(files: list[Path]) -> ForeignRun:
    problems: list[str] = []
    missing = set(range(_number(files[-1]) + 1)) - set(map(_number, files))
    if missing:
        problems.append(f"{count_text(len(missing), 'part')} of the run missing")
    tables = [table for file in files if (table := _table(file, problems)) is not None]
    if not tables:
        raise ValueError("; ".join(problems))
    return _Reading(files[0], tables, problems).result()


def _table(file: Path, problems: list[str]) -> Any:
    """The content of a file; None where it cannot be read, which becomes a problem."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError("Parquet needs pyarrow: pip install pyarrow") from None
    try:
        with open_regular(file) as content:
            table = pyarrow.parquet.read_table(content)
    except (pyarrow.ArrowException, OSError, ValueError, MemoryError) as error:
        problems.append(f"{file.name} cannot be read: {' '.join(str(error).split())}")
        return None
    absent = [name for name in _COLUMNS if name not in table.column_names]
    if absent:
        has = expected(f"the columns of {file.name}", f"those of a run, with {absent[0]}", "others")
        problems.append(has)
        return None
    return table


class _Reading:
    """Reads one run from its tables: an attribute in each row, of one of a dozen kinds."""

    def __init__(self, file: Path, tables: list[Any], problems: list[str]) -> None:
        # Beside `data/<project>/` lies `files/<project>/`.
        self._files_root = file.parent.parent.parent / "files" / file.parent.name
        self._tables = tables
        self._problems = problems
        self._notes: list[str] = []
        self._others: Counter[str] = Counter()
        self._files: dict[str, ForeignFile] = {}
        self._media: list[ForeignMedia] = []
        self._scalars: dict[str, Any] = {}
        self._texts: dict[str, list[str]] = {}
        self._points: dict[str, list[tuple[Any, Any, Any]]] = {}

    def result(self) -> ForeignRun:
        project = run_id = ""
        for table in self._tables:
            first = table.slice(0, 1).to_pylist()
            if first and not run_id:
                project, run_id = str(first[0]["project_id"]), str(first[0]["run_id"])
            self._take(table)
        self._notes += not_metrics(self._others)
        for path, lines in self._texts.items():
            content = "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)
            name = f"{path}.txt"
            self._files[name] = made_file(name, content.encode(errors="backslashreplace"))
        own = {k.removeprefix(_SYS): v for k, v in self._scalars.items() if k.startswith(_SYS)}
        points = self._points.items()
        series = [Series(k, *map(numpy.concatenate, zip(*v, strict=True))) for k, v in points]
        metrics = self._metrics([one for one in series if not one.name.startswith(_MONITORING)])
        created, changed = (own.get(f"{when}_time") for when in ("creation", "modification"))
        times = [float(numpy.min(one.times)) for one in metrics if len(one.times)]
        started = created.timestamp() if created is not None else min(times, default=0.0)
        parent = own.get("forking/parent")
        tags = {"neptune.run_id": run_id}
        for name in ("tags", "group_tags", "description"):
            if own.get(name):
                value = own[name]
                tags[f"neptune.{name}"] = ", ".join(value) if isinstance(value, list) else value
        return ForeignRun(
            identity=f"{project}\n{run_id}",
            parent=f"{project}\n{parent}" if parent else None,
            started=started,
            ended=changed.timestamp() if changed is not None and not times else None,
            status=FAILED if own.get("failed") else FINISHED,
            experiment=project or None,
            name=own.get("name") or run_id or None,
            params={k: v for k, v in self._scalars.items() if not k.startswith(_SYS)},
            tags=tags,
            metrics=metrics,
            # What Neptune measured of the machine; its steps are times, so here they are counted.
            system_metrics=[
                one._replace(
                    name=f"system/{one.name.removeprefix(_MONITORING)}",
                    steps=numpy.arange(len(one.times)),
                )
                for one in series
                if one.name.startswith(_MONITORING)
            ],
            files=list(self._files.values()),
            media=self._media,
            attempt=Attempt(host=own.get("hostname")),
            provenance=Provenance(user=own.get("owner")),
            problems=self._problems,
            notes=self._notes,
        )

    def _take(self, table: Any) -> None:
        import pyarrow

        kinds = numpy.asarray(table["attribute_type"].to_pylist(), dtype=object)
        for kind in dict.fromkeys(kinds):
            rows = table.take(numpy.flatnonzero(kinds == kind))
            try:
                if kind == "float_series":
                    self._take_points(rows)
                elif kind in _SCALARS:
                    for row in rows.select(["attribute_path", _SCALARS[kind]]).to_pylist():
                        self._scalars[row["attribute_path"]] = row[_SCALARS[kind]]
                elif kind == "string_series":
                    for row in rows.select(["attribute_path", "string_value"]).to_pylist():
                        line = row["string_value"] or ""
                        self._texts.setdefault(row["attribute_path"], []).append(line)
                elif kind == "histogram_series":
                    for row in rows.to_pylist():
                        self._take_histogram(row)
                elif kind in ("file", "file_series", "artifact"):
                    for row in rows.to_pylist():
                        self._take_file(row)
                else:
                    self._others.update(rows["attribute_path"].to_pylist())
            except (pyarrow.ArrowException, KeyError, TypeError, ValueError) as error:
                self._problems.append(f"left out the values of kind {kind!r:.100}: {error}")

    def _take_points(self, rows: Any) -> None:
        steps = rows["step"].cast("float64").to_numpy()
        times = rows["timestamp"].cast("timestamp[ms]").cast("int64").to_numpy() / 1000
        values = rows["float_value"].cast("float64").to_numpy(zero_copy_only=False)
        names = numpy.asarray(rows["attribute_path"].to_pylist(), dtype=object)
        order = numpy.argsort(names, kind="stable")
        starts = numpy.flatnonzero(names[order][1:] != names[order][:-1]) + 1
        for part in numpy.split(order, starts):
            if len(part):
                columns = steps[part], times[part], values[part]
                self._points.setdefault(str(names[part[0]]), []).append(columns)

    def _metrics(self, series: list[Series]) -> list[Series]:
        factor = _factor(numpy.concatenate([one.steps for one in series])) if series else 1
        if factor > 1:
            self._notes.append(
                f"its steps are not integers: here they are {factor:,} times as large"
            )
        return [
            one._replace(steps=numpy.rint(numpy.asarray(one.steps) * factor).astype("int64"))
            for one in series
        ]

    def _take_file(self, row: dict[str, Any]) -> None:
        attribute, path = row["attribute_path"], (row.get("file_value") or {}).get("path")
        if not path:
            return
        name = attribute
        if row["attribute_type"] == "file_series" and row["step"] is not None:
            name = f"{attribute}/step-{int(row['step']):09d}"
        suffix = PurePosixPath(path).suffix
        name = name if name.endswith(suffix) else name + suffix
        try:
            file = local_file(file_inside(self._files_root, path), name)
            if row["attribute_type"] == "file_series" and suffix == ".png":
                step, time = _moment(row)
                self._media.append(ForeignMedia("image", attribute, step, time, *file[1:]))
            else:
                self._files[name] = file
        except (OSError, ValueError) as error:
            self._problems.append(f"left out {attribute!r:.300}: {error}")

    def _take_histogram(self, row: dict[str, Any]) -> None:
        attribute, held = row["attribute_path"], row.get("histogram_value") or {}
        try:
            content = histogram_json(held.get("edges"), held.get("values"))
            self._media.append(media_of("histogram", attribute, *_moment(row), content))
        except ValueError as error:
            self._problems.append(f"left out {attribute!r:.300}: {error}")


def _moment(row: dict[str, Any]) -> tuple[int, float]:
    """The step and the Unix time of an item of a series; raises ValueError where it has none."""
    if row["step"] is None or row["timestamp"] is None:
        raise ValueError("it has no step or no time")
    return int(row["step"]), row["timestamp"].timestamp()


def _factor(steps: Any) -> int:
    """The smallest power of ten that makes integers of all steps."""
    factor = 1
    while factor < _MOST_FACTOR:
        numbers = steps * factor
        if numpy.all(numpy.abs(numbers - numpy.rint(numbers)) < 1e-6):
            break
        factor *= 10
    return factor
