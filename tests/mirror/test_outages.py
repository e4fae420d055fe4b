"""Does every row arrive once, whatever happens on the way to a real server?"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import mlflow_track as mt
from mlflow_track.backends.protocol import Gone, Unavailable
from mlflow_track.mirror.shipper import Shipper
from mlflow_track.record.rows import iterate_rows
from tests.campaign import seeds
from tests.mirror.conftest import only_run, open_store, runs_of, shipper_to
from tests.mirror.faults import FaultProxy
from tests.servers.mlflow_server import MlflowServer

pytestmark = [pytest.mark.xdist_group("server"), pytest.mark.faults]


@pytest.fixture
def proxy(server: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    proxy = FaultProxy(server.port)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    yield proxy
    proxy.close()


def points(server: MlflowServer, run_id: str) -> list[tuple[str, int, float, int]]:
    """(key, step, value, timestamp) of all logged values, from the server's own table."""
    with contextlib.closing(sqlite3.connect(server.folder / "server.db")) as database:
        rows = database.execute(
            "select key, step, value, timestamp from metrics "
            "where run_uuid = ? and key not like 'system/%'",
            [run_id],
        )
        return sorted(rows.fetchall())


def logged(path: Path) -> list[tuple[str, int, float, int]]:
    return sorted(
        (name, row.step, value, round(1000 * row.time))
        for row in iterate_rows(path / "metrics.csv")
        for name, value in row.values.items()
    )


def trouble(proxy: FaultProxy, run: mt.Run, seed: int, until: threading.Event) -> None:
    """Faults of random kind and length, between times in which all is well; kills, too."""
    chance = random.Random(seed)
    while not until.wait(chance.uniform(0.1, 1.0)):
        proxy.become(chance.choice(["refuse", "hang", "drip", "cut", "500", "429"]))
        until.wait(chance.uniform(0.1, 2.0))
        if chance.random() < 0.15 and run._attempt.companion is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(run._attempt.companion.pid, signal.SIGKILL)
        proxy.become("pass")
    proxy.become("pass")


@pytest.mark.parametrize("seed", seeds(1))
@pytest.mark.timeout(600)
def test_a_schedule_of_outages_loses_and_doubles_nothing(server, proxy, monkeypatch, seed):
    rows = int(os.environ.get("FAULT_ROWS") or 20_000)
    monkeypatch.setenv("MLFLOW_TRACK_FINISH_TIMEOUT", "500")
    experiment = f"outages-{seed}"
    until = threading.Event()
    with mt.start_run(experiment=experiment) as run:
        thread = threading.Thread(target=trouble, args=(proxy, run, seed, until))
        thread.start()
        chance = random.Random(seed)
        try:
            for step in range(rows):
                run.log_metrics({"a": chance.random(), "b": -step / 3}, step=step)
                if step % 1000 == 0:
                    time.sleep(0.5)
            time.sleep(3)
        finally:
            until.set()
            thread.join()
    status = run.sync_status()
    assert status.is_complete, status
    found = only_run(server.uri, experiment)
    assert points(server, found.info.run_id) == logged(run.path)
    assert found.info.status == "FINISHED"


def ship_through(shipper: Shipper, attempts: int = 20) -> None:
    for _ in range(attempts):
        try:
            if shipper.ship():
                return
        except (Unavailable, Gone):
            pass


def lost_create(server: MlflowServer, proxy: FaultProxy, experiment: str) -> list[object]:
    """Runs at the server after a `create_run` that succeeded and whose answer was lost."""
    with mt.start_run(experiment=experiment, backend="local") as run:
        run.log_metric("a", 1.0, step=0)
    sink = open_store(proxy.uri)
    create = sink._client.create_run

    def create_and_lose(*arguments: object, **named: object) -> object:
        proxy.become("cut")
        try:
            return create(*arguments, **named)
        finally:
            proxy.become("pass")
            sink._client.create_run = create

    sink._client.create_run = create_and_lose
    with pytest.MonkeyPatch.context() as patch:
        # The experiment exists, so that the answer to the run is the one that gets lost.
        patch.setattr(sink, "_experiment_id", lambda name: experiment_id(server, name))
        ship_through(shipper_to(run.path, sink))
    return runs_of(server.uri, experiment)


def experiment_id(server: MlflowServer, name: str) -> str:
    from tests.mirror.conftest import client_of

    client = client_of(server.uri)
    found = client.get_experiment_by_name(name)
    return found.experiment_id if found else client.create_experiment(name)


def test_a_create_whose_answer_was_lost_leaves_no_second_run(server, proxy):
    assert len(lost_create(server, proxy, "lost-create")) == 1


def test_without_the_look_for_the_tag_it_leaves_two(server, proxy, monkeypatch):
    # The negative control of the test above.
    from mlflow_track.backends.mlflow.store import MlflowStore

    monkeypatch.setattr(MlflowStore, "find", lambda *_: [])
    assert len(lost_create(server, proxy, "lost-create-control")) == 2


def test_a_run_that_a_lost_create_made_late_is_discarded(server, proxy):
    with mt.start_run(experiment="ghost", backend="local") as run:
        run.log_metric("a", 1.0, step=0)
    sink = open_store(server.uri)
    shipper = shipper_to(run.path, sink)
    ship_through(shipper)
    late = sink.create(
        "ghost", name="late", start_time=1, tags={"mlflow_track.run_id": run.id}
    ).run_id
    shipper.finish()
    assert [r.info.run_id for r in runs_of(server.uri, "ghost")] == [shipper.state.run_id]
    assert late != shipper.state.run_id


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("refuse", "Connection refused"),
        ("hang", "timed out"),
        ("500", "answers 500"),
        ("429", "answers 429"),
        ("401", "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
        ("403", "MLFLOW_TRACKING_TOKEN"),
    ],
)
def test_a_fault_is_reported_readably(proxy, mode, said):
    proxy.become(mode)
    with pytest.raises(Unavailable, match=said) as raised:
        open_store(proxy.uri).check()
    # Who asks too often gets nothing else either.
    assert raised.value.is_answer == (mode.isdigit() and mode != "429")


def test_a_server_that_comes_back_with_another_database_gets_everything(
    server, proxy, wait_for, monkeypatch
):
    with mt.start_run(experiment="other-database", backend="local") as run:
        run.log_metric("a", 1.0, step=0)
    shipper = shipper_to(run.path, server.uri)
    ship_through(shipper)
    former = shipper.state.run_id
    # What another database does not hold: the run.
    with contextlib.closing(sqlite3.connect(server.folder / "server.db", timeout=60)) as database:
        for table in ("metrics", "latest_metrics", "tags", "params", "runs"):
            database.execute(f"delete from {table} where run_uuid = ?", [former])
        database.commit()
    ship_again = shipper_to(run.path, server.uri)
    ship_through(ship_again)
    assert ship_again.state.run_id != former
    found = only_run(server.uri, "other-database")
    assert points(server, found.info.run_id) == logged(run.path)
