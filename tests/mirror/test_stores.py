"""What if the store itself is in trouble: locked, full, run or experiment deleted?"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

import mlflow_track as mt
from mlflow_track.backends.mlflow.batches import Batches
from mlflow_track.backends.mlflow.finding import HEARTBEAT_TAG
from mlflow_track.backends.protocol import Gone, Unavailable
from mlflow_track.mirror.process import open_backend
from mlflow_track.mirror.shipper import Shipper
from tests.mirror.conftest import client_of, history, only_run, open_store, runs_of, shipper_to


@pytest.fixture
def run(tmp_path: Path) -> Iterator[mt.Run]:
    with mt.start_run(experiment="e", backend="local") as run:
        yield run


@pytest.fixture
def shipper(run: mt.Run, store: str) -> Shipper:
    run.log_metric("a", 0.0, step=0)
    shipper = shipper_to(run.path, store)
    assert shipper.ship()
    run.log_metric("a", 1.0, step=1)
    return shipper


def database_of(store: str) -> Path:
    return Path(store.removeprefix("sqlite:///"))


def everything_arrives(shipper: Shipper, store: str) -> None:
    assert shipper.ship()
    assert history(store, shipper.state.run_id, "a") == [(0, 0.0), (1, 1.0)]


def execute(store: str, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(database_of(store))) as database, database:
        for statement in statements:
            database.execute(statement)


@pytest.mark.parametrize(("table", "is_known"), [("metrics", True), ("params", False)])
def test_a_table_that_is_being_migrated_is_an_outage(run, store, table, is_known):
    # SQLite has it under another name meanwhile; what is sent then must not be given up.
    shipper = shipper_to(run.path, store)
    run.log_metric("a", 0.0, step=0)
    if is_known:
        run.log_params({"lr": 0.1})
        shipper.ship()
    else:
        shipper._open(shipper._ledger.read_info())
    run.log_metric("a", 1.0, step=1)
    run.log_params({"lr": 0.1, "depth": 2})
    run.set_tags({"note": "x"})
    execute(store, f"alter table {table} rename to _alembic_tmp_{table}")
    for _ in range(6):
        with pytest.raises(Unavailable, match=f"no such table: (main.)?{table}"):
            shipper.ship()
    execute(store, f"alter table _alembic_tmp_{table} rename to {table}")
    everything_arrives(shipper, store)
    data = only_run(store, "e").data
    assert data.params == {"lr": "0.1", "depth": "2"} and data.tags["note"] == "x"
    assert shipper.state.refused == []


@pytest.mark.parametrize("is_asked", [True, False])
def test_a_table_that_accepts_nothing_is_not_the_fault_of_its_values(
    run, shipper, store, is_asked, monkeypatch
):
    # As a database says that a user may not write there, or that a constraint is being changed.
    if not is_asked:
        # The negative control: a tag is taken, so the values are to blame.
        ask = Batches._require_others
        monkeypatch.setattr(
            Batches, "_require_others", lambda self, run_id, kind="": ask(self, run_id)
        )
    no = "select json('no')"
    execute(store, f"create trigger shut before insert on metrics begin {no}; end")
    for _ in range(6):
        with contextlib.suppress(Unavailable):
            shipper.ship()
    execute(store, "drop trigger shut")
    assert (shipper.state.refused == []) is is_asked
    if is_asked:
        everything_arrives(shipper, store)


def test_a_database_of_another_version_is_not_migrated_unasked(run, store):
    with contextlib.closing(sqlite3.connect(database_of(store))) as database:
        (own,) = database.execute("select version_num from alembic_version").fetchone()
    # One that knew no jobs: MLflow's client would migrate it.
    execute(store, "alter table jobs rename to x", "update alembic_version set version_num = 'old'")
    run.log_metrics({"a": 0.0}, step=0)
    run.log_metrics({"a": 1.0}, step=1)
    shipper = Shipper(run.path, "mlflow", open_backend("mlflow", {"tracking_uri": store}))
    for _ in range(2):
        with pytest.raises(Unavailable, match=f"schema old.*{own}.*mlflow db upgrade"):
            shipper.ship()
    execute(
        store, "alter table x rename to jobs", f"update alembic_version set version_num='{own}'"
    )
    everything_arrives(shipper, store)


@pytest.mark.slow
@pytest.mark.faults
def test_a_locked_database_is_an_outage(shipper, store):
    with contextlib.closing(sqlite3.connect(database_of(store), timeout=60)) as holder:
        holder.execute("begin exclusive")
        with pytest.raises(Unavailable, match="locked"):
            shipper.ship()
    everything_arrives(shipper, store)


@pytest.mark.faults
def test_a_full_database_is_an_outage(run, store):
    run.log_metric("a", 0.0, step=0)
    sink = open_store(store)
    shipper = shipper_to(run.path, sink)
    assert shipper.ship()
    engine = sink._client._tracking_client.store.engine

    def limit(pages: int) -> None:
        # Every connection of SQLAlchemy's pool gets the limit, as every one meets a full disk.
        engine.dispose()
        from sqlalchemy import event

        @event.listens_for(engine, "connect")
        def set_limit(connection: sqlite3.Connection, _: object) -> None:
            connection.execute(f"pragma max_page_count = {pages}")

    with contextlib.closing(sqlite3.connect(database_of(store))) as database:
        (pages,) = database.execute("pragma page_count").fetchone()
    limit(pages)
    for step in range(1, 3000):
        run.log_metric("a", float(step), step=step)
    with pytest.raises(Unavailable, match="full"):
        shipper.ship()
    limit(2**30)
    assert shipper.ship()
    assert history(store, shipper.state.run_id, "a") == [(s, float(s)) for s in range(3000)]


def test_a_deleted_run_is_made_again_with_everything(shipper, store):
    deleted = shipper.state.run_id
    client_of(store).delete_run(deleted)
    with pytest.raises(Gone):
        shipper.ship()
    everything_arrives(shipper, store)
    assert shipper.state.run_id != deleted


def test_a_deleted_experiment_says_what_to_do_and_its_run_continues_after_the_restore(
    shipper, store
):
    client, former = client_of(store), shipper.state.run_id
    experiment = shipper.state.memory["experiment_id"]
    client.delete_experiment(experiment)
    with pytest.raises(Gone):
        shipper.ship()
    with pytest.raises(Unavailable, match="mlflow experiments restore --experiment-id"):
        shipper.ship()
    client.restore_experiment(experiment)
    everything_arrives(shipper, store)
    assert shipper.state.run_id == former
    assert len(runs_of(store, "e")) == 1


def test_the_heart_beats_while_the_run_is_alive_and_the_status_at_the_end_is_true(
    run, shipper, store
):
    shipper.ship()
    shipper.beat()
    assert HEARTBEAT_TAG in only_run(store, "e").data.tags
    run.finish("FAILED", "RuntimeError: no such luck")
    shipper.ship()
    shipper.finish()
    found = only_run(store, "e")
    assert HEARTBEAT_TAG not in found.data.tags
    assert found.data.tags["mlflow_track.error"] == "RuntimeError: no such luck"
    first_end = found.info.end_time
    with mt.start_run(experiment="e", backend="local", resume=run.id, params={"lr": 2}) as again:
        shipper = shipper_to(again.path, store)
        shipper.ship()
        assert only_run(store, "e").info.status == "RUNNING"
    shipper.ship()
    shipper.finish()
    found = only_run(store, "e")
    assert found.info.status == "FINISHED"
    assert found.info.end_time > first_end
    assert "mlflow_track.error" not in found.data.tags


def test_a_param_that_changes_stays_and_the_change_is_told(run, store):
    run.log_params({"lr": 0.1, "long": "x" * 9000, "a?": 1, "a*": 2})
    shipper = shipper_to(run.path, store)
    shipper.ship()
    run.log_params({"lr": 0.2})
    run.log_metric("a", float("inf"), step=3)
    shipper.ship()
    shipper.ship()
    found = only_run(store, "e")
    assert found.data.params["lr"] == "0.1"
    assert found.data.params["long"] == "x" * 6000
    assert {found.data.params["a_"], found.data.params["a_-2"]} == {"1", "2"}
    tags = found.data.tags
    assert json.loads(tags["mlflow_track.param_changes"])[0]["params"] == {"lr": [0.1, 0.2]}
    assert json.loads(tags["mlflow_track.cut"])["cut here"] == ["long"]
    assert json.loads(tags["mlflow_track.renamed"])["params"] == {"a?": "a_", "a*": "a_-2"}
    assert '{"a": 3}' in tags["mlflow_track.infinite"]
    whole = json.loads(
        Path(
            client_of(store).download_artifacts(found.info.run_id, "record/config.json")
        ).read_text()
    )
    assert whole["params"]["long"] == "x" * 9000
