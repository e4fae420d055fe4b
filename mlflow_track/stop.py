"""Turns a signal into a request to stop at the next step boundary."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import signal
import sys
import termios
import threading
import time
from types import FrameType
from typing import Any, cast

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
# torchrun passes on a Ctrl-C that the terminal has sent to its workers already.
_SAME_REQUEST_SECONDS = 2.0


class StopRequest:
    """Catches the first signal; the second one ends the process at once.

    Attributes:
        arrived: The signal that came to this process; None before.
        reason: The reason to stop; None before there is one.
        is_agreed: Whether the reason came from `agree`.
        is_completion: Whether the run has reached its end: by early stopping, or by its last step.
    """

    def __init__(self) -> None:
        self.arrived: signal.Signals | None = None
        self.reason: str | None = None
        self.is_agreed = self.is_completion = False
        self._is_shared = self._is_heeded = False
        self._may_insist = False
        self._arrived_at = 0.0

    def listen(self) -> None:
        """Take over the signals; only the main thread can, in another this does nothing.

        One that is ignored stays ignored: whoever started the job with `nohup`, or in the
        background of a script, means that it reaches nobody.
        """
        if self in _handler.requests or threading.current_thread() is not threading.main_thread():
            return
        _guard_forks()
        _guard_spawns()
        _handler.add(self)

    def ignore(self) -> None:
        """Listen no more; the last request that does restores the previous handlers."""
        _handler.remove(self)

    def share(self) -> None:
        """Make signals mere requests: from here on `agree` decides. Called at each boundary.

        A loop that stopped between two boundaries would stop without a checkpoint, and a rank that
        stopped by itself would leave the others waiting.
        """
        self._is_shared = True
        # Whoever was told to stop, and is at another boundary, has not done so.
        self._is_heeded = False

    def agree(self, reason: str, *, is_completion: bool = False) -> None:
        """Stop at this boundary."""
        self.is_completion = is_completion and self.reason is None
        self.reason, self.is_agreed = self.reason or reason, True

    def heed(self) -> bool:
        """Whether to stop; whoever asks promises to do so."""
        self._is_heeded = self.reason is not None
        return self._is_heeded

    @property
    def interruption(self) -> str | None:
        """The reason why the loop was left before its end; None where it was not.

        A loop that never looked, or that continued nevertheless, has come to its end.
        """
        return self.reason if self._is_heeded and not self.is_completion else None

    @property
    def request(self) -> str | None:
        """The reason to stop, or the signal that asked for it and waits for the boundary."""
        return self.reason or (self.arrived.name if self.arrived is not None else None)

    def take(self, number: int) -> bool:
        """Note a signal; return whether it repeats an earlier one, so that the process ends now."""
        if self.arrived is None:
            self.arrived = signal.Signals(number)
            if not self._is_shared:
                self.reason = self.arrived.name
        elif number == signal.SIGHUP:
            # Kernel, shell and the end of the session each send one.
            return False
        elif self._may_insist:
            return not (
                "TORCHELASTIC_RUN_ID" in os.environ
                and time.monotonic() - self._arrived_at < _SAME_REQUEST_SECONDS
            )
        self._may_insist, self._arrived_at = number != signal.SIGHUP, time.monotonic()
        return False

    @property
    def announcement(self) -> str:
        assert self.arrived is not None
        return (
            f"\n{self.arrived.name}: stopping after this step"
            f"{' with a checkpoint' * self._is_shared}; send it again to end at once\n"
        )


class _Handler:
    """The handler of all runs of this process, in whatever order they begin and end.

    Attributes:
        requests: Those that listen.
    """

    def __init__(self) -> None:
        self.requests: list[StopRequest] = []
        self._previous: dict[int, Any] = {}
        self._first: dict[int, Any] = {}
        self._passing_on: set[int] = set()

    def add(self, request: StopRequest) -> None:
        for number in SIGNALS:
            current = signal.getsignal(number)
            if current is not self and current is not signal.SIG_IGN:
                self._previous[number] = current
                self._first.setdefault(number, current)
                signal.signal(number, self)
        self.requests.append(request)

    def remove(self, request: StopRequest) -> None:
        if request in self.requests:
            self.requests.remove(request)
        if not self.requests:
            self.restore()

    def restore(self) -> None:
        """Put the previous handlers back where no other came meanwhile.

        Only the main thread can. Where this handler stays, or a script puts it back, it passes
        signals on to the previous ones.
        """
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._previous.items():
                if signal.getsignal(number) is self:
                    signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if not self.requests:
            self._pass_on(number, frame)
            return
        asked = [request for request in self.requests if request.arrived is None]
        # Each takes it.
        if all([request.take(number) for request in self.requests]):
            self.requests.clear()
            self.restore()
            os.kill(os.getpid(), number)
        elif asked:
            if number == signal.SIGHUP:
                _leave_terminal()
            # Not print: the signal may have arrived in the middle of one. Nobody may be there to
            # read it: that ends no training.
            with contextlib.suppress(OSError, ValueError):
                descriptor = sys.__stderr__.fileno() if sys.__stderr__ else 2
                os.write(descriptor, asked[-1].announcement.encode())

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        """Do as without any run."""
        # A handler that came later and calls the one that it replaced may be what stands in
        # `_previous`, or may be called from there.
        is_chained = signal.getsignal(number) is not self or number in self._passing_on
        handler = (self._first if is_chained else self._previous).get(number)
        if callable(handler):
            self._passing_on.add(number)
            try:
                handler(number, frame)
            finally:
                self._passing_on.discard(number)
        else:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


_handler = _Handler()


def _leave_terminal() -> None:
    """Let what is printed go nowhere where the terminal has gone: `print` would raise."""
    for descriptor in (1, 2):
        try:
            termios.tcgetattr(descriptor)
        except termios.error as error:
            if error.args[0] == errno.EIO:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)


# --- children ---

_masks = threading.local()


def _hold_signals() -> None:
    # One that reached the child before its hooks would be taken for a wish, or lost: Python forgets
    # what is pending in a child.
    if _handler.requests:
        _masks.previous = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _release_signals() -> None:
    if (previous := _masks.__dict__.pop("previous", None)) is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _release_signals_in_child() -> None:
    if _handler.requests:
        _handler.requests.clear()
        _handler.restore()
        caller = sys._getframe(1)
        if caller.f_globals.get("__name__") == "multiprocessing.popen_fork" and _is_worker(
            caller.f_locals.get("process_obj")
        ):
            _stand_apart()
    _release_signals()


@functools.cache
def _guard_forks() -> None:
    os.register_at_fork(
        before=_hold_signals,
        after_in_parent=_release_signals,
        after_in_child=_release_signals_in_child,
    )


@functools.cache
def _guard_spawns() -> None:
    """The same for children that start as new interpreters: their pickled state carries it."""
    # Whoever starts one has imported it.
    if (reduction := sys.modules.get("multiprocessing.reduction")) is not None:
        import multiprocessing.context as context

        for kind in (context.Process, context.SpawnProcess, context.ForkServerProcess):
            reduction.register(kind, _reduce_process)


def _reduce_process(process: Any) -> tuple[Any, ...]:
    constructor, arguments, state = cast(tuple[Any, ...], object.__reduce_ex__(process, 2))[:3]
    if _handler.requests and _is_worker(process):
        # First, so that it is done before what takes long.
        state = {"_apart": _Apart(), **state}
    return constructor, arguments, state


class _Apart:
    """Unpickles to None, in a process that from then on stands apart."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _stand_apart, ()


def _is_worker(process: Any) -> bool:
    """Whether a process of multiprocessing does its parent's work, and ends with it."""
    if getattr(process, "daemon", False):
        return True
    target = getattr(process, "_target", None)
    return getattr(target, "__module__", None) == "concurrent.futures.process"


def _stand_apart() -> None:
    """Leave signals to the parent: it decides, and may need this worker up to the boundary.

    In a separate process group what is sent to the parent's (Ctrl-C, a scheduler) does not come
    here. What is sent to each process, as by Slurm, ends none either; SIGTERM does, with which a
    parent ends its workers.
    """
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)
    # While it was forked one may have come to the group.
    if hasattr(signal, "sigtimedwait"):
        sent = signal.sigtimedwait({signal.SIGTERM}, 0)
        if sent is not None and sent.si_pid == os.getppid():
            os.kill(os.getpid(), signal.SIGTERM)
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _stay)


def _stay(number: int, frame: FrameType | None) -> None:
    """Not SIG_IGN, which programs started by the worker would inherit."""
