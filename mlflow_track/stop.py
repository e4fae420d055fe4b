"""How a signal becomes a request to stop at the next step boundary."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequest:
    """Catches the first signal; the second one ends the process at once.

    Attributes:
        reason: The name of the signal that arrived, None before.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self._previous: dict[int, Any] = {}

    def listen(self) -> None:
        """Take over the signals; only the main thread can, in another this does nothing."""
        if self._previous or threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._arrived)
        # Whoever ends a forked worker, as multiprocessing does with SIGTERM, means it.
        os.register_at_fork(after_in_child=self.ignore)

    def ignore(self) -> None:
        """Give the signals back to whoever had them."""
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._previous.items():
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)
            self._previous.clear()

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        if self.reason is not None:
            self.ignore()
            os.kill(os.getpid(), number)
            return
        self.reason = signal.Signals(number).name
        # Not print: the signal may have arrived in the middle of one.
        text = (
            f"\n{self.reason}: stopping after this step with a checkpoint; again to end at once\n"
        )
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, text.encode())
