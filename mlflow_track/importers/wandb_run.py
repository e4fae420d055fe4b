"""Reads one run from the files that W&B's client has written of it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlflow_track.formats import wandb_records as records
from mlflow_track.formats.leveldb_log import read_records
from mlflow_track.formats.protobuf import read_fields, read_parts
from mlflow_track.formats.wandb_records import RunField
from mlflow_track.importers.media import histogram_json, media_of
from mlflow_track.importers.source import (
    ForeignFile,
    ForeignMedia,
    ForeignRun,
    add_value,
    file_inside,
    local_file,
)
from mlflow_track.record.files import files_below, open_regular
from mlflow_track.record.schema import FAILED, FINISHED, KILLED, RUNNING, Attempt, Git, Provenance
from mlflow_track.series import Series
from mlflow_track.wording import count_text, first_of

_FILES, _OUTPUT = "files", "output.log"
# What W&B itself writes beside the files of the user; config and summary are read from the records.
_OWN_FILES = ("config.yaml", "wandb-metadata.json", "wandb-summary.json", _OUTPUT)
_STEP, _TIME, _TYPE = "_step", "_timestamp", "_type"
_WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_NOTE_TAG = "mlflow.note.content"
# Fields of a commit, of a definition of a metric, of an exit, and of a sample of the machine.
_COMMIT = 2
_METRIC_NAME, _METRIC_SUMMARY, _METRIC_GOAL = 1, 7, 8
_SUMMARY_MIN, _SUMMARY_MAX = 1, 2
_GOALS = {1: "min", 2: "max"}
_EXIT_CODE = 1
_STATS_TIME, _STATS_ITEM = 2, 3
_STOPPED_CODE = 255
_MOST_SHOWN = 3


class RunReader:
    """Collects a run from its files, in the order in which they were written."""

    def __init__(self) -> None:
        self._texts: dict[int, list[str]] = {}
        self._commit: str | None = None
        self._started = 0.0
        self._last_time = 0.0
        self._config: dict[str, Any] = {}
        self._summary: dict[str, Any] = {}
        self._metrics: dict[str, Series] = {}
        self._system: dict[str, Series] = {}
        self._samples = 0
        self._directions: dict[str, str] = {}
        self._status = RUNNING
        self._files: dict[str, ForeignFile] = {}
        self._log: ForeignFile | None = None
        self._others: Counter[str] = Counter()
        self._links: list[str] = []
        self._media: list[ForeignMedia] = []
        # Files of images, which are not artifacts beside that, and what of media was lost.
        self._shown: set[str] = set()
        self._lost: list[str] = []
        self._folder = Path()
        # Whether this package has sent it: then there may be a record of it.
        self._is_ours = False
        self._damaged: list[str] = []
        # A run that was resumed offline counts its steps from 0 again.
        self._offset, self._next_step, self._is_first = 0, 0, True

    def read(self, path: Path) -> None:
        """Read the next file; damage in it is noted."""
        self._offset, self._is_first = 0, True
        self._folder = path.parent / _FILES
        take: dict[int, Callable[[bytes], None]] = {
            records.HISTORY: self._row,
            records.RUN: self._run,
            records.CONFIG: lambda config: records.apply(config, self._config),
            records.SUMMARY: lambda summary: records.apply(summary, self._summary),
            records.METRIC: self._define,
            records.STATS: self._sample,
            records.EXIT: self._exit,
        }

        def damaged(at: int, why: str) -> None:
            self._damaged.append(f"{path.name} at byte {at:,}: {why}")

        self._status = RUNNING
        with open_regular(path) as file:
            for data, end in read_records(file, damaged=damaged):
                try:
                    for kind, content in read_fields(data):
                        if kind in take and isinstance(content, bytes):
                            take[kind](content)
                except (ValueError, OverflowError) as error:
                    damaged(end, str(error))
        self._take_files(path.parent / _FILES)

    # --- records ---

    def _row(self, row: bytes) -> None:
        cells = dict(records.items(row))
        # An image or a histogram is a mapping with its type, whose parts come one by one.
        media = {key[:-1] for key in cells if key[1:] and key[-1] == _TYPE}
        values = {
            ".".join(key): text
            for key, text in cells.items()
            if not any(key[:length] in media for length in range(1, len(key)))
        }
        counted = records.row_value(values.pop(_STEP, "null"))
        moment = records.row_value(values.pop(_TIME, "null"))
        step = int(counted) if isinstance(counted, int | float) else self._next_step
        if self._is_first and step < self._next_step:
            self._offset = self._next_step
        self._is_first = False
        step += self._offset
        self._next_step = max(self._next_step, step + 1)
        if records.STEP_KEY in values and records.OUR_KEYS & values.keys():
            # Written by this package: W&B's own count has nothing to do with the step.
            step, self._is_ours = int(records.value(values.pop(records.STEP_KEY))), True
        time = float(moment) if isinstance(moment, int | float) else self._started
        self._last_time = max(self._last_time, time)
        for place in media:
            parts = {key[-1]: text for key, text in cells.items() if key[:-1] == place}
            self._take_media(".".join(place), step, time, records.values(parts))
        for key, text in values.items():
            if not key.startswith("_"):
                self._value(key, step, time, records.row_value(text))

    def _value(self, key: str, step: int, time: float, value: Any) -> None:
        value = _WORDS.get(value, value) if isinstance(value, str) else value
        if isinstance(value, int | float):
            add_value(self._metrics, key, step, time, float(value))
        elif isinstance(value, dict) and _TYPE not in value:
            for name, each in value.items():
                self._value(f"{key}.{name}", step, time, each)
        elif isinstance(value, dict):
            self._take_media(key, step, time, value)
        else:
            self._others[type(value).__name__] += 1

    def _take_media(self, key: str, step: int, time: float, value: dict[str, Any]) -> None:
        """Take an image or a histogram; of anything else the file is an artifact all the same."""
        kind = str(value.get(_TYPE))
        try:
            if kind == "histogram" and "bins" in value:
                content = histogram_json(value["bins"], value.get("values"))
                self._media.append(media_of("histogram", key, step, time, content))
            elif kind == "image-file" and str(value.get("path")).endswith(".png"):
                file = local_file(file_inside(self._folder.resolve(), value["path"]), key)
                self._media.append(ForeignMedia("image", key, step, time, *file[1:]))
                self._shown.add(value["path"])
            else:
                self._others[kind] += 1
        except (OSError, ValueError) as error:
            self._lost.append(f"left out {kind} {key!r:.300} of step {step}: {error}")

    def _run(self, run: bytes) -> None:
        self._texts = records.texts(run)
        self._started = self._started or records.seconds(run, RunField.START)
        for git in read_parts(run, RunField.GIT):
            self._commit = records.texts(git).get(_COMMIT, [None])[0]
        for config in read_parts(run, RunField.CONFIG):
            records.apply(config, self._config)

    def _exit(self, ended: bytes) -> None:
        code = records.numbers(ended).get(_EXIT_CODE, 0)
        self._status = {0: FINISHED, _STOPPED_CODE: KILLED}.get(code, FAILED)

    def _define(self, metric: bytes) -> None:
        name = records.texts(metric).get(_METRIC_NAME, [""])[0]
        mode = _GOALS.get(records.numbers(metric).get(_METRIC_GOAL, 0))
        for summary in read_parts(metric, _METRIC_SUMMARY):
            wanted = records.numbers(summary)
            if bool(wanted.get(_SUMMARY_MIN)) != bool(wanted.get(_SUMMARY_MAX)):
                mode = mode or ("min" if wanted.get(_SUMMARY_MIN) else "max")
        if name and mode:
            self._directions[name] = mode

    def _sample(self, stats: bytes) -> None:
        time = records.seconds(stats, _STATS_TIME)
        for key, text in records.items(stats, _STATS_ITEM):
            value = records.value(text)
            if isinstance(value, int | float):
                name = f"system/{'.'.join(key).removeprefix('system.')}"
                add_value(self._system, name, self._samples, time, float(value))
        self._samples += 1

    # --- files ---

    def _take_files(self, folder: Path) -> None:
        # W&B's `save` makes links to files elsewhere.
        self._links += [
            str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_symlink()
        ]
        for path in files_below(folder):
            name = path.relative_to(folder).as_posix()
            if name == _OUTPUT:
                self._log = local_file(path, name)
            if name not in _OWN_FILES and name not in self._shown:
                self._files[name] = local_file(path, name)

    # --- the result ---

    def run(self, identity: str) -> ForeignRun:
        """The run.

        Raises:
            ValueError: None of the files says which run it is of.
        """
        if not self._texts:
            raise ValueError("; ".join(["there is no run in it", *self._damaged[:_MOST_SHOWN]]))
        text = {number: found[0] for number, found in self._texts.items()}
        tags = {
            "wandb.tags": ", ".join(self._texts.get(RunField.TAGS, [])),
            "wandb.group": text.get(RunField.GROUP, ""),
            "wandb.job_type": text.get(RunField.JOB_TYPE, ""),
            _NOTE_TAG: text.get(RunField.NOTES, ""),
        }
        damaged = first_of(self._damaged, _MOST_SHOWN)
        return ForeignRun(
            identity=identity,
            record_id=text.get(RunField.ID) if self._is_ours else None,
            started=self._started,
            ended=max(self._last_time, self._started) if self._status != RUNNING else None,
            status=self._status,
            experiment=text.get(RunField.PROJECT) or None,
            name=text.get(RunField.NAME) or text.get(RunField.ID) or None,
            params={k: v for k, v in records.values(self._config).items() if k != "_wandb"},
            tags={name: value for name, value in tags.items() if value},
            metrics=list(self._metrics.values()),
            system_metrics=list(self._system.values()),
            summary={
                key: value
                for key, value in records.values(self._summary).items()
                if not key.startswith("_") and key != records.STEP_KEY
                # What is more than the last value of a metric.
                if isinstance(value, bool | int | float | str) and key not in self._metrics
            },
            files=list(self._files.values()),
            media=self._media,
            log=self._log,
            attempt=Attempt(host=text.get(RunField.HOST)),
            provenance=Provenance(git=Git(commit=self._commit) if self._commit else None),
            directions=self._directions,
            problems=[*([f"damaged: {damaged}"] if damaged else []), *self._lost],
            notes=[
                f"left out {count_text(count, 'value')} of the type {kind}"
                for kind, count in self._others.items()
            ]
            + [f"left out the file {name}: it is a link" for name in dict.fromkeys(self._links)],
        )
