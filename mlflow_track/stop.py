"""Turns a signal into a request to stop at the next step boundary."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# torchrun passes on a Ctrl-C that the terminal has sent to its workers already.
_SAME_REQUEST_SECONDS = 2.0


class StopRequest:
    """Catches the first signal; the second one ends the process at once.

    Attributes:
        arrived: The signal that came to this process; None before.
        reason: The reason to stop; None before there is one.
        is_agreed: Whether the reason came from `agree`.
        is_completion: Whether the run has reached its end by stopping: early stopping.
    """

    def __init__(self) -> None:
        self.arrived: signal.Signals | None = None
        self.reason: str | None = None
        self.is_agreed = self.is_completion = False
        self._is_shared = False
        self._arrived_at = 0.0
        self._previous: dict[int, Any] = {}

    def listen(self) -> None:
        """Take over the signals; only the main thread can, in another this does nothing.

        One that is ignored stays ignored: whoever started the job with `nohup`, or in the
        background of a script, means that it reaches nobody.
        """
        if self in _listening or threading.current_thread() is not threading.main_thread():
            return
        _guard_forks()
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._on_signal)
        _listening.append(self)

    def ignore(self) -> None:
        """Restore the previous handlers of the signals."""
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._previous.items():
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)
            self._previous.clear()
            if self in _listening:
                _listening.remove(self)

    def share(self) -> None:
        """Make signals mere requests: from here on `agree` decides.

        A loop that stopped between two boundaries would stop without a checkpoint, and a rank that
        stopped by itself would leave the others waiting.
        """
        self._is_shared = True

    def agree(self, reason: str, *, is_completion: bool = False) -> None:
        """Stop at this boundary."""
        self.is_completion = is_completion and self.reason is None
        self.reason, self.is_agreed = self.reason or reason, True

    @property
    def interruption(self) -> str | None:
        """The reason why the run was stopped before its end; None where it was not."""
        return None if self.is_completion else self.reason

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.arrived is not None:
            is_echo = "TORCHELASTIC_RUN_ID" in os.environ and (
                time.monotonic() - self._arrived_at < _SAME_REQUEST_SECONDS
            )
            if not is_echo:
                self.ignore()
                os.kill(os.getpid(), number)
            return
        self.arrived, self._arrived_at = signal.Signals(number), time.monotonic()
        if not self._is_shared:
            self.reason = self.arrived.name
        # Not print: the signal may have arrived in the middle of one.
        text = (
            f"\n{self.arrived.name}: stopping after this step"
            f"{' with a checkpoint' * self._is_shared}; send it again to end at once\n"
        )
        # Nobody may be there to read it: that ends no training.
        with contextlib.suppress(OSError, ValueError):
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, text.encode())


_listening: list[StopRequest] = []
_masks = threading.local()


def _hold_signals() -> None:
    # One that reached the child before its hooks would be taken for a wish, or lost: Python forgets
    # what is pending in a child.
    if _listening:
        _masks.previous = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _release_signals() -> None:
    if (previous := _masks.__dict__.pop("previous", None)) is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _release_signals_in_child() -> None:
    # A SIGTERM to a forked worker, as by multiprocessing, is meant to end it.
    for request in reversed(_listening.copy()):
        request.ignore()
    _release_signals()


@functools.cache
def _guard_forks() -> None:
    os.register_at_fork(
        before=_hold_signals,
        after_in_parent=_release_signals,
        after_in_child=_release_signals_in_child,
    )
