"""Lets one process at a time open a database, of which MLflow makes the tables that are missing."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
import urllib.parse
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mlflow_track.backends.protocol import Unavailable

_MOST_SECONDS = 300.0
_POLL_SECONDS = 0.1
# A number that no other program locks in the database: the first bytes of this package's name.
_NUMBER = int.from_bytes(b"mlflow_t", "big") >> 1
_NAME = "mlflow_track.tables"
_DIALECTS = ("sqlite", "postgresql", "mysql", "mssql")


@contextlib.contextmanager
def one_at_a_time(uri: str) -> Iterator[None]:
    """Hold the lock of a database inside of this; of a server, or where there is none, nothing.

    Of SQLite it is a lock on the folder of the file, which leaves nothing behind; of others one of
    the database itself, so that it holds for processes of several machines.

    Raises:
        Unavailable: Another process has held it for minutes.
    """
    scheme, _, rest = uri.partition("://")
    dialect = scheme.partition("+")[0].lower()
    file = urllib.parse.unquote(rest[1:].partition("?")[0])
    if dialect == "sqlite" and file and not file.startswith(":"):
        with _folder_locked(Path(file).parent):
            yield
    elif dialect in ("postgresql", "mysql"):
        with _database_locked(uri, dialect):
            yield
    else:
        yield


def require_own_schema(uri: str) -> None:
    """Return where a database has no tables yet, or those of this version of MLflow.

    MLflow's client would migrate those of an older one unasked: of a database that others use with
    that version, and without a backup.

    Raises:
        Unavailable: The tables are of another version.
    """
    import sqlalchemy
    import sqlalchemy.exc
    from mlflow.store.db import utils

    if uri.partition("://")[0].partition("+")[0].lower() not in _DIALECTS:
        return
    engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.pool.NullPool)
    try:
        with engine.connect() as connection:
            if not sqlalchemy.inspect(connection).has_table("experiments"):
                return
            question = sqlalchemy.text("select version_num from alembic_version")
            found = connection.execute(question).scalar()
    except sqlalchemy.exc.OperationalError:
        return  # MLflow says itself what is wrong with it
    finally:
        engine.dispose()
    if found != (own := utils._get_latest_schema_revision()):
        raise Unavailable(
            f"the database has the tables of another version of MLflow (schema {found}, and this "
            f"one, {version('mlflow')}, has {own}): after a backup, run 'mlflow db upgrade' with "
            "its URI and the newer version, and use that version everywhere",
            is_answer=True,
        )


@contextlib.contextmanager
def _folder_locked(folder: Path) -> Iterator[None]:
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        # It is missing, or closed to this user: MLflow says so itself.
        yield
        return
    try:
        _wait_for(lambda: _flock(descriptor), f"{folder}")
        yield
    finally:
        os.close(descriptor)


def _flock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # a file system without locks: as before
    return True


@contextlib.contextmanager
def _database_locked(uri: str, dialect: str) -> Iterator[None]:
    import sqlalchemy
    import sqlalchemy.exc

    if dialect == "mysql":
        take, release = f"select get_lock('{_NAME}', 0)", f"select release_lock('{_NAME}')"
    else:
        take = f"select pg_try_advisory_lock({_NUMBER})"
        release = f"select pg_advisory_unlock({_NUMBER})"
    engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.pool.NullPool)

    def ask(connection: Any, question: str) -> bool:
        return bool(connection.execute(sqlalchemy.text(question)).scalar())

    try:
        with engine.connect() as connection:
            _wait_for(lambda: ask(connection, take), f"the database {engine.url.database}")
            try:
                yield
            finally:
                with contextlib.suppress(sqlalchemy.exc.SQLAlchemyError):
                    ask(connection, release)
    finally:
        engine.dispose()


def _wait_for(take: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _MOST_SECONDS
    while not take():
        if time.monotonic() > deadline:
            raise Unavailable(f"another process has been opening {what} for minutes")
        time.sleep(_POLL_SECONDS)
