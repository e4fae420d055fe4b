"""A PostgreSQL server in a folder of its own, on loopback, with a password."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
from pathlib import Path

from tests.servers.processes import Process, free_port

_USER = "mlflow"
# Debian keeps the server's programs away from the PATH, and there puts pg_ctlcluster to find them.
_DEBIAN = Path("/usr/lib/postgresql")


def find_programs() -> Path | None:
    """The folder with `initdb` and `postgres`, of the newest version; None where there is none."""
    versions = [path.parent for path in _DEBIAN.glob("*/bin/initdb")]
    if versions and shutil.which("pg_ctlcluster"):
        return max(versions, key=lambda path: float(path.parent.name))
    found = shutil.which("initdb")
    return Path(found).resolve().parent if found else None


class Postgres:
    """A cluster of databases. What is in `folder` from before is kept.

    PostgreSQL does not run as root: there it runs as the user `postgres`, else `nobody`, who must
    be able to reach the folder.

    Args:
        folder: Holds the data, the log and the password.
        is_durable: Whether commits are flushed to the disk; tests are faster without.
    """

    def __init__(self, folder: Path, *, is_durable: bool) -> None:
        programs = find_programs()
        if programs is None:
            raise FileNotFoundError("PostgreSQL is not installed: apt-get install postgresql")
        self._programs, self._folder, self._is_durable = programs, folder, is_durable
        self._user = _unprivileged_user()
        self._data, self._password_file = folder / "data", folder / "password"
        self.port = 0
        self._process: Process | None = None

    def start(self) -> None:
        if not (self._data / "PG_VERSION").exists():
            self._make_cluster()
        self.port = self.port or free_port()
        settings = {"listen_addresses": "127.0.0.1", "unix_socket_directories": ""}
        if not self._is_durable:
            settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        options = [f"--{name}={value}" for name, value in settings.items()]
        self._process = Process(
            [
                *(str(self._programs / "postgres"), "-D", str(self._data)),
                *("-p", str(self.port), *options),
            ],
            self._folder / "postgres.log",
            folder=self._folder,
            user=self._user,
        )
        self._process.wait_until(self._answers)

    def stop(self) -> None:
        """End it in order, with all written; connections are cut."""
        if self._process is not None:
            self._process.terminate(signal.SIGINT)
            self._process = None

    def uri(self, database: str) -> str:
        """The database as SQLAlchemy names it; made if it does not exist."""
        import psycopg

        with psycopg.connect(self._dsn("postgres"), autocommit=True) as connection:
            found = connection.execute("select 1 from pg_database where datname = %s", [database])
            if found.fetchone() is None:
                connection.execute(f'create database "{database}"')  # type: ignore[arg-type]
        return self._dsn(database)

    def _dsn(self, database: str) -> str:
        password = self._password_file.read_text().strip()
        return f"postgresql://{_USER}:{password}@127.0.0.1:{self.port}/{database}"

    def _answers(self) -> bool:
        import psycopg

        try:
            psycopg.connect(self._dsn("postgres"), connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    def _make_cluster(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._password_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "w") as file:
            file.write(os.urandom(12).hex() + "\n")
        if self._user is not None:
            for path in (self._folder, self._password_file):
                os.chown(path, self._user, -1)
        made = subprocess.run(
            [
                *(str(self._programs / "initdb"), "-D", str(self._data), "--username", _USER),
                *("--auth", "scram-sha-256", "--pwfile", str(self._password_file)),
                *("--encoding", "UTF8", "--locale", "C", "--no-sync"),
            ],
            cwd=self._folder if self._user is None else "/",
            capture_output=True,
            text=True,
            check=False,
            **({} if self._user is None else {"user": self._user, "extra_groups": []}),
        )
        if made.returncode != 0:
            raise RuntimeError(f"initdb in {self._folder} failed:\n{made.stderr}")


def _unprivileged_user() -> int | None:
    """Whom PostgreSQL runs as; None: as the current user."""
    if os.getuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_uid
        except KeyError:
            continue
    raise RuntimeError("PostgreSQL does not run as root, and there is no user postgres or nobody")
