"""What must not stop half-way runs in a thread: signal handlers interrupt only the main one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def undisturbed(work: Callable[[], T]) -> T:
    """Run `work` to its end, even if a Ctrl-C takes its caller away, and give what it returns.

    A lock that `work` takes, and that a signal handler needs, must not be the caller's.
    """
    if threading.current_thread() is not threading.main_thread():
        return work()
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="undisturbed")
    try:
        thread.start()
    except RuntimeError:
        # At the end of the interpreter there are no new threads.
        return work()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
