"""Signals that come while something must not stop half-way: handled afterwards, each by its own."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from mlflow_track.record.uninterruptible import undisturbed


@pytest.fixture(autouse=True)
def own_handlers() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    former = {number: signal.getsignal(number) for number in numbers}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in former.items():
        signal.signal(number, handler)


def test_work_is_done_before_ctrl_c_is_raised() -> None:
    done = []

    def work() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        done.append(1)

    with pytest.raises(KeyboardInterrupt):
        undisturbed(work)
    assert done == [1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    # The negative control: as it is without.
    done.clear()
    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == []


def test_every_signal_reaches_its_handler_once_though_another_handler_raises() -> None:
    seen: list[int] = []

    def raising(number: int, frame: object) -> None:
        seen.append(number)
        raise OSError("handler")

    def noting(number: int, frame: object) -> None:
        seen.append(number)

    signal.signal(signal.SIGUSR1, raising)
    signal.signal(signal.SIGUSR2, noting)

    def work() -> None:
        for number in (signal.SIGUSR1, signal.SIGINT, signal.SIGUSR2):
            os.kill(os.getpid(), number)
        assert seen == []

    with pytest.raises(KeyboardInterrupt):
        undisturbed(work)
    assert seen == [signal.SIGUSR1, signal.SIGUSR2]
    assert signal.getsignal(signal.SIGUSR1) is raising
    assert signal.getsignal(signal.SIGUSR2) is noting


def test_a_handler_may_do_what_it_interrupted() -> None:
    order: list[str] = []

    def handler(number: int, frame: object) -> None:
        undisturbed(lambda: order.append("handler"))

    signal.signal(signal.SIGUSR1, handler)

    def work() -> str:
        os.kill(os.getpid(), signal.SIGUSR1)
        order.append("work")
        return "result"

    assert undisturbed(work) == "result"
    assert order == ["work", "handler"]


def test_an_error_of_the_work_comes_out_and_the_handlers_come_back() -> None:
    def work() -> None:
        raise ValueError("work")

    with pytest.raises(ValueError, match="work"):
        undisturbed(work)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_signals_that_are_ignored_or_kill_do_so_meanwhile() -> None:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    handlers = undisturbed(lambda: [signal.getsignal(n) for n in (signal.SIGUSR1, signal.SIGTERM)])
    assert handlers[0] is signal.SIG_IGN
    assert handlers[1] is signal.SIG_DFL


def test_another_thread_is_never_interrupted_and_touches_no_handler() -> None:
    found = []
    thread = threading.Thread(
        target=lambda: found.append(undisturbed(lambda: signal.getsignal(signal.SIGINT)))
    )
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]
