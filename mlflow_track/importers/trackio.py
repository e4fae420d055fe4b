"""Reads the databases of Trackio: a file for each project, beside the media of its runs."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import orjson

from mlflow_track.importers import sqlite
from mlflow_track.importers.media import histogram_json, media_of
from mlflow_track.importers.source import (
    FolderSource,
    ForeignFile,
    ForeignMedia,
    ForeignRun,
    FoundRun,
    add_value,
    file_inside,
    foreign_files,
    local_file,
    not_metrics,
)
from mlflow_track.record.files import legible
from mlflow_track.record.schema import Provenance
from mlflow_track.series import Series
from mlflow_track.wording import count_text

_ENDING = ".db"
_MEDIA = "media"
_WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_SYSTEM = "system/"


class TrackioSource(FolderSource):
    """A project's database, or the folder TRACKIO_DIR with those of several."""

    format: ClassVar[str] = "trackio"
    what: ClassVar[str] = "databases of Trackio"

    @classmethod
    def files(cls, root: Path) -> Iterator[Path]:
        for file in foreign_files(root):
            if file.suffix == _ENDING or file == root:
                columns = sqlite.columns_of(file, "metrics")
                if {"timestamp", "run_name", "step", "metrics"} <= set(columns):
                    yield file

    def find(self) -> Iterator[FoundRun]:
        for path in self.files(self._root):
            project = _Project(path)
            for key, name in project.runs():
                yield FoundRun(f"{path}: {name}", partial(project.read, key, name))


class _Project:
    """One database. In those of the first versions a run has a name and no id."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._key = "run_id" if "run_id" in sqlite.columns_of(path, "metrics") else "run_name"

    def runs(self) -> list[tuple[str, str]]:
        """The key and the name of each run, the oldest first."""
        found: dict[str, str] = {}
        with sqlite.opened(self._path) as database:
            tables = ("configs", "metrics")
            for table in (t for t in tables if self._key in sqlite.columns_of(self._path, t)):
                query = f"SELECT {self._key}, run_name FROM {table} GROUP BY 1 ORDER BY min(id)"
                for key, name in sqlite.rows(database, query, (), []):
                    found.setdefault(_text(key), _text(name))
        return list(found.items())

    def read(self, key: str, name: str) -> ForeignRun:
        problems: list[str] = []
        with sqlite.opened(self._path) as database:
            metrics = _History(self._path.parent / _MEDIA)
            system = _History(None)

            def select(columns: str, table: str) -> Iterator[tuple[Any, ...]]:
                if self._key in sqlite.columns_of(self._path, table):
                    query = f"SELECT {columns} FROM {table} WHERE {self._key} = ? ORDER BY id"
                    yield from sqlite.rows(database, query, (key,), problems)

            for moment, step, values in select("timestamp, step, metrics", "metrics"):
                metrics.add(moment, step, values)
            for step, (moment, values) in enumerate(select("timestamp, metrics", "system_metrics")):
                system.add(moment, step, values)
            config: dict[str, Any] = {}
            for (text,) in select("config", "configs"):
                found = _mapping(text)
                if found is None:
                    problems.append("the params are damaged")
                config = found or {}
        created = _time(config.pop("_Created", None))
        user, group = config.pop("_Username", None), config.pop("_Group", None)
        times = [time for one in metrics.series.values() for time in one.times]
        if created is None:
            created = min(times, default=os.stat(self._path).st_mtime)
        first = "" if self._key == "run_id" else repr(min(times, default=0.0))
        return ForeignRun(
            identity="\n".join((self._path.stem, key, first)),
            started=created,
            experiment=self._path.stem,
            name=name,
            params=config,
            tags={"trackio.group": str(group)} if group else {},
            metrics=list(metrics.series.values()),
            system_metrics=[
                one._replace(name=_SYSTEM + one.name.removeprefix(_SYSTEM))
                for one in system.series.values()
            ],
            files=list(metrics.files.values()),
            media=metrics.media,
            provenance=Provenance(user=str(user) if user else None),
            problems=[*problems, *metrics.problems(), *system.problems()],
            notes=not_metrics(metrics.others),
        )


class _History:
    """Collects the rows of a run.

    Args:
        media: The folder with the files that values name; None where they cannot.
    """

    def __init__(self, media: Path | None) -> None:
        self.series: dict[str, Series] = {}
        self.files: dict[str, ForeignFile] = {}
        self.media: list[ForeignMedia] = []
        self.others: Counter[str] = Counter()
        self._media = media
        self._damaged = 0
        self._missing: list[str] = []

    def add(self, moment: Any, step: Any, content: Any) -> None:
        time, values = _time(moment), _mapping(content)
        if time is None or not isinstance(step, int) or not values:
            self._damaged += 1
            return
        self._add(time, step, values, "")

    def _add(self, time: float, step: int, values: Mapping[str, Any], above: str) -> None:
        for key, value in values.items():
            name = f"{above}{key}"
            value = _WORDS.get(value, value) if isinstance(value, str) else value
            if isinstance(value, int | float):
                add_value(self.series, name, step, time, value)
            elif isinstance(value, dict) and "_type" not in value:
                self._add(time, step, value, f"{name}/")
            elif self._media is None or not self._take_media(name, step, time, value):
                self.others[name] += 1

    def _take_media(self, key: str, step: int, time: float, value: Any) -> bool:
        """Take an image, a text, a histogram or another file; whether it is one of them."""
        held = value if isinstance(value, dict) else {}
        path = held.get("file_path")
        try:
            if isinstance(value, str):
                content = legible(value).encode()
                self.media.append(media_of("text", key, step, time, content))
            elif held.get("_type") == "trackio.histogram":
                content = histogram_json(held.get("bins"), held.get("values"))
                self.media.append(media_of("histogram", key, step, time, content))
            elif isinstance(path, str) and self._media is not None:
                # Below the project and the run: the step, and the file.
                name = "/".join((_MEDIA, *PurePosixPath(path).parts[2:]))
                file = local_file(file_inside(self._media, path), name)
                if held.get("_type") == "trackio.image" and path.endswith(".png"):
                    self.media.append(ForeignMedia("image", key, step, time, *file[1:]))
                else:
                    self.files[name] = file
            else:
                return False
        except (OSError, ValueError) as error:
            self._missing.append(f"left out {key!r:.300} of step {step}: {error}")
        return True

    def problems(self) -> list[str]:
        damaged = count_text(self._damaged, "damaged row")
        return [*([f"left out {damaged}"] if self._damaged else []), *self._missing]


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _mapping(content: Any) -> dict[str, Any] | None:
    """The mapping in a text; None where it is damaged. Python's parser knows NaN and Infinity."""
    for parse in (orjson.loads, json.loads):
        with suppress(ValueError, TypeError, RecursionError):
            found = parse(content)
            return found if isinstance(found, dict) else None
    return None


def _time(moment: Any) -> float | None:
    """Unix seconds of a date in ISO 8601 with its zone; None where it is something else."""
    try:
        return datetime.fromisoformat(_text(moment).replace("Z", "+00:00")).timestamp()
    except (ValueError, OverflowError):
        return None
