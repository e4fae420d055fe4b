"""Does everything arrive that a server accepts, and is the rest listed with its reason?"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mlflow_track as mt
from mlflow_track.backends.mlflow import batches, server_run
from mlflow_track.backends.mlflow.backend import MlflowBackend
from mlflow_track.backends.mlflow.batches import Batches
from mlflow_track.backends.mlflow.finding import HEARTBEAT_TAG
from mlflow_track.backends.protocol import Lost, Unavailable
from mlflow_track.mirror import retries
from mlflow_track.mirror.retries import Retries
from mlflow_track.mirror.shipper import Shipper
from mlflow_track.mirror.status import read_status
from tests.mirror.conftest import client_of, files_under, history, only_run, shipper_to
from tests.mirror.gateway import Gateway, Reply, gateway_to
from tests.mirror.test_checkpoints_there import WHOLE, publish, there
from tests.servers.mlflow_server import MlflowServer

pytestmark = pytest.mark.xdist_group("server")


@pytest.fixture
def gateway(server: MlflowServer) -> Iterator[Gateway]:
    with gateway_to(server.port) as gateway:
        yield gateway


class Clock:
    """A clock that the test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def make_run(experiment: str, *, rows: int = 3) -> mt.Run:
    run = mt.start_run(experiment=experiment, backend="local", params={"lr": 0.1})
    for step in range(rows):
        run.log_metric("a", step / 3, step=step)
    return run


def shipper_with_clock(path: Path, uri: str) -> tuple[Shipper, Clock]:
    shipper, clock = shipper_to(path, uri), Clock()
    for part in (shipper._artifacts, shipper._checkpoints):
        part.retries = Retries(clock)
    return shipper, clock


def ship_all(shipper: Shipper, clock: Clock | None = None, rounds: int = 30) -> None:
    """Ship and finish until nothing waits, as the mirror does."""
    for _ in range(rounds):
        with contextlib.suppress(Unavailable):
            if shipper.ship() and shipper.finish() != "RUNNING" and shipper.waiting is None:
                return
        if clock is not None:
            clock.now += 61.0
    raise AssertionError(f"something is pending after {rounds} rounds: {shipper.waiting}")


def arrived(uri: str, experiment: str) -> tuple[str, list[tuple[int, float]]]:
    run = only_run(uri, experiment)
    return run.info.status, history(uri, run.info.run_id, "a")


ROWS = [(step, step / 3) for step in range(3)]


def refuses(status: int, text: str = "not here") -> Any:
    def rule(method: str, path: str, body: bytes) -> Reply | None:
        return Reply(status, text) if method == "PUT" and "refused.txt" in path else None

    return rule


@pytest.mark.parametrize("status", [400, 403, 404, 413, 414, 500, 503])
def test_a_file_that_is_refused_is_set_aside_and_everything_else_arrives(server, gateway, status):
    experiment = f"refused-{status}"
    gateway.rule = refuses(status)
    with make_run(experiment) as run:
        run.log_text("no", "notes/refused.txt")
        run.log_text("yes", "notes/fine.txt")
        shipper, clock = shipper_with_clock(run.path, gateway.uri)
        shipper.ship(is_alive=True)
        # Also while the file waits for its next attempt.
        assert HEARTBEAT_TAG in only_run(server.uri, experiment).data.tags
    ship_all(shipper, clock)
    assert arrived(server.uri, experiment) == ("FINISHED", ROWS)
    files = files_under(server.uri, shipper.state.run_id)
    assert "notes/fine.txt" in files and "notes/refused.txt" not in files
    (refusal,) = shipper.state.refused
    assert refusal.startswith("artifact notes/refused.txt: ") and "not here" in refusal
    assert str(status) in refusal


@pytest.mark.parametrize(("status", "doubts"), [(404, 3), (503, 3), (404, 0)])
def test_files_arrive_once_the_store_of_artifacts_is_back(
    server, gateway, status, doubts, monkeypatch
):
    # Runs are taken meanwhile, and the files are set aside. Without a doubt, the negative control,
    # only `sync` would send them.
    monkeypatch.setattr(retries, "_MOST_DOUBTS", doubts)
    gateway.rule = lambda method, path, body: (
        Reply(status, "no bucket") if "mlflow-artifacts" in path else None
    )
    run = make_run(f"no-bucket-{status}-{doubts}")
    run.log_text("first", "first.txt")
    publish(run, 1)
    shipper, clock = shipper_with_clock(run.path, gateway.uri)
    for _ in range(30):
        shipper._artifacts._look_after = 0.0
        with contextlib.suppress(Unavailable):
            shipper.ship(is_alive=True)
        clock.now += 61.0
    assert "first.txt" in shipper.state.set_aside
    gateway.rule = lambda *_: None
    run.log_text("later", "later.txt")
    run.finish()
    ship_all(shipper, clock)
    files = files_under(server.uri, shipper.state.run_id)
    assert "later.txt" in files and ("first.txt" in files) is (doubts > 0)
    assert (shipper.state.refused == []) is (doubts > 0)
    assert list(there(shipper).values()) == ([WHOLE] if doubts else [])
    if doubts:
        assert not shipper.state.set_aside and read_status(run.path, "mlflow").is_complete


@pytest.mark.parametrize("tries", [3, 1])
def test_an_item_is_set_aside_where_its_refusal_comes_again(server, gateway, tries, monkeypatch):
    # With one attempt, the negative control: a gateway says 404 once to each request that writes.
    monkeypatch.setattr(batches, "_MOST_ERRORS", tries)
    monkeypatch.setattr(retries, "_MOST_DOUBTS", 0)
    asked: set[tuple[str, bytes]] = set()

    def rule(method: str, path: str, body: bytes) -> Reply | None:
        writes = ("artifacts/texts", "runs/update", "log-inputs", "log-batch")
        request = (path, body[:40])
        if request in asked or not any(word in path for word in writes):
            return None
        asked.add(request)
        return Reply(404, "default backend")

    experiment = f"comes-again-{tries}"
    with make_run(experiment) as run:
        run.log_text("yes", "texts/fine.txt")
        run.log_input("data.txt", sha256="0" * 64, size_bytes=1)
    gateway.rule = rule
    shipper = shipper_to(run.path, gateway.uri)
    ship_all(shipper)
    is_whole = tries > 1
    assert (shipper.state.refused == []) is is_whole, shipper.state.refused
    assert (arrived(server.uri, experiment) == ("FINISHED", ROWS)) is is_whole
    assert ("texts/fine.txt" in files_under(server.uri, shipper.state.run_id)) is is_whole


def test_sync_tries_once_more_what_was_set_aside(server, gateway):
    gateway.rule = refuses(413)
    with make_run("set-aside") as run:
        run.log_text("no", "notes/refused.txt")
    shipper, _ = shipper_with_clock(run.path, gateway.uri)
    ship_all(shipper)
    assert shipper.state.set_aside
    again = shipper_to(run.path, server.uri)
    again.state.destination = shipper.state.destination
    from mlflow_track.mirror.process import sync_run

    gateway.rule = lambda *_: None
    status = sync_run(run.path, "mlflow", _backend(gateway.uri))
    assert status.is_complete and status.refused == ()
    assert "notes/refused.txt" in files_under(server.uri, shipper.state.run_id)


def _backend(uri: str) -> MlflowBackend:
    backend = MlflowBackend()
    backend.options = {"tracking_uri": uri}
    return backend


def poisoned(status: int) -> Any:
    def rule(method: str, path: str, body: bytes) -> Reply | None:
        is_refused = "log-batch" in path and b"poison" in body
        return Reply(status, "no such thing") if is_refused else None

    return rule


@pytest.mark.parametrize("status", [500, 403, 413])
def test_one_value_that_a_server_fails_at_does_not_keep_the_others(server, gateway, status):
    experiment = f"poison-{status}"
    with make_run(experiment) as run:
        run.log_metrics({"a": 1.0, "poison": 2.0, "b": 3.0}, step=3)
        run.log_params({"poison": 1, "depth": 2})
    gateway.rule = poisoned(status)
    shipper = shipper_to(run.path, gateway.uri)
    ship_all(shipper)
    assert arrived(server.uri, experiment) == ("FINISHED", [*ROWS, (3, 1.0)])
    assert history(server.uri, shipper.state.run_id, "b") == [(3, 3.0)]
    assert only_run(server.uri, experiment).data.params["depth"] == "2"
    refused = [text.partition(": ")[0] for text in shipper.state.refused]
    assert sorted(refused) == ["metric 'poison' at step 3", "param 'poison'"]


def test_without_the_search_for_it_one_value_keeps_all_others(server, gateway, monkeypatch):
    # The negative control of the test above.
    monkeypatch.setattr(Batches, "_is_to_blame", lambda *_: False)
    with make_run("poison-control") as run:
        run.log_metrics({"poison": 2.0}, step=3)
    gateway.rule = poisoned(500)
    shipper = shipper_to(run.path, gateway.uri)
    with pytest.raises(AssertionError):
        ship_all(shipper, rounds=5)


def test_a_gateway_that_refuses_everything_for_a_while_costs_nothing(server, gateway):
    # A default page while a server is replaced, a token that expires, a server without its disk.
    with make_run("for-a-while") as run:
        run.log_text("yes", "fine.txt")
    shipper = shipper_to(run.path, gateway.uri)
    for status in (404, 401, 403, 400, 500, 503):
        gateway.rule = lambda *_, status=status: Reply(status, "<html>default backend</html>")
        for _ in range(4):
            with pytest.raises(Unavailable):
                shipper.ship()
    gateway.rule = lambda *_: None
    ship_all(shipper)
    assert arrived(server.uri, "for-a-while") == ("FINISHED", ROWS)
    assert shipper.state.refused == []
    assert "fine.txt" in files_under(server.uri, shipper.state.run_id)


def test_a_token_that_expires_in_the_middle_costs_nothing(server, gateway):
    run = make_run("expires")
    shipper, clock = shipper_with_clock(run.path, gateway.uri)
    shipper.ship()
    run.log_metric("a", 1.0, step=3)
    run.log_text("yes", "fine.txt")
    run.finish()
    gateway.rule = lambda *_: Reply(401, "token expired")
    for _ in range(12):
        with pytest.raises(Unavailable, match="token expired"):
            shipper.ship()
        clock.now += 61.0
    gateway.rule = lambda *_: None
    ship_all(shipper, clock)
    assert arrived(server.uri, "expires") == ("FINISHED", [*ROWS, (3, 1.0)])
    assert shipper.state.refused == []


def swallowing(*words: str) -> Any:
    """A gateway that answers 200 to some requests and does nothing."""

    def rule(method: str, path: str, body: bytes) -> Reply | None:
        is_asked = method != "GET" and any(word in path for word in words)
        return Reply(200, "{}", {"Content-Type": "application/json"}) if is_asked else None

    return rule


def swallowed(server: MlflowServer, gateway: Gateway, experiment: str, *words: str) -> None:
    with make_run(experiment) as run:
        run.log_text("yes", "fine.txt")
    shipper, clock = shipper_with_clock(run.path, gateway.uri)
    shipper._open(shipper._ledger.read_info())
    gateway.rule = swallowing(*words)
    for _ in range(3):
        try:
            shipper.ship()
            shipper.finish()
            why = shipper.waiting
        except Unavailable as error:
            why = str(error)
        assert why is not None and "acknowledged" in why
        clock.now += 61.0
    gateway.rule = lambda *_: None
    ship_all(shipper, clock)
    assert arrived(server.uri, experiment) == ("FINISHED", ROWS)
    found = only_run(server.uri, experiment)
    assert found.data.params == {"lr": "0.1"} and "mlflow_track.run_id" in found.data.tags
    assert "fine.txt" in files_under(server.uri, found.info.run_id)


@pytest.mark.parametrize("words", ["log-batch", "runs/update", "mlflow-artifacts", "/"])
def test_an_acknowledgement_of_what_is_not_stored_is_not_believed(server, gateway, words):
    swallowed(server, gateway, f"swallowed-{words.replace('/', '')}", words)


def test_without_a_look_at_the_server_it_is_believed(server, gateway, monkeypatch):
    # The negative control of the test above.
    monkeypatch.setattr(MlflowBackend, "_read_back", lambda *_: None)
    with pytest.raises(AssertionError):
        swallowed(server, gateway, "believed", "log-batch")


def test_what_is_lost_after_its_acknowledgement_is_sent_again_before_the_end(server, gateway):
    run = make_run("lost-later")
    shipper = shipper_to(run.path, gateway.uri)
    shipper.ship()
    run.log_metric("a", 1.0, step=3)
    run.finish()
    gateway.rule = swallowing("log-batch")
    shipper.ship()
    with pytest.raises(Lost):
        shipper.finish()
    gateway.rule = lambda *_: None
    ship_all(shipper)
    assert arrived(server.uri, "lost-later") == ("FINISHED", [*ROWS, (3, 1.0)])


@pytest.mark.parametrize("is_kept", [True, False])
def test_a_file_that_was_acknowledged_and_is_not_there_is_sent_again(server, gateway, is_kept):
    # The page of a gateway in place of the server's word, in the middle of a run.
    run = make_run(f"one-file-{is_kept}")
    run.log_text("first", "texts/a.txt")
    shipper, clock = shipper_with_clock(run.path, gateway.uri)
    shipper.ship()
    run.log_text("second", "texts/b #1.txt")
    run.finish()
    page = Reply(200, "<p>please log in</p>")
    gateway.rule = lambda method, path, body: page if "texts/b" in path else None
    shipper._artifacts._look_after = 0.0
    shipper.ship()
    if is_kept:
        gateway.rule = lambda *_: None
    with pytest.raises(Unavailable, match=r"artifact texts/b #1\.txt and does"):
        shipper.finish()
    ship_all(shipper, clock)
    assert arrived(server.uri, f"one-file-{is_kept}") == ("FINISHED", ROWS)
    files = files_under(server.uri, shipper.state.run_id)
    assert "texts/a.txt" in files and ("texts/b _1.txt" in files) is is_kept
    # One that is never stored is named in the end.
    assert [text.partition(": ")[0] for text in shipper.state.refused] == (
        [] if is_kept else ["artifact texts/b #1.txt"]
    )


@pytest.mark.parametrize("seconds", [0.2, 60.0])
def test_the_heart_beats_during_a_long_upload(server, gateway, monkeypatch, seconds):
    # With a minute, the negative control: another machine takes a run that is silent so long.
    monkeypatch.setattr(server_run, "_BEAT_SECONDS", seconds)
    experiment = f"long-upload-{seconds}"
    run = make_run(experiment)
    shipper = shipper_to(run.path, gateway.uri)
    shipper.ship(is_alive=True)
    run.log_text("long", "texts/long.txt")
    beats: set[str] = set()

    def rule(method: str, path: str, body: bytes) -> Reply | None:
        if method == "PUT" and "texts/long" in path:
            for _ in range(12):
                beats.add(only_run(server.uri, experiment).data.tags[HEARTBEAT_TAG])
                time.sleep(0.2)
        return None

    gateway.rule = rule
    shipper._artifacts._look_after = 0.0
    shipper.ship(is_alive=True)
    assert (len(beats) > 1) is (seconds < 1)
    run.finish()
    ship_all(shipper)
    assert HEARTBEAT_TAG not in only_run(server.uri, experiment).data.tags


def test_an_own_tag_that_stays_as_it_was_is_sent_again(server, gateway):
    run = make_run("stale-tag")
    run.log_metric("b*", 1.0, step=0)
    shipper, clock = shipper_with_clock(run.path, gateway.uri)
    shipper.ship()
    run.log_metric("c*", 1.0, step=0)
    # Only the tag is swallowed, of which the server has an earlier value.
    json_type = {"Content-Type": "application/json"}
    gateway.rule = lambda method, path, body: (
        Reply(200, "{}", json_type) if b"mlflow_track.renamed" in body else None
    )
    shipper.ship()
    run.finish()
    gateway.rule = lambda *_: None
    ship_all(shipper, clock)
    tags = only_run(server.uri, "stale-tag").data.tags
    assert json.loads(tags["mlflow_track.renamed"])["metrics"] == {"b*": "b_", "c*": "c_"}


NAMES = [
    *("plain.txt", "a#1.txt", "a#2.txt", "a?1.txt", "a?2.txt", "a%23.txt", "a%20b.txt", "a b.txt"),
    *("\u00fc.txt", "q'uote.txt", "plus+plus.txt", "a&b=c.txt", "a;b.txt", "Run:1.txt", "100%.txt"),
]


def test_no_artifact_lands_on_another(server, gateway):
    with make_run("artifact-names") as run:
        for number, name in enumerate(NAMES):
            run.log_text(f"content {number}", f"texts/{name}")
    shipper = shipper_to(run.path, server.uri)
    ship_all(shipper)
    found = only_run(server.uri, "artifact-names")
    renamed = json.loads(found.data.tags["mlflow_track.renamed"])["artifacts"]
    client = client_of(server.uri)
    for number, name in enumerate(NAMES):
        there = renamed.get(f"texts/{name}", f"texts/{name}")
        path = client.download_artifacts(found.info.run_id, there, str(Path.cwd()))
        assert Path(path).read_text() == f"content {number}", name
    assert {"texts/plain.txt", "texts/a b.txt", "texts/\u00fc.txt"}.isdisjoint(renamed)


def without_case(store: str) -> str:
    """The store as MySQL's collation has it: names that differ by case alone are one."""
    database = sqlite3.connect(store.removeprefix("sqlite:///"))
    with contextlib.closing(database):
        database.execute("pragma writable_schema = on")
        database.execute(
            "update sqlite_master set sql = replace(sql, 'key VARCHAR(250)', "
            "'key VARCHAR(250) COLLATE NOCASE') "
            "where name in ('metrics', 'latest_metrics', 'params', 'tags')"
        )
        database.commit()
    return store


def test_names_that_differ_by_case_alone_all_arrive(store):
    store = without_case(store)
    with make_run("case") as run:
        for step in range(3):
            run.log_metrics({"A": step + 0.5, "acc/Top": 1.0, "Acc/top": 2.0}, step=step)
        run.log_params({"LR": 1, "Lr": 2})
        run.set_tags({"note": "x", "Note": "y"})
    # In two parts: what the first process decided holds for the second.
    shipper_to(run.path, store).ship()
    shipper = shipper_to(run.path, store)
    ship_all(shipper)
    found = only_run(store, "case")
    renamed = json.loads(found.data.tags["mlflow_track.renamed"])
    assert history(store, found.info.run_id, "a") == ROWS
    there = renamed["metrics"]["A"]
    assert history(store, found.info.run_id, there) == [(s, s + 0.5) for s in range(3)]
    assert len({name.casefold() for name in found.data.params}) == 3
    assert found.data.params["lr"] == "0.1" and shipper.state.refused == []
    assert found.data.tags["note"] == "x" and found.data.tags[renamed["tags"]["Note"]] == "y"


def test_a_long_name_of_a_run_is_cut_there_and_whole_in_a_tag(store):
    name = "n" * 300
    database = sqlite3.connect(store.removeprefix("sqlite:///"))
    with contextlib.closing(database):
        # SQLite does not hold to the length that the column declares; other stores do.
        database.execute(
            "create trigger most before insert on runs when length(new.name) > 250 "
            "begin select raise(abort, 'value too long'); end"
        )
        database.commit()
    with mt.start_run(experiment="long", run_name=name, backend="local") as run:
        run.log_metric("a", 0.0, step=0)
    ship_all(shipper_to(run.path, store))
    found = only_run(store, "long")
    assert found.info.run_name == name[:250]
    assert found.data.tags["mlflow_track.run_name"] == name
    from mlflow_track.backends.protocol import Query

    (again,) = _backend(store).find(Query("long", run_name=name))
    assert again.record_id == run.id
