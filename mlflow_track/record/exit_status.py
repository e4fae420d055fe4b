"""Describes the end of a run: its status, and its error in one line."""

from __future__ import annotations

import builtins
import contextlib
import dis
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
# Instructions between the parts of a call.
_FILLERS = ("CACHE", "PRECALL", "PUSH_NULL", "NOP", "EXTENDED_ARG")


def ending_of(
    error: BaseException | None, stop_reason: str | None, request: str | None = None
) -> tuple[str, str | None]:
    """The status of a run, and why; FINISHED where nothing ended it.

    Args:
        stop_reason: Why its loop was left early.
        request: Why it was asked to stop, whether its loop came to do so or not.
    """
    if isinstance(error, KeyboardInterrupt):
        return KILLED, "interrupted"
    if isinstance(error, UnknownExit):
        return FINISHED if error.is_at_end else KILLED, str(error)
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
    return _exits.ending() if _exits is not None else None


class UnknownExit(SystemExit):
    """A SystemExit of which the interpreter does not tell the status.

    Args:
        is_at_end: Whether the main module raised it with what a function had returned, as in
            `raise SystemExit(main())`; else the program was left before its end.
    """

    def __init__(self, *, is_at_end: bool) -> None:
        self.is_at_end = is_at_end

    def __str__(self) -> str:
        return "left by a SystemExit of unknown status: use sys.exit(…), or start_run in `with`"


class _Exits:
    """Remembers how the program was left: a SystemExit leaves no other trace."""

    def __init__(self, module: FrameType) -> None:
        self._module = module
        self._noted: SystemExit | None = None

    def ending(self) -> SystemExit | None:
        """What ended the program's main module; None where it came to its end."""
        code, last = self._module.f_code, self._module.f_lasti
        name = opcode.opname[code.co_code[last]] if last >= 0 else "RETURN_VALUE"
        if name.startswith("RETURN_"):
            return None
        before: list[dis.Instruction] = []
        if name == "RAISE_VARARGS":
            parts = [part for part in dis.get_instructions(code) if part.opname not in _FILLERS]
            before = [part for part in parts if part.offset < last]
            if code.co_code[last + 1] == 2:
                before.pop()  # raise … from …
        return self._raised(before) or self._noted or UnknownExit(is_at_end=_are_calls(before[-2:]))

    def _raised(self, before: list[dis.Instruction]) -> SystemExit | None:
        """What `raise SystemExit…` in the main module raised, where its code shows the status.

        Args:
            before: The instructions before the raise.
        """
        parts = before[:-1] if _are_calls(before[-1:]) else before
        if parts and parts[-1].argval == SystemExit.__name__:
            return SystemExit()
        if len(parts) < 2 or parts[-2].argval != SystemExit.__name__:
            return None
        status = parts[-1]
        if status.opname in ("LOAD_NAME", "LOAD_GLOBAL"):
            return SystemExit(self._module.f_globals.get(status.argval))
        return SystemExit(status.argval) if status.opname.startswith("LOAD_") else None

    def noting(self, leave: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(leave)
        def note(code: Any = None) -> Any:
            if threading.current_thread() is threading.main_thread():
                self._noted = SystemExit(code)
            return leave(code)

        return note


_exits: _Exits | None = None


def note_exits() -> None:
    """From here on remember the status that `sys.exit` or `exit` is called with."""
    global _exits
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    if _exits is not None or frame is None:
        return
    module, outer = None, frame
    while outer is not None:
        # The outermost that is the program: `python -m` has functions of the library around it.
        if outer.f_globals.get("__name__") == "__main__":
            module = outer
        frame, outer = outer, outer.f_back
    _exits = _Exits(module or frame)
    sys.exit = _exits.noting(sys.exit)
    for name in ("exit", "quit"):
        if hasattr(builtins, name):
            setattr(builtins, name, _exits.noting(getattr(builtins, name)))


def _are_calls(parts: list[dis.Instruction]) -> bool:
    return bool(parts) and all(part.opname.startswith("CALL") for part in parts)


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
