"""Describes the end of a run: its status, and its error in one line."""

from __future__ import annotations

import builtins
import contextlib
import functools
import opcode
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from mlflow_track.record.files import legible
from mlflow_track.record.masking import mask_password
from mlflow_track.record.schema import FAILED, FINISHED, KILLED

_MOST_CHARACTERS = 1000
_OLDER_THAN = "_mlflow_track_older_than"


def ending_of(
    error: BaseException | None, stop_reason: str | None, request: str | None = None
) -> tuple[str, str | None]:
    """The status of a run, and why; FINISHED where nothing ended it.

    Args:
        error: The exception that ended it.
        stop_reason: Why its loop was left early.
        request: Why it was asked to stop, whether its loop came to do so or not.
    """
    if isinstance(error, KeyboardInterrupt):
        return KILLED, "interrupted"
    if error is not None and not (isinstance(error, SystemExit) and not error.code):
        if request is not None and _is_loss_of_workers(error):
            return KILLED, f"stopped: {request}; {one_line(error)}"
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
    """The error that reached the top of the program while the run was alive, if one did.

    To be called at the end of the interpreter.
    """
    error = getattr(sys, "last_value", None)
    if error is not None and run_id not in getattr(error, _OLDER_THAN, ()):
        return error
    return SystemExit(_exits.status) if _exits is not None and _exits.was_left() else None


class _Exits:
    """Remembers what the program was left with: a SystemExit leaves no other trace."""

    def __init__(self, outermost: FrameType) -> None:
        self.status: Any = None
        self._outermost = outermost

    def was_left(self) -> bool:
        """Whether an exception ended the program's outermost function; else it returned."""
        last = self._outermost.f_lasti
        code = self._outermost.f_code.co_code
        return last >= 0 and not opcode.opname[code[last]].startswith("RETURN_")

    def noting(self, leave: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(leave)
        def note(code: Any = None) -> Any:
            if threading.current_thread() is threading.main_thread():
                self.status = code
            return leave(code)

        return note


_exits: _Exits | None = None


def note_exits() -> None:
    """From here on remember the status that `sys.exit` or `exit` is called with."""
    global _exits
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    if _exits is not None or frame is None:
        return
    while frame.f_back is not None:
        frame = frame.f_back
    _exits = _Exits(frame)
    sys.exit = _exits.noting(sys.exit)
    for name in ("exit", "quit"):
        if hasattr(builtins, name):
            setattr(builtins, name, _exits.noting(getattr(builtins, name)))


def _is_loss_of_workers(error: BaseException) -> bool:
    """Whether processes that worked for this one are gone, as after a signal to all of them."""
    is_of_loader = isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker")
    return is_of_loader or type(error).__name__ == "BrokenProcessPool"


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
