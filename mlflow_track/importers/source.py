"""The form in which a run of another tracker comes in, and the interface of what reads it."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from mlflow_track.record import layout
from mlflow_track.record.files import files_below, open_regular
from mlflow_track.record.schema import FINISHED, Attempt, Input, Provenance
from mlflow_track.series import Series
from mlflow_track.wording import count_text


class ForeignFile(NamedTuple):
    """A file that becomes an artifact.

    Attributes:
        name: Its name, a path with slashes.
        version: A text that changes when the content does.
        save: Writes the content to a new file.
    """

    name: str
    version: str
    save: Callable[[Path], object]


class ForeignMedia(NamedTuple):
    """An image, a text or a histogram of a step.

    Attributes:
        kind: "image" (the file is a PNG), "text" (UTF-8), or "histogram" (the JSON of
            `Run.log_histogram`).
        key: Its name; slashes group.
        step: Its step.
        time: Unix seconds.
        version, save: See `ForeignFile`.
    """

    kind: str
    key: str
    step: int
    time: float
    version: str
    save: Callable[[Path], object]


def foreign_files(root: Path) -> Iterator[Path]:
    """The regular files in a folder and below it, but none of a record; or the file `root`."""
    if not root.is_dir():
        yield root
        return

    @functools.cache
    def is_in_record(folder: Path) -> bool:
        if (folder / layout.RUN).exists():
            return True
        return folder != root and is_in_record(folder.parent)

    yield from (file for file in files_below(root) if not is_in_record(file.parent))


def file_inside(root: Path, name: str) -> Path:
    """The path of a file below a folder, that a source names.

    Raises:
        ValueError: The name leads out of the folder, by itself or by a link.
    """
    path = root / name
    if os.path.realpath(path) != str(path) or not path.is_relative_to(root):
        raise ValueError(f"it leads out of {root}")
    return path


def local_file(path: Path, name: str) -> ForeignFile:
    """A file of this machine as the artifact `name`.

    Raises:
        OSError: It is not there; that it is not a regular file, or is a link, shows when it is
            saved.
    """
    found = os.lstat(path)

    def save(target: Path) -> None:
        with open_regular(path) as original, open(target, "xb") as copy:
            shutil.copyfileobj(original, copy, 1 << 20)

    return ForeignFile(name, f"{found.st_size} {found.st_mtime_ns}", save)


def made_file(name: str, content: bytes) -> ForeignFile:
    """A file with this content as the artifact `name`."""
    digest = hashlib.sha256(content).hexdigest()
    return ForeignFile(name, digest, lambda target: target.write_bytes(content))


def add_value(series: dict[str, Series], name: str, step: int, time: float, value: float) -> None:
    """Add a value to the history of its metric, one made of lists."""
    one = series.setdefault(name, Series(name, [], [], []))
    for column, cell in zip(one[1:], (step, time, value), strict=True):
        column.append(cell)  # type: ignore[union-attr]


def not_metrics(counts: Mapping[str, int]) -> list[str]:
    """The notes about names whose values, so and so many, are not imported."""
    return [
        f"{name!r:.300} is not a metric and stays at the source ({count_text(count, 'value')})"
        for name, count in counts.items()
    ]


@dataclass(frozen=True, kw_only=True)
class ForeignRun:
    """A run that another tracker recorded. The writer cleans, bounds and masks what is in it.

    Attributes:
        identity: A text that is the same at every import of this run, and that of no other.
        record_id: The id of the record that was sent to the source, where it is a copy of one.
        parent: The identity of the run that this one is below.
        started: Unix seconds.
        ended: Unix seconds; None takes the time of the last value.
        status: FINISHED, FAILED, KILLED, or RUNNING where no end was recorded.
        experiment: The experiment's name; None where there is none.
        name: The run's name; None where it was not named.
        params: Nested or by dotted names.
        metrics, system_metrics: Their histories; steps outside of 0 to 2**53 are left out.
        summary: Values that stand for the whole run.
        inputs: The datasets that it read.
        files: Its artifacts.
        media: Its images, texts and histograms of steps, in the order of logging.
        log: What it printed; None where that was not kept.
        error: The error that ended it.
        attempt: What else is known of the process: host, command, python.
        provenance: User, script, commit.
        directions: "min" or "max" for a metric, where the source says it.
        problems: What could not be read, in readable lines; what lies behind the damage is read.
        notes: What is different here than at the source, in readable lines.
    """

    identity: str
    record_id: str | None = None
    parent: str | None = None
    started: float
    ended: float | None = None
    status: str = FINISHED
    experiment: str | None = None
    name: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    metrics: Sequence[Series] = ()
    system_metrics: Sequence[Series] = ()
    summary: Mapping[str, Any] = field(default_factory=dict)
    inputs: Sequence[Input] = ()
    files: Sequence[ForeignFile] = ()
    media: Sequence[ForeignMedia] = ()
    log: ForeignFile | None = None
    error: str | None = None
    attempt: Attempt = field(default_factory=Attempt)
    provenance: Provenance = field(default_factory=Provenance)
    directions: Mapping[str, str] = field(default_factory=dict)
    problems: Sequence[str] = ()
    notes: Sequence[str] = ()


class FoundRun(NamedTuple):
    """A run in a source, not read yet.

    Attributes:
        label: Where it is, to be shown: a path, or an id.
        read: Reads it. An OSError or a ValueError says why it cannot be; the others are imported.
        experiment: Its experiment, where that is known before it is read.
    """

    label: str
    read: Callable[[], ForeignRun]
    experiment: str | None = None


class Source:
    """A place with runs of another tracker.

    Attributes:
        format: The name of the format, as `--format` has it.
        what: What it looks for, to be shown: "TensorBoard event files".
        as_recorded: Whether the user confirms folders elsewhere that the source names.
    """

    format: ClassVar[str]
    what: ClassVar[str]
    as_recorded: bool = False

    @classmethod
    def recognise(cls, where: str, *, is_certain: bool) -> Source | None:
        """The source at a path or URI, or None where that is something else.

        This looks and reads little; it imports no package that the format needs.

        Args:
            where: The path without links of what exists there, or a URI.
            is_certain: Whether the user named this format, so that no doubt is left.
        """
        raise NotImplementedError

    def find(self) -> Iterable[FoundRun]:
        """The runs, in a stable order.

        Raises:
            OSError, ValueError: The place as a whole cannot be read; the message says why.
        """
        raise NotImplementedError


class FolderSource(Source):
    """The files of a format in a folder and below it, or one file."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @classmethod
    def recognise(cls, where: str, *, is_certain: bool) -> FolderSource | None:
        root = Path(where)
        return cls(root) if any(True for _ in cls.files(root)) else None

    @classmethod
    def files(cls, root: Path) -> Iterator[Path]:
        """The files of the format, by their names and first bytes."""
        raise NotImplementedError
