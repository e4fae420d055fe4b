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
from mlflow_track.record.append_file import Positions, Span
from mlflow_track.record.files import legible, make_folder, open_to_append, sync_folder, write_json
from mlflow_track.record.find import folder_name
from mlflow_track.record.info import (
    new_content,
    read_config,
    read_config_content,
    read_content,
    to_info,
)
from mlflow_track.record.lock import RunHeldError, is_own, missing_in, take_lock
from mlflow_track.record.masking import mask_password
from mlflow_track.record.metrics import MetricsFile
from mlflow_track.record.params import change_params
from mlflow_track.record.rows import files_of
from mlflow_track.record.schema import KILLED, RUNNING, RewoundFile, RunInfo
from mlflow_track.record.uninterruptible import undisturbed

# Room for the last run.json on a disk that has filled up; the lock file holds it, being there.
_RESERVE_BYTES = 1 << 16


class RunDirectory(layout.RunPaths):
    """Paths and state of one run's folder. Only the holder of the lock writes.

    Attributes:
        path: The folder.
        is_kept: Whether anything is written to it.
        is_shown: Whether its lines go to the console.
        info: The content of run.json.
        why_closed: Why nothing can be written to it any more; empty before.

    Raises:
        UnreadableRun: run.json is missing or damaged, or a newer version wrote it.
    """

    is_kept, is_shown = True, True

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read()
        self._prepare()

    def _prepare(self) -> None:
        self.why_closed = ""
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
            newest = self.info.newest
            raise RunHeldError(
                f"run {self.info.id} is open in this process; end it with run.finish(), or get it "
                "with mlflow_track.active_run()"
                if is_own(self.path / layout.RUN_LOCK)
                else f"run {self.info.id} is being written by process {newest.pid} on "
                f"{newest.host}; wait for it, or start another run with resume='never'"
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

    def unpromised(self) -> list[str]:
        """Warnings of what this file system cannot promise a run."""
        missing = missing_in(self.path, self._lock_descriptor)
        return [f"WARNING: the file system of {self.path.parent} {what}" for what in missing]

    def require_open(self) -> None:
        """The one gate: every method that writes passes it.

        Raises:
            RuntimeError: The run has ended, or this process was forked from the one that writes it.
        """
        if self.why_closed:
            raise RuntimeError(self.why_closed)

    def close(self, why: str) -> None:
        """Write nothing any more; `why` is what later calls say."""
        self.why_closed = why
        # In a forked child a thread that does not exist there may have held it.
        self._info_lock = threading.RLock()

    def update(self, **fields: Any) -> None:
        """Change fields of run.json, atomically on disk; all of them, or none and an error."""
        self.require_open()
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
        """Change fields of this attempt; None removes one."""
        with self._info_lock:
            *earlier, attempt = self._content["attempts"]
            content = {**attempt, **fields}
            gone = [name for name, value in fields.items() if value is None]
            self.update(attempts=[*earlier, {k: content[k] for k in content if k not in gone}])

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

    def end_attempt(self, status: str, error: str | None = None, **facts: Any) -> None:
        """Write how the attempt ended; on a full disk into the space reserved for it."""
        ended = time.time()
        *earlier, attempt = self._content["attempts"]
        attempts = [*earlier, {**attempt, "ended": ended, "status": status, **facts}]
        if error:
            attempts[-1]["error"] = mask_password(error)
        # The clock may have been set back: a run lasts as long as its attempts, at least.
        attempts[-1]["ended"] = ended = max(ended, attempt["started"])
        lasted = sum(a.seconds for a in self.info.attempts) + ended - attempt["started"]
        ended = max(ended, self.info.created + lasted)
        try:
            self.update(attempts=attempts, status=status, ended=ended)
        except OSError:
            self._free_reserve()
            self.update(attempts=attempts, status=status, ended=ended)

    def open_metrics(self, tell: Callable[[str], None] | None = None) -> MetricsFile:
        metrics = MetricsFile(self.metrics_path, tell)
        self._finish_rewind(metrics)
        return metrics

    def rewind(
        self,
        metrics: MetricsFile,
        last_step: int,
        before: Positions | None = None,
        begin: Positions | None = None,
        last_kept: int = -1,
    ) -> int:
        """Move the rows after `last_step` aside, and note it in run.json; return how many.

        With `before` only those before these positions. With `begin`, where it is known which rows
        come again, those from these positions on, whatever their steps are. `last_kept` is the
        largest step of what stays beside the rows.

        run.json says what is about to happen before it happens: a reader that follows the file by
        position must know, and a crash in between is completed by `open_metrics`.
        """
        span = Span(last_step, before=before) if begin is None else Span(-1, begin, before)
        return undisturbed(lambda: self._rewind(metrics, max(last_step, last_kept), span))

    def _rewind(self, metrics: MetricsFile, last_step: int, span: Span) -> int:
        with metrics.lock:
            plan, size = metrics.plan_rewind(span), metrics.positions()
            if plan.rows:
                aside = self._path_aside()
                entry = {"attempt": self.attempt, "step": max(last_step, plan.last_kept)}
                self.update(rewinding={**entry, **plan.describe(span, size, aside)})
                metrics.rewind(span, aside)
                self._note_rewind()
            return plan.rows

    def _finish_rewind(self, metrics: MetricsFile) -> None:
        """Complete the rewind in which an earlier attempt was killed."""
        entry = self.info.rewinding
        if entry is not None:
            long = entry.long or RewoundFile()
            past = entry.step if entry.past is None else entry.past
            span = Span(past, Positions(entry.begin, long.begin))
            if entry.before is not None:
                span = span._replace(before=Positions(entry.before, long.before or 0))
            only = Positions(entry.size_before, long.size_before if entry.long else -1)
            metrics.rewind(span, self.path / entry.file, only)
            self._note_rewind()

    def _note_rewind(self) -> None:
        with self._info_lock:
            done = [*(self._content.get("rewinds") or []), self._content["rewinding"]]
            self.update(rewinding=None, rewinds=done)

    def _path_aside(self) -> Path:
        names = (layout.rewound_metrics(self.attempt, number) for number in range(1, 10_000))
        paths = (self.path / name for name in names)
        return next(path for path in paths if not files_of(path))

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
        self.require_open()
        config = self._config_content()
        changed = change_params(config, params, attempt=self.attempt, is_start=is_start)
        self._store_config(config)
        return changed

    def _config_content(self) -> dict[str, Any]:
        return read_config_content(self.path)

    def _store_config(self, config: Mapping[str, Any]) -> None:
        write_json(self.path / layout.CONFIG, config)

    def append_log(self, line: str) -> None:
        """Add one line to training.log, with the local time in front, by one write."""
        self.require_open()
        text = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {mask_password(line)}\n"
        descriptor = open_to_append(self.log_path)
        try:
            os.write(descriptor, legible(text).encode())
        finally:
            os.close(descriptor)
