"""Stores for tests, and servers: each starts when the first test asks for it, once per process.

Tests that use one carry `pytest.mark.xdist_group("server")`: then one process runs them all, and
no server starts twice.
"""

from __future__ import annotations

import os
import pwd
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.environment import lack
from tests.once import made_once
from tests.servers.mlflow_server import MlflowServer
from tests.servers.postgres import Postgres, find_programs
from tests.servers.s3 import S3


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server; `.uri("name")` is a database of it."""
    require_postgres()
    folder = Path(tempfile.mkdtemp(prefix="postgres-of-tests-", dir=_open_to_all()))
    server = Postgres(folder, is_durable=False)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """An S3 endpoint with a bucket."""
    server = S3(tmp_path_factory.mktemp("s3"))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def postgres_server(
    postgres: Postgres, s3: S3, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MlflowServer]:
    """`mlflow server` as a team runs it: PostgreSQL, and artifacts through the server to S3."""
    server = MlflowServer(
        tmp_path_factory.mktemp("mlflow-on-postgres"),
        postgres.uri("mlflow"),
        s3.uri,
        environment=s3.environment,
    )
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def sqlite_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """`mlflow server` on a SQLite file, artifacts through the server into a folder."""
    folder = tmp_path_factory.mktemp("mlflow-on-sqlite")
    server = MlflowServer(folder, f"sqlite:///{folder}/server.db", str(folder / "artifacts"))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite store with its tables made, which takes seconds; tests copy it."""

    def make(folder: Path) -> None:
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        from mlflow import MlflowClient

        MlflowClient(f"sqlite:///{folder}/empty.db").search_experiments()

    return made_once(tmp_path_factory, "migrated", make) / "empty.db"


@pytest.fixture
def store(migrated_database: Path, tmp_path: Path) -> str:
    """The URI of an empty SQLite store."""
    path = tmp_path / "mlflow.db"
    path.write_bytes(migrated_database.read_bytes())
    return f"sqlite:///{path}"


def _open_to_all() -> str:
    """A temporary folder that every user may enter: pytest's own, and often TMPDIR, are not."""
    for folder in (tempfile.gettempdir(), "/tmp", "/var/tmp"):
        path = Path(folder).resolve()
        if all(parent.stat().st_mode & 0o001 for parent in (path, *path.parents)):
            return folder
    return tempfile.gettempdir()


def require_postgres() -> None:
    """Skip where PostgreSQL is not installed, or cannot run; in CI, fail."""
    if find_programs() is None:
        lack("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        lack("PostgreSQL runs only as a user that has a name (an entry in /etc/passwd)")
