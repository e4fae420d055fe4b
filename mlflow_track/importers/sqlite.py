"""Reads SQLite databases that other programs wrote, and changes nothing in them."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mlflow_track.record.files import open_regular

_MAGIC = b"SQLite format 3\0"
_BUSY_SECONDS = 10.0


def is_database(path: Path) -> bool:
    """Whether a file is a SQLite database, by its first bytes."""
    try:
        with open_regular(path) as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def columns_of(path: Path, table: str) -> list[str]:
    """The columns of a table; none where the file has no such table, or is not a database."""
    if not is_database(path):
        return []
    try:
        with opened(path) as database:
            found = database.execute(f"PRAGMA table_info({table})")
            return [row[1].decode(errors="replace") for row in found]
    except ValueError:
        return []


@contextlib.contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """The database, to be read; texts come as bytes.

    Raises:
        ValueError: It is damaged, or locked for too long; the message says so.
    """
    try:
        with contextlib.closing(_connected(path)) as database:
            yield database
    except sqlite3.Error as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from error


def _connected(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=_BUSY_SECONDS)
    try:
        database.text_factory = bytes
        # What a schema calls by itself is of whoever wrote it.
        database.execute("PRAGMA trusted_schema = OFF")
        database.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError:
        # The log beside it needs a shared memory file, which a folder that is not writable lacks.
        database.close()
        database = sqlite3.connect(f"{path.as_uri()}?immutable=1", uri=True)
        database.text_factory = bytes
    except BaseException:
        database.close()
        raise
    return database


def rows(
    database: sqlite3.Connection, query: str, arguments: Sequence[Any], problems: list[str]
) -> Iterator[tuple[Any, ...]]:
    """The rows of a query up to where the database is damaged, which becomes a problem."""
    try:
        yield from database.execute(query, arguments)
    except sqlite3.Error as error:
        problems.append(f"the database is damaged: {error}")
