"""Writes the artifacts folder of a run: every file is complete or absent."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mlflow_track.checks import artifact_path as checked_path
from mlflow_track.media.images import figure_of, image_of, is_pil
from mlflow_track.media.values import text_of
from mlflow_track.record import layout
from mlflow_track.record.directory import RunDirectory
from mlflow_track.record.files import legible, make_folder, removed_on_error, replace_file
from mlflow_track.wording import count_text, expected, shown, type_error, typed, value_error

_MOST_NAMED = 20
_RUNS = "it holds runs"
_OTHER = "a pipe, a socket or a device"


class Artifacts:
    """Writes files below `root`, under names that cannot leave it.

    Args:
        require_open: Called before anything is written; raises where nothing can be any more.
        runs: The folder of all runs, of which nothing is copied along with a folder around it.
        is_kept: Whether anything is written; arguments are checked in any case.
        tell: Takes a line about what was left out of a folder.
    """

    def __init__(
        self,
        root: Path,
        runs: Path | None = None,
        *,
        require_open: Callable[[], None],
        is_kept: bool = True,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self.root = root
        self._require_open = require_open
        self._is_kept = is_kept
        self._tell = tell
        # Those on the way from the runs to this one: any of them may be what is copied.
        inside = [root, *(p for p in root.parents if runs and p.is_relative_to(runs))]
        self._own = {os.path.realpath(path) for path in inside} if is_kept else set()
        self._runs = os.path.realpath(runs) if runs and is_kept else ""

    @classmethod
    def of(cls, record: RunDirectory, tell: Callable[[str], None]) -> Artifacts:
        """The artifacts of a run that is being written."""
        return cls(
            record.artifacts_path,
            record.path.parent.parent,
            require_open=record.require_open,
            is_kept=record.is_kept,
            tell=tell,
        )

    def copy(self, source: str | os.PathLike[str], folder: str | None) -> Path:
        source = _source(source)
        if not source.exists():
            raise FileNotFoundError(f"there is no file or folder {source} to log as an artifact")
        # Not source.name: that of `data/..` is `..`.
        name = os.path.basename(os.path.abspath(source))
        if folder:
            self._path(folder)
        target = self._path(os.path.join(folder or "", name))
        if source.is_dir():
            self._copy_folder(source, target)
        else:
            self._copy_file(source, target)
        return target

    def copy_content(self, source: str | os.PathLike[str], folder: str | None) -> None:
        self._require_open()
        source = _source(source)
        if not source.is_dir():
            raise NotADirectoryError(
                expected("the source", "a folder", str(source))
                + "; log single files with log_artifact"
            )
        self._copy_folder(source, self._path(folder) if folder else self.root)

    def write_text(self, text: str, name: str) -> Path:
        return self._write(name, text_of(text, name).encode())

    def write_json(self, content: Any, name: str) -> Path:
        try:
            text = json.dumps(content, indent=2, ensure_ascii=False, default=_plain)
        except (TypeError, ValueError) as error:
            raise type_error(
                f"the content for {name!r}", "valid as JSON", f"{type(content).__name__}: {error}"
            ) from None
        # Half a character becomes an escape of JSON, which brings it back.
        return self._write(name, text.encode(errors="backslashreplace"))

    def write_figure(self, figure: Any, name: str) -> Path:
        kind = self._path(name).suffix.lstrip(".") or "png"
        return self._write(name, figure_of(figure, name, kind).encode())

    def write_image(self, image: Any, name: str) -> Path:
        kind = self._path(name).suffix.lstrip(".").lower()
        if is_pil(image) and kind != "png":
            buffer = io.BytesIO()
            image.save(buffer, format={"jpg": "jpeg", "": "png"}.get(kind, kind))
            return self._write(name, buffer.getvalue())
        if kind != "png":
            raise value_error("the name of an image of numbers", "one ending in .png", shown(name))
        return self._write(name, image_of(image, name).encode())

    def write_table(self, data: Any, name: str) -> Path:
        suffix = self._path(name).suffix
        columns = _columns(data, name)
        if suffix == ".json":
            return self.write_json(columns, name)
        if suffix != ".csv":
            raise value_error("the name of a table", "one ending in .csv or .json", shown(name))
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
        return self._write(name, legible(buffer.getvalue()).encode())

    def _path(self, name: str) -> Path:
        self._require_open()
        return checked_path(self.root, name)

    def _write(self, name: str, content: bytes) -> Path:
        path = self._path(name)
        if self._is_kept:
            make_folder(path.parent)
            replace_file(path, content)
        return path

    def _copy_folder(self, source: Path, target: Path) -> None:
        left_out: dict[str, str] = {}
        for file in sorted(_files_in(source, self._holds_runs, left_out)):
            inside = (target / file.relative_to(source)).relative_to(self.root)
            try:
                self._copy_file(file, self._path(str(inside)))
            except FileNotFoundError:
                left_out[str(file)] = "it was removed meanwhile"
        if left_out and self._tell is not None:
            named = [f"{path} ({why})" for path, why in left_out.items()]
            more = len(named) - _MOST_NAMED
            named[_MOST_NAMED:] = [f"and {count_text(more, 'other')}"] if more > 0 else []
            start = "" if set(left_out.values()) == {_RUNS} else "WARNING: "
            self._tell(f"{start}the artifacts lack of {source}: {', '.join(named)}")

    def _holds_runs(self, folder: str) -> bool:
        """Whether a folder, by its real path, is one on the way to this run, or another run."""
        is_below = bool(self._runs) and folder.startswith(self._runs + os.sep)
        return folder in self._own or (is_below and os.path.exists(f"{folder}/{layout.RUN}"))

    def _copy_file(self, source: Path, target: Path) -> None:
        if self._is_kept:
            _copy_file(source, target)


def _source(given: Any) -> Path:
    if not isinstance(given, str | os.PathLike):
        raise type_error("the source", "the path of a file or folder", typed(given))
    return Path(given)


def _files_in(
    folder: Path, holds_runs: Callable[[str], bool], left_out: dict[str, str]
) -> Iterator[Path]:
    """The files in a folder and below it, also behind links.

    Args:
        holds_runs: Whether to leave a folder out, by its real path.
        left_out: Takes what else is there, with the reason.
    """
    folders = [(folder, frozenset({os.path.realpath(folder)}))]
    while folders:
        place, around = folders.pop()
        for name in os.listdir(place):
            path = place / name
            if path.is_dir():
                real = os.path.realpath(path)
                if holds_runs(real):
                    left_out[str(path)] = _RUNS
                elif real in around:
                    left_out[str(path)] = "a link to a folder around it"
                else:
                    folders.append((path, around | {real}))
            elif name.startswith(layout.TEMPORARY):
                left_out[str(path)] = "a file that was being written"
            elif path.is_file():
                yield path
            else:
                left_out[str(path)] = "a link to nothing" if path.is_symlink() else _OTHER


def _copy_file(source: Path, target: Path) -> None:
    make_folder(target.parent)
    temporary = layout.temporary(target)
    with removed_on_error(temporary):
        with open(source, "rb") as original, open(temporary, "xb") as copy:
            shutil.copyfileobj(original, copy, 1 << 20)
        os.replace(temporary, target)


def _columns(data: Any, name: str) -> dict[str, list[Any]]:
    if hasattr(data, "to_dict") and hasattr(data, "columns"):
        data = data.to_dict(orient="list")
    if not isinstance(data, Mapping):
        raise type_error(
            f"the table for {name!r}", "a mapping of columns or a DataFrame", type(data).__name__
        )
    columns = {str(key): _values(column, str(key)) for key, column in data.items()}
    lengths = {key: len(column) for key, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise value_error(f"the columns of {name!r}", "equally long", f"lengths {lengths}")
    return columns


def _values(column: Any, name: str) -> list[Any]:
    """The values of a column, numbers as Python's."""
    values = _plain(column) if hasattr(column, "tolist") else column
    try:
        return [_plain(value) if hasattr(value, "tolist") else value for value in values]
    except TypeError:
        raise type_error(f"column {name!r} of a table", "a list of values", typed(column)) from None


def _plain(value: Any) -> Any:
    """A value of another kind as JSON has it: arrays and tensors as numbers, times as text.

    Raises:
        TypeError: It has no such form.
    """
    if hasattr(value, "tolist"):
        # As integers the times would lose their unit.
        is_time = getattr(getattr(value, "dtype", None), "kind", "") in ("M", "m")
        return (value.astype(str) if is_time else value).tolist()
    if isinstance(value, os.PathLike):
        return legible(os.fsdecode(value))
    if hasattr(value, "isoformat"):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} has no form in JSON")
