"""Describes the end of a run: its status, and its error in one line."""

from __future__ import annotations

import contextlib
import sys

from mlflow_track.record.files import legible
from mlflow_track.record.masking import mask_password
from mlflow_track.record.schema import FAILED, FINISHED, KILLED

_MOST_CHARACTERS = 1000
_OLDER_THAN = "_mlflow_track_older_than"


def ending_of(error: BaseException | None, stop_reason: str | None) -> tuple[str, str | None]:
    """The status of a run that `error` ended, or that was asked to stop, and why; else FINISHED."""
    if isinstance(error, KeyboardInterrupt):
        return KILLED, "interrupted"
    if error is not None and not (isinstance(error, SystemExit) and not error.code):
        return FAILED, one_line(error)
    if stop_reason is not None:
        return KILLED, f"stopped: {stop_reason}"
    return FINISHED, None


def note_error_before(run_id: str) -> None:
    """Mark an error of an interactive session as older than the run.

    The error itself is not kept: memory of a device may hang on its frames.
    """
    error = getattr(sys, "last_value", None)
    if error is not None:
        with contextlib.suppress(AttributeError, TypeError):
            setattr(error, _OLDER_THAN, {*getattr(error, _OLDER_THAN, ()), run_id})


def error_since(run_id: str) -> BaseException | None:
    """The error that reached the top of the program while the run was alive, if one did."""
    error = getattr(sys, "last_value", None)
    return None if run_id in getattr(error, _OLDER_THAN, ()) else error


def one_line(error: BaseException) -> str:
    """The last line of a traceback. A message too long for a tag loses its middle."""
    try:
        message = str(error)
    except Exception:
        message = "(its message cannot be read)"
    text = " ".join(f"{type(error).__name__}: {message}".split())
    # Passwords go before a cut can take away what tells them from other words; and half characters
    # (of a file's name in another encoding) cannot be written.
    text = legible(mask_password(text))
    if len(text) <= _MOST_CHARACTERS:
        return text
    half = _MOST_CHARACTERS // 2 - 2
    return f"{text[:half]} … {text[-half:]}"
