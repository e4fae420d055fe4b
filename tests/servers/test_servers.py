"""The servers of the tests are real, and a run reaches them."""

from __future__ import annotations

import os
from pathlib import Path

import psycopg
import pytest

import mlflow_track as mt
from mlflow_track.mirror.process import open_backend, sync_run
from mlflow_track.mirror.state import MirrorState
from tests.servers import fixtures
from tests.servers.mlflow_server import MlflowServer
from tests.servers.postgres import Postgres
from tests.servers.s3 import S3

pytestmark = pytest.mark.xdist_group("server")


def test_a_run_reaches_postgresql_and_s3(
    postgres: Postgres, s3: S3, postgres_server: MlflowServer
) -> None:
    with mt.start_run(experiment="team", params={"lr": 0.1}) as run:
        for step in range(3):
            run.log_metrics({"loss": step / 3, "nan": float("nan")}, step=step)
        run.log_text("hello", "notes/hello.txt")
    assert sync_run(
        run.directory, "mlflow", open_backend("mlflow", {"tracking_uri": postgres_server.uri})
    ).is_complete
    # Other tests have runs in the same database.
    run_id = MirrorState.read(run.directory, "mlflow").run_id
    with psycopg.connect(postgres.uri("mlflow")) as connection:
        rows = connection.execute(
            "select step, value from metrics where key = 'loss' and run_uuid = %s", [run_id]
        ).fetchall()
        status = connection.execute(
            "select status from runs where run_uuid = %s", [run_id]
        ).fetchall()
    assert sorted(rows) == [(0, 0.0), (1, 1 / 3), (2, 2 / 3)]
    assert status == [("FINISHED",)]
    (key,) = [key for key in s3.object_names() if key.endswith("notes/hello.txt")]
    assert s3.client().get_object(Bucket="artifacts", Key=key)["Body"].read() == b"hello"


def test_postgresql_wants_the_password(postgres: Postgres) -> None:
    uri = postgres.uri("mlflow")
    password = uri.split(":")[2].split("@")[0]
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(uri.replace(password, "wrong"))


@pytest.mark.skipif(os.getuid() != 0, reason="only root may not run it")
def test_postgresql_does_not_run_as_root(postgres: Postgres) -> None:
    assert postgres._process is not None
    status = Path(f"/proc/{postgres._process.popen.pid}/status").read_text()
    assert "\nUid:\t0" not in status


@pytest.mark.parametrize(
    ("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)]
)
def test_without_postgresql_a_developer_skips_and_ci_fails(
    ci: str, outcome: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", ci)
    monkeypatch.setattr(fixtures, "find_programs", lambda: None)
    with pytest.raises(outcome, match="apt-get install postgresql"):
        fixtures.require_postgres()
