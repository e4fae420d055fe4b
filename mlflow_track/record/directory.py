"""The folder of one run: its paths, its description (run.json), its params, its status.

Status is what run.json says, with one exception: RUNNING without a holder of the lock is KILLED.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mlflow_track.record import layout
from mlflow_track.record.append_file import Positions
from mlflow_track.record.files import (
    legible,
    make_folder,
    open_to_append,
    sync_folder,
    write_json,
)
from mlflow_track.record.find import folder_name
from mlflow_track.record.info import read_config, read_config_content, read_content, to_info
from mlflow_track.record.lock import take_lock
from mlflow_track.record.masking import mask_password
from mlflow_track.record.metrics import MetricsFile
from mlflow_track.record.params import change_params
from mlflow_track.record.rows import files_of
from mlflow_track.record.schema import KILLED, LAYOUT_VERSION, RUNNING, RewoundFile, RunInfo
from mlflow_track.record.uninterruptible import undisturbed

# Room for the last run.json on a disk that has filled up; the lock file holds it, being there.
_RESERVE_BYTES = 1 << 16


class RunHeldError(RuntimeError):
    """Another live process writes this run."""


def new_content(
    run_id: str, name: str | None, experiment: str, tags: Mapping[str, str]
) -> dict[str, Any]:
    """run.json of a run that begins now."""
    return {
        "layout": LAYOUT_VERSION,
        "id": run_id,
        "name": name or run_id,
        "name_given": name is not None,
        "experiment": experiment,
        "status": RUNNING,
        "created": time.time(),
        "ended": None,
        "attempts": [],
        "rewinds": [],
        "rewinding": None,
        "restores": [],
        "tags": dict(tags),
        "inputs": [],
        "provenance": {},
    }


class RunDirectory:
    """Paths and state of one run's folder. Only the holder of the lock writes.

    Attributes:
        path: The folder.
        is_kept: Whether anything is written to it.
        is_shown: Whether its lines go to the console.
        info: The content of run.json.

    Raises:
        UnreadableRun: run.json is missing or damaged, or a newer version wrote it.
    """

    is_kept, is_shown = True, True

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read()
        self._lock_descriptor = -1
        self._info_lock = threading.RLock()

    @classmethod
    def create(
        cls, root: Path, *, experiment: str, name: str | None, tags: Mapping[str, str]
    ) -> RunDirectory:
        """Make the folder of a new run, locked by the caller.

        Raises:
            OSError: The folder cannot be written; the message names it.
        """
        now = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        run_id = f"{now}-{os.urandom(3).hex()}"
        path = root / folder_name(experiment) / run_id
        try:
            make_folder(path.parent)
            path.mkdir()
            sync_folder(path.parent)
            lock = take_lock(path / layout.RUN_LOCK)
            write_json(path / layout.RUN, new_content(run_id, name, experiment, tags))
        except OSError as error:
            raise type(error)(
                error.errno,
                f"cannot write the run's folder {path}: {error.strerror}; set MLFLOW_TRACK_DIR "
                "or start_run(directory=…) to a folder that is writable",
            ) from error
        directory = cls(path)
        directory._lock_descriptor = lock
        directory._reserve()
        return directory

    def acquire(self) -> None:
        """Become the one writer.

        Raises:
            RunHeldError: Another live process is.
        """
        try:
            self._lock_descriptor = take_lock(self.path / layout.RUN_LOCK)
        except BlockingIOError:
            raise RunHeldError(
                f"run {self.info.id} is being written by process {self.info.newest.pid} on "
                f"{self.info.newest.host}; wait for it, or start another run with resume='never'"
            ) from None
        self._reserve()
        self._read()

    def release(self) -> None:
        if self._lock_descriptor >= 0:
            self._free_reserve()
            os.close(self._lock_descriptor)
            self._lock_descriptor = -1

    def _reserve(self) -> None:
        # Not every file system can, nor every system.
        with contextlib.suppress(OSError, AttributeError):
            os.posix_fallocate(self._lock_descriptor, 0, _RESERVE_BYTES)

    def _free_reserve(self) -> None:
        with contextlib.suppress(OSError):
            os.ftruncate(self._lock_descriptor, 0)

    def update(self, **fields: Any) -> None:
        """Change fields of run.json, atomically on disk; all of them, or none and an error."""
        with self._info_lock:
            content = {**self._content, **fields}
            info = to_info(content)
            self._store(content)
            self._content, self.info = content, info

    def _store(self, content: Mapping[str, Any]) -> None:
        write_json(self.path / layout.RUN, content)

    def _read(self) -> None:
        # Beside the typed fields the plain content: what this version does not know stays in it.
        self._content = read_content(self.path)
        self.info: RunInfo = to_info(self._content)

    def restate(self, field: str, content: Mapping[str, Any]) -> None:
        """Update a mapping of run.json with `content`; its other keys stay.

        A later version may have written it.
        """
        with self._info_lock:
            self.update(**{field: {**(self._content.get(field) or {}), **content}})

    def note_in_attempt(self, **fields: Any) -> None:
        """Change fields of this attempt."""
        with self._info_lock:
            *earlier, attempt = self._content["attempts"]
            self.update(attempts=[*earlier, {**attempt, **fields}])

    def set_tags(self, tags: Mapping[str, str]) -> None:
        with self._info_lock:
            self.update(tags={**self.info.tags, **tags})

    def add(
        self, field: str, item: dict[str, Any], *, once: bool = False, is_correction: bool = False
    ) -> None:
        """Append one item to a list of run.json; a correction takes the place of the last."""
        with self._info_lock:
            items = self._content.get(field) or []
            if not (once and item in items):
                self.update(**{field: [*(items[:-1] if is_correction else items), item]})

    @property
    def attempt(self) -> int:
        return len(self.info.attempts)

    def start_attempt(self, details: Mapping[str, Any]) -> None:
        """Begin the next attempt: RUNNING again, the one before ended as its status says."""
        attempts = list(self._content.get("attempts") or [])
        if attempts and attempts[-1].get("status") == RUNNING:
            attempts[-1] = {**attempts[-1], "status": KILLED}
        number = len(attempts) + 1
        attempts.append({"attempt": number, "started": time.time(), "status": RUNNING, **details})
        self.update(attempts=attempts, status=RUNNING, ended=None)

    def end_attempt(self, status: str, error: str | None = None) -> None:
        """Write how the attempt ended; on a full disk into the space reserved for it."""
        ended = time.time()
        *earlier, attempt = self._content["attempts"]
        attempts = [*earlier, {**attempt, "ended": ended, "status": status}]
        if error:
            attempts[-1]["error"] = mask_password(error)
        try:
            self.update(attempts=attempts, status=status, ended=ended)
        except OSError:
            self._free_reserve()
            self.update(attempts=attempts, status=status, ended=ended)

    def open_metrics(self, tell: Callable[[str], None] | None = None) -> MetricsFile:
        metrics = MetricsFile(self.metrics_path, tell)
        self._finish_rewind(metrics)
        return metrics

    def rewind(self, metrics: MetricsFile, last_step: int, before: Positions | None = None) -> int:
        """Move the rows after `last_step` aside, and note it in run.json; return how many.

        With `before` only those that lie before these positions.

        run.json says what is about to happen before it happens: a reader that follows the file by
        position must know, and a crash in between is completed by `open_metrics`.
        """
        return undisturbed(lambda: self._rewind(metrics, last_step, before))

    def _rewind(self, metrics: MetricsFile, last_step: int, before: Positions | None) -> int:
        with metrics.lock:
            plan = metrics.plan_rewind(last_step, before)
            if plan.rows:
                aside = self._path_aside()
                size = metrics.positions()
                entry: dict[str, Any] = {
                    "attempt": self.attempt,
                    "step": last_step,
                    "before": before and before.wide,
                    "rows": plan.wide.rows,
                    "removed": plan.wide.removed,
                    "size_before": size.wide,
                    "file": aside.name,
                    "time": time.time(),
                }
                if plan.long.rows:
                    entry["long"] = {
                        "before": before and before.long,
                        "rows": plan.long.rows,
                        "removed": plan.long.removed,
                        "size_before": size.long,
                        "file": layout.long_form(aside).name,
                    }
                self.update(rewinding=entry)
                metrics.rewind(last_step, aside, before)
                self._note_rewind()
            return plan.rows

    def _finish_rewind(self, metrics: MetricsFile) -> None:
        """Complete the rewind in which an earlier attempt was killed."""
        entry = self.info.rewinding
        if entry is not None:
            long = entry.long or RewoundFile()
            before = None
            if entry.before is not None:
                before = Positions(entry.before, long.before or 0)
            only = Positions(entry.size_before, long.size_before if entry.long else -1)
            metrics.rewind(entry.step, self.path / entry.file, before, only)
            self._note_rewind()

    def _note_rewind(self) -> None:
        with self._info_lock:
            done = [*(self._content.get("rewinds") or []), self._content["rewinding"]]
            self.update(rewinding=None, rewinds=done)

    def _path_aside(self) -> Path:
        names = (layout.rewound_metrics(self.attempt, number) for number in range(1, 10_000))
        paths = (self.path / name for name in names)
        return next(path for path in paths if not files_of(path))

    @property
    def metrics_path(self) -> Path:
        return self.path / layout.METRICS

    @property
    def system_metrics_path(self) -> Path:
        return self.path / layout.SYSTEM_METRICS

    @property
    def artifacts_path(self) -> Path:
        return self.path / layout.ARTIFACTS

    @property
    def checkpoints_path(self) -> Path:
        return self.path / layout.CHECKPOINTS

    @property
    def log_path(self) -> Path:
        return self.path / layout.LOG

    def read_params(self) -> dict[str, Any]:
        """The params, nested as they were given."""
        return read_config(self.path).params

    def add_params(self, params: Mapping[str, Any], *, is_start: bool) -> dict[str, list[Any]]:
        """Merge `params` into config.json, which also notes what changed in which attempt.

        Args:
            is_start: They are the params that the attempt starts with: after a resume one that is
                new is also a change.

        Returns:
            By dotted name the old value, None where there was none, and the new one.
        """
        config = read_config_content(self.path)
        changed = change_params(config, params, attempt=self.attempt, is_start=is_start)
        write_json(self.path / layout.CONFIG, config)
        return changed

    def append_log(self, line: str) -> None:
        """Add one line to training.log, with the local time in front, by one write."""
        text = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {mask_password(line)}\n"
        descriptor = open_to_append(self.log_path)
        try:
            os.write(descriptor, legible(text).encode())
        finally:
            os.close(descriptor)
