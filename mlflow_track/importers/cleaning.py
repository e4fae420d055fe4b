"""Makes of a foreign run what a record may hold: legal names, bounded values, no secrets."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar

import msgspec
import numpy

from mlflow_track import checks
from mlflow_track.importers.media import placed_media
from mlflow_track.importers.source import ForeignFile, ForeignRun
from mlflow_track.param_values import plain_params
from mlflow_track.record import layout
from mlflow_track.record.files import legible
from mlflow_track.record.masking import mask_command, mask_password
from mlflow_track.record.media.index import MediaEntry
from mlflow_track.record.metric import DIRECTIONS
from mlflow_track.record.params import change_params
from mlflow_track.record.row_format import MOST_STEP, are_in_range
from mlflow_track.record.schema import KILLED, RUNNING, STATUSES
from mlflow_track.series import MetricsContent, Series, metrics_contents
from mlflow_track.wording import count_text, expected, shown

_UNWRITABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
_MOST_NAME, _MOST_METRIC_NAME = 1000, 500
# run.json is read up to 64 MiB.
_MOST_TEXT = 1 << 20
_MOST_ITEMS = 10_000

_T = TypeVar("_T")


class Content(NamedTuple):
    """What becomes the files of a record.

    Attributes:
        name, experiment: None where the source names none.
        fields: Those of run.json beside its id, its name and its experiment.
        config: config.json.
        tables: The files of metrics, by their names alone.
        files: The artifacts; their names are legal.
        media: What is said in the index of the files that are images, texts or histograms of steps,
            by their names.
        log: What it printed.
        problems, notes: See `ForeignRun`.
    """

    name: str | None
    experiment: str | None
    fields: dict[str, Any]
    config: dict[str, Any]
    tables: list[MetricsContent]
    files: list[ForeignFile]
    media: dict[str, MediaEntry]
    log: ForeignFile | None
    problems: list[str]
    notes: list[str]


class _Told:
    """Collects what is said about a run while it is cleaned."""

    def __init__(self, run: ForeignRun) -> None:
        self.problems, self.notes = list(run.problems), list(run.notes)

    def attempted(self, what: str, check: Callable[[], _T], otherwise: _T) -> _T:
        """The result of a check; where it refuses that is a problem."""
        try:
            return check()
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            self.problems.append(f"left out {what}: {error}")
            return otherwise


def clean(run: ForeignRun) -> Content:
    """The content of a record; whatever a record cannot hold is left out, and named."""
    told = _Told(run)
    metrics = _series(run.metrics, told)
    system = _series(run.system_metrics, told)
    tables = metrics_contents(Path(layout.METRICS), metrics)
    if system:
        tables += metrics_contents(Path(layout.SYSTEM_METRICS), system)
    media = placed_media(run.media, told.problems.append)
    return Content(
        name=_line(run.name),
        experiment=_line(run.experiment),
        fields=_fields(run, [*metrics, *system], told),
        config=_config(run.params, told),
        tables=tables,
        files=_files([*(file for _, file in media.values()), *run.files], told),
        media={name: entry for name, (entry, _) in media.items()},
        log=run.log,
        problems=told.problems,
        notes=told.notes,
    )


# --- metrics ---


def _series(series: Iterable[Series], told: _Told) -> list[Series]:
    found: list[Series] = []
    names: dict[str, str] = {}
    for one in series:
        name = names.get(one.name)
        if name is None:
            name = names[one.name] = _metric_name(one.name, set(names.values()), told)
        nothing, check = Series(name, [], [], []), partial(_valid, one, name, told)
        checked = told.attempted(f"metric {one.name!r:.300}", check, nothing)
        if len(checked.steps):
            found.append(checked)
    return found


def _valid(one: Series, name: str, told: _Told) -> Series:
    steps = _steps(one.steps)
    times = numpy.asarray(one.times, dtype=numpy.float64)
    values = numpy.asarray(one.values, dtype=numpy.float64)
    if not len(steps) or are_in_range(steps.min(), steps.max(), times.min(), times.max()):
        return Series(name, steps, times, values)
    is_row = (steps >= 0) & (steps <= MOST_STEP) & [are_in_range(0, 0, t, t) for t in times]
    lost = count_text(len(steps) - int(is_row.sum()), "value")
    told.problems.append(
        f"left out {lost} of metric {name!r:.300}: steps must be from 0 to 2**53, and times "
        "from 1970 on"
    )
    return Series(name, steps[is_row], times[is_row], values[is_row])


def _steps(steps: Any) -> numpy.ndarray[Any, Any]:
    """The steps as integers; -1, which no row has, stands for one that needs more than 64 bits."""
    try:
        return numpy.asarray(steps, dtype=numpy.int64)
    except OverflowError:
        return numpy.asarray([step if 0 <= step <= MOST_STEP else -1 for step in steps])


def _metric_name(name: str, taken: set[str], told: _Told) -> str:
    """The nearest name that a column may have, and no other metric has."""
    try:
        legal = checks.metric_name(name)
    except (TypeError, ValueError):
        text = _UNWRITABLE.sub("_", str(name))[: _MOST_METRIC_NAME - len("metrics.") - 8]
        try:
            legal = checks.metric_name(text)
        except ValueError:
            # "step" and "time" are columns of every file of metrics.
            legal = f"metrics.{text.strip()}"
    first, number = legal, 2
    while legal in taken:
        legal, number = f"{first}-{number}", number + 1
    if legal != name:
        told.notes.append(f"metric {shown(name)} is imported as {shown(legal)}")
    return legal


# --- run.json ---


def _fields(run: ForeignRun, metrics: Sequence[Series], told: _Told) -> dict[str, Any]:
    filled = [one.times for one in metrics if len(one.times)]
    started = run.started
    if not _is_time(started):
        started = min((float(numpy.min(times)) for times in filled), default=0.0)
        told.problems.append(
            expected("the start", "a time in Unix seconds", shown(run.started)) + "; not used"
        )
    last = max((float(numpy.max(times)) for times in filled), default=started)
    ended = max(started, run.ended if run.ended is not None and _is_time(run.ended) else last)
    status = run.status if run.status in STATUSES else KILLED
    if status == RUNNING:
        status = KILLED
        told.notes.append("it has no end at the source, and reads as KILLED")
    attempt = {
        **_known(run.attempt),
        "attempt": 1,
        "started": started,
        "ended": ended,
        "status": status,
    }
    if run.attempt.command:
        attempt["command"] = mask_command([legible(word) for word in run.attempt.command])
    if run.error:
        attempt["error"] = mask_password(_line(run.error) or "")
    return {
        "created": started,
        "ended": ended,
        "status": status,
        "attempts": [attempt],
        "tags": _tags(run.tags, told),
        "inputs": [msgspec.to_builtins(item) for item in run.inputs],
        "provenance": _known(run.provenance),
        "summary": _summary(run.summary, told),
        "directions": {
            name: mode
            for name, mode in run.directions.items()
            if mode in DIRECTIONS and any(one.name == name for one in metrics)
        },
    }


def _is_time(seconds: Any) -> bool:
    is_number = isinstance(seconds, int | float) and math.isfinite(seconds)
    return is_number and are_in_range(0, 0, seconds, seconds)


def _known(facts: msgspec.Struct) -> dict[str, Any]:
    """The fields that have a value."""
    content = msgspec.to_builtins(facts)
    return {name: value for name, value in content.items() if value or value == 0}


def _line(text: Any) -> str | None:
    """A text on one line, bounded; None where it is blank."""
    line = " ".join(_UNWRITABLE.sub(" ", str(text)).split()) if text is not None else ""
    return line[:_MOST_NAME] or None


def _bounded(kind: str, items: Mapping[str, Any], told: _Told) -> dict[str, Any]:
    if len(items) > _MOST_ITEMS:
        told.problems.append(
            f"left out {count_text(len(items) - _MOST_ITEMS, kind)}: "
            + expected(f"the number of {kind}s", f"at most {_MOST_ITEMS:,}", f"{len(items):,}")
        )
    return dict(list(items.items())[:_MOST_ITEMS])


def _tags(tags: Mapping[str, Any], told: _Told) -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in _bounded("tag", tags, told).items():
        name, text = _line(key), legible(str(value))
        if len(text) > _MOST_TEXT:
            text = text[:_MOST_TEXT]
            told.problems.append(f"cut tag {key!r:.300} to {_MOST_TEXT:,} characters")
        if name is not None:
            check = partial(checks.tags, {name: text})
            found |= told.attempted(f"tag {key!r:.300}", check, {})
    return found


def _summary(values: Mapping[str, Any], told: _Told) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in _bounded("value of the summary", values, told).items():
        if value is None:
            continue
        if isinstance(value, dict | list | tuple):
            value = json.dumps(value, default=str, ensure_ascii=False)
        if isinstance(value, str):
            value = value[:_MOST_TEXT]
        check = partial(checks.summary, {key: value})
        found |= told.attempted(f"{key!r:.300} of the summary", check, {})
    return found


# --- config.json and files ---


def _config(params: Mapping[str, Any], told: _Told) -> dict[str, Any]:
    config: dict[str, Any] = {"params": {}, "changes": []}

    def add(some: Mapping[str, Any]) -> None:
        change_params(config, plain_params(some), attempt=1, is_start=True)

    try:
        add(params)
    except (TypeError, ValueError, RecursionError):
        # One by one, so that the others are kept.
        for key, value in params.items():
            told.attempted(f"param {key!r:.300}", partial(add, {key: value}), None)
    return {**config, "changes": []}


def _files(files: Iterable[ForeignFile], told: _Told) -> list[ForeignFile]:
    found: dict[str, ForeignFile] = {}
    root = Path("/", layout.ARTIFACTS)
    for file in files:
        check = partial(checks.artifact_path, root, file.name)
        path = told.attempted(f"artifact {file.name!r:.300}", check, None)
        if path is not None:
            name = PurePosixPath(path.relative_to(root)).as_posix()
            found.setdefault(name, file._replace(name=name))
    return list(found.values())
