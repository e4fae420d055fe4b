"""One call of a run's checkpoints at a time: a checkpoint holds the state of one moment.

A call of another thread waits for its turn. A call from a signal handler, or from an object whose
`state_dict` saves, comes in the middle of a call of its own thread. It would mix two states and
cannot wait, so it is refused; only the end of the run is accepted there, and done afterwards.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

_Self = TypeVar("_Self", bound="Turns")
_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


class Turns:
    """The base of a class whose methods take turns: see `in_turn`."""

    def __init__(self) -> None:
        self._turn = threading.RLock()
        # The method that runs now, and why none may any more; empty where that is not so.
        self._running = self._why_closed = ""
        self._must_end = False

    def _end_in_turn(self) -> None:
        """End, now or as soon as the running method of this thread has."""
        with self._turn:
            if self._running:
                self._must_end = True
            elif not self._why_closed:
                self._end()

    def _end_now(self, method: str) -> None:
        """End before `method` continues.

        Raises:
            RuntimeError: A method of this thread is running.
        """
        with self._turn:
            if self._running:
                raise RuntimeError(_inside(method, self._running))
            self._end_in_turn()

    def _end(self) -> None:
        raise NotImplementedError

    def _abandon(self, why: str) -> None:
        """In a forked child: its methods raise RuntimeError(why) from here on."""
        # A thread that does not exist here may have held the lock.
        self._turn = threading.RLock()
        self._why_closed, self._running = why, ""

    def _leave(self) -> None:
        self._running = ""
        if self._must_end:
            self._must_end = False
            self._end()


def _inside(method: str, running: str) -> str:
    return (
        f"{method} was called inside checkpoints.{running} of the same thread, as by a signal "
        "handler: a checkpoint holds the state of one moment; let the handler set a flag, and call "
        "it after the step"
    )


def in_turn(
    method: Callable[Concatenate[_Self, _Arguments], _Result],
) -> Callable[Concatenate[_Self, _Arguments], _Result]:
    """A method that runs alone, and raises RuntimeError inside another one or after the end."""
    name = method.__name__

    @functools.wraps(method)
    def alone(self: Any, *args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        if self._why_closed:
            raise RuntimeError(self._why_closed)
        with self._turn:
            if self._running:
                raise RuntimeError(_inside(f"checkpoints.{name}", self._running))
            if self._why_closed:
                raise RuntimeError(self._why_closed)
            self._running = name
            try:
                return method(self, *args, **kwargs)
            except OSError as error:
                if self._must_end:
                    raise RuntimeError(f"the run was ended inside checkpoints.{name}") from error
                raise
            finally:
                self._leave()

    return alone
