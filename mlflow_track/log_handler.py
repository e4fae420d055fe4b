"""Writes the messages of Python's `logging` to training.log."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable

from mlflow_track.record.masking import mask_password

_FORMAT = "%(levelname)s %(name)s: %(message)s"


class LogHandler(logging.Handler):
    """Writes records of `logging` to a run's training.log, until the run ends.

    It never raises: a record that cannot be formatted is written as it is, and one that cannot be
    written is lost. Messages logged while it writes, in the same thread, are dropped.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter(_FORMAT))
        self._write = write
        self._thread = threading.local()
        self.is_closed = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, each of its lines by itself."""
        if self.is_closed or getattr(self._thread, "is_writing", False):
            return
        self._thread.is_writing = True
        try:
            with contextlib.suppress(Exception):
                for line in mask_password(self._text(record)).splitlines():
                    self._write(line)
        finally:
            self._thread.is_writing = False

    def close(self) -> None:
        """Write nothing any more, and leave every logger."""
        self.is_closed = True
        for logger in (logging.root, *list(logging.root.manager.loggerDict.values())):
            if isinstance(logger, logging.Logger):
                logger.removeHandler(self)
        super().close()

    def _text(self, record: logging.LogRecord) -> str:
        try:
            return self.format(record)
        except Exception as error:
            text = record.msg if isinstance(record.msg, str) else type(record.msg).__name__
            return (
                f"{record.levelname} {record.name}: {text} (cannot be formatted: "
                f"{type(error).__name__}: {error})"
            )
