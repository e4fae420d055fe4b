"""What Python's `logging` is given stands in training.log, and never disturbs the training."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mlflow_track as mt


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    logger = logging.getLogger("tests.training")
    logger.setLevel(logging.INFO)
    # Other handlers, as those of pytest, do not take everything.
    logger.propagate = False
    yield logger
    logger.propagate = True
    for handler in logger.handlers.copy():
        logger.removeHandler(handler)


def lines(run: mt.Run) -> list[str]:
    text = (run.path / "training.log").read_text(encoding="utf-8")
    return [line.split(" ", 2)[2] for line in text.splitlines()]


def test_records_are_lines_with_level_and_name(logger: logging.Logger, capsys: Any) -> None:
    with mt.start_run() as run:
        logger.addHandler(run.log_handler())
        logger.info("epoch %d", 3)
        logger.warning("two\nlines, token=%s", "https://user:secret@host")
        logger.debug("not at this level")
        try:
            raise ValueError("broken")
        except ValueError:
            logger.exception("it failed")
    own = [line for line in lines(run) if not line.startswith("run ")]
    assert own[:3] == [
        "INFO tests.training: epoch 3",
        "WARNING tests.training: two",
        "lines, token=***",
    ]
    assert own[3] == "ERROR tests.training: it failed" and own[-1] == "ValueError: broken"
    # The program's own handlers show it on the console, if they do.
    assert "epoch 3" not in capsys.readouterr().err


def record(text: Any, *arguments: Any) -> logging.LogRecord:
    """Not for a logger: what pytest captures there has to be right."""
    return logging.LogRecord("name", logging.INFO, "", 0, text, arguments, None)


@pytest.mark.parametrize(
    ("text", "arguments", "line"),
    [
        ("%d of %d", ("a",), "INFO name: %d of %d (cannot be formatted: TypeError: %d format"),
        ("%s", ("Loud",), "INFO name: %s (cannot be formatted: RuntimeError: no text)"),
        ("half \ud800", (), "INFO name: half "),
    ],
)
def test_what_cannot_be_formatted_is_written_as_it_is(
    text: str, arguments: tuple[Any, ...], line: str
) -> None:
    with mt.start_run() as run:
        given = [Loud() if a == "Loud" else a for a in arguments]
        run.log_handler().handle(record(text, *given))
    assert lines(run)[-2].startswith(line)


def test_what_cannot_be_written_raises_nothing() -> None:
    with mt.start_run() as run:
        handler, elsewhere = run.log_handler(), run.path.with_name("elsewhere")
        run.path.rename(elsewhere)
        handler.handle(record("lost"))
        elsewhere.rename(run.path)
        handler.handle(record("and on"))
    assert lines(run)[-2] == "INFO name: and on"


class Loud:
    """Something whose text cannot be made."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


def test_a_record_that_is_logged_while_one_is_written_is_left_out(logger: logging.Logger) -> None:
    with mt.start_run() as run:
        handler = run.log_handler()
        logger.addHandler(handler)
        write = run._attempt.record.append_log

        def log_again(line: str) -> None:
            write(line)
            logger.info("written %s", line)

        handler._write = log_again  # type: ignore[attr-defined]
        logger.info("once")
        handler._write = write  # type: ignore[attr-defined]
    assert [line for line in lines(run) if "once" in line] == ["INFO tests.training: once"]


def test_threads_log_at_the_same_time(logger: logging.Logger) -> None:
    with mt.start_run() as run:
        logger.addHandler(run.log_handler())
        threads = [
            threading.Thread(target=lambda n=n: [logger.info("t%d %d", n, i) for i in range(50)])
            for n in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = [line for line in lines(run) if line.startswith("INFO tests.training: t")]
    assert len(set(found)) == 200


def test_the_end_of_the_run_closes_the_handler_and_takes_it_off(logger: logging.Logger) -> None:
    with mt.start_run() as run:
        handler = run.log_handler()
        logger.addHandler(handler)
        logging.getLogger().addHandler(handler)
    assert handler not in logger.handlers and handler not in logging.getLogger().handlers
    size = (run.path / "training.log").stat().st_size
    logger.addHandler(handler)
    logger.info("after the end")
    assert (run.path / "training.log").stat().st_size == size
    with pytest.raises(RuntimeError, match="has ended"):
        run.log_handler()


def test_a_forked_child_writes_nothing_into_the_log(logger: logging.Logger) -> None:
    with mt.start_run() as run:
        logger.addHandler(run.log_handler())
        child = os.fork()
        if not child:
            logger.info("from the child")
            os._exit(0)
        os.waitpid(child, 0)
        logger.info("from the parent")
    assert "from the parent" in lines(run)[-2] and not any("the child" in x for x in lines(run))


def test_without_a_record_the_handler_takes_everything(logger: logging.Logger) -> None:
    with mt.start_run(backend="off") as run:
        logger.addHandler(run.log_handler())
        logger.info("nowhere")
    assert not Path("off").exists()
