"""Work that must not stop half-way: signal handlers of the main thread wait for it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

_SIGNALS = tuple(map(int, signal.valid_signals()))
# Without the enum that is made of each answer: for all signals that takes as long as a file.
_handler_of: Callable[[int], Any] = getattr(signal.getsignal, "__wrapped__", signal.getsignal)


def undisturbed(work: Callable[[], T]) -> T:
    """Run `work` to its end and return its result; a Ctrl-C meanwhile is raised afterwards.

    The same holds for every signal with a handler in Python, which may raise as well, or log.
    """
    if threading.current_thread() is not threading.main_thread():
        return work()
    arrived: list[int] = []
    handlers = {n: handler for n in _SIGNALS if callable(handler := _handler_of(n))}
    try:
        for number in handlers:
            signal.signal(number, lambda number, frame: arrived.append(number))
        return work()
    finally:
        _restore(handlers, arrived)


def _restore(handlers: dict[int, Any], arrived: list[int]) -> None:
    """Restore the handlers and pass on the arrived signals; raises their last error."""
    error: BaseException | None = None
    while handlers or arrived:
        try:
            while handlers:
                number = next(iter(handlers))
                signal.signal(number, handlers[number])
                del handlers[number]
            while arrived:
                signal.raise_signal(arrived.pop(0))
        except BaseException as raised:
            # Of a handler that is back already: the others must come back nevertheless.
            error = raised
    if error is not None:
        raise error
