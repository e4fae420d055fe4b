"""A campaign: whatever comes between a run and its server, in the end everything is there once."""

from __future__ import annotations

import contextlib
import json
import random
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mlflow_track as mt
from mlflow_track.backends.protocol import Gone, Unavailable
from mlflow_track.mirror.retries import Retries
from mlflow_track.mirror.shipper import Shipper
from mlflow_track.mirror.status import read_status
from mlflow_track.record.params import flatten
from mlflow_track.record.rows import iterate_rows
from tests.campaign import again, seeds
from tests.mirror.conftest import files_under, history, runs_of, shipper_to
from tests.mirror.gateway import RESET, Gateway, Reply, gateway_to
from tests.mirror.test_checkpoints_there import WHOLE, publish, retire, there

pytestmark = [pytest.mark.xdist_group("server"), pytest.mark.faults]

_SEEDS = seeds(5)
_JSON = {"Content-Type": "application/json"}
# What the server never takes, by a piece of its path or its content, and how it says so.
_REFUSALS = [("refused-a", 413), ("refused-b", 400), ("refused-c", 404), ("refused-d", 500)]


class Trouble:
    """The rule of a gateway, which changes with the weather.

    Args:
        chance: The only source of what happens.
    """

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._weather = "fair"

    @property
    def lies(self) -> bool:
        return self._weather == "liar"

    def change(self) -> None:
        self._weather = self._chance.choice(["fair", "bad", "down", "busy", "liar", "cut"])

    def clear(self) -> None:
        self._weather = "fair"

    def rule(self, method: str, path: str, body: bytes) -> Reply | None:
        for word, status in _REFUSALS:
            is_refused = word in path if method == "PUT" else word.encode() in body
            if is_refused and (method == "PUT" or "log-batch" in path):
                return Reply(status, f"never {word}")
        chance = self._chance.random()
        if self._weather == "bad" and chance < 0.3:
            status = self._chance.choice([500, 502, 503, 401, 403, 404])
            return self._chance.choice(
                [RESET, RESET._replace(is_passed_on=True), Reply(status, "<p>no</p>")]
            )
        if self._weather == "down":
            return self._chance.choice([RESET, Reply(503), Reply(500), Reply(200, "<p>hi</p>")])
        if self._weather == "busy":
            return Reply(429, "slowly", {"Retry-After": "5"})
        if self._weather == "liar" and method != "GET" and "search" not in path:
            return Reply(200, "{}", _JSON)
        if self._weather == "cut" and chance < 0.3:
            if chance < 0.03:
                time.sleep(1.2)  # longer than the client waits
            return RESET._replace(is_passed_on=True)
        return None


@contextlib.contextmanager
def full_disk(is_full: bool) -> Iterator[None]:
    """No file of this process grows beyond what it has: the mirror's own state is not written."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        if is_full:
            resource.setrlimit(resource.RLIMIT_FSIZE, (200, before[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


class Clock:
    """A clock that the test moves: nothing waits for the next attempt at a file."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def new_shipper(path: Path, uri: str, clock: Clock) -> Shipper:
    shipper = shipper_to(path, uri)
    for part in (shipper._artifacts, shipper._checkpoints):
        part.retries = Retries(clock)
    return shipper


def live(run: mt.Run, chance: random.Random, step: int, number: int) -> int:
    """Something that a training does, as the `number`th thing; returns the next step."""
    what = chance.choice(["rows", "rows", "text", "params", "tags", "save", "retire", "poison"])
    steps = [int(p.name[5:]) for p in (run.path / "checkpoints").glob("step-*")]
    if what == "rows":
        for _ in range(chance.randrange(1, 40)):
            run.log_metrics(
                {"a": chance.random(), "b/\u00fc": -step / 3, "A": step * 1.0}, step=step
            )
            step += 1
    elif what == "text":
        name = chance.choice(["fine", "fine #1", "fine%20", "refused-a", "refused-b", "refused-d"])
        run.log_text(f"{chance.random()}", f"texts/{name}-{step}.txt")
    elif what == "params":
        run.log_params({f"p{number}": chance.random(), f"P{number}": "\u00fc", "refused-c": 1})
    elif what == "tags":
        run.set_tags({f"t{number}": str(chance.random())})
    elif what == "save" and step not in steps:
        publish(run, step, size=chance.randrange(1, 100_000))
    elif what == "retire" and len(steps) > 1:
        retire(run, min(steps))
    elif what == "poison":
        run.log_metrics({"refused-d": 1.0, "a": chance.random()}, step=step)
        step += 1
    return step


def some_trouble(run: mt.Run, gateway: Gateway, seed: int) -> tuple[Shipper, Clock]:
    """The life of a run under faults, and what sends it."""
    chance, clock = random.Random(seed), Clock()
    trouble = Trouble(random.Random(seed + 1))
    gateway.rule = trouble.rule
    step, shipper = 0, new_shipper(run.path, gateway.uri, clock)
    for number in range(10):
        step = live(run, chance, step, number)
        trouble.change()
        if chance.random() < 0.2 or trouble.lies:
            # The mirror was killed; another one continues with what is on the disk. A gateway that
            # stores nothing is found out by what is sent first, and by what is sent last.
            shipper = new_shipper(run.path, gateway.uri, clock)
            run.log_metric("a", chance.random(), step=step)
            step += 1
        with (
            contextlib.suppress(Unavailable, Gone, OSError),
            full_disk(chance.random() < 0.1),
        ):
            shipper.ship(is_alive=True)
        clock.now += chance.choice([1.0, 61.0])
    run.finish(chance.choice(["FINISHED", "FAILED"]))
    trouble.clear()
    return shipper, clock


def all_sent(shipper: Shipper, clock: Clock) -> None:
    why = None
    for _ in range(40):
        try:
            if shipper.ship() and shipper.finish() != "RUNNING" and shipper.waiting is None:
                return
            why = shipper.waiting
        except Unavailable as error:
            why = str(error)
        clock.now += 61.0
    raise AssertionError(f"still pending: {why}")


def compare(run: mt.Run, shipper: Shipper, uri: str, experiment: str) -> None:
    record = mt.load_run(run.path)
    (found,) = runs_of(uri, experiment)
    data, run_id = found.data, found.info.run_id
    renamed = json.loads(data.tags.get("mlflow_track.renamed", "{}"))
    refused = [text.split(": ", 1) for text in shipper.state.refused]
    assert all(why for _, why in refused)
    items = {item for item, _ in refused}
    assert all("refused-" in item for item in items), items
    assert found.info.status == record.status
    wanted: dict[str, list[tuple[int, float]]] = {}
    for row in iterate_rows(run.path / "metrics.csv"):
        for name, value in row.values.items():
            wanted.setdefault(name, []).append((row.step, value))
    for name, points in wanted.items():
        if name == "refused-d":
            assert {f"metric {name!r} at step {step}" for step, _ in points} <= items
            continue
        there_name = renamed.get("metrics", {}).get(name, name)
        assert history(uri, run_id, there_name) == sorted(points), name
    for name, value in flatten(record.params).items():
        if name == "refused-c":
            assert f"param {name!r}" in items
        else:
            assert data.params[renamed.get("params", {}).get(name, name)] == str(value), name
    assert record.tags.items() <= data.tags.items()
    files = files_under(uri, run_id)
    for file in (run.path / "artifacts").rglob("*.txt"):
        name = file.relative_to(run.path / "artifacts").as_posix()
        if "refused-" in name:
            assert f"artifact {name}" in items and name not in files
        else:
            assert renamed.get("artifacts", {}).get(name, name) in files
    kept = {p.name for p in (run.path / "checkpoints").glob("step-*")}
    assert there(shipper) == dict.fromkeys(kept, WHOLE)
    status = read_status(run.path, "mlflow")
    assert status.is_complete and status.error is None


def server_of(number: int, request: pytest.FixtureRequest) -> Any:
    """Every fifth schedule is on PostgreSQL, with the artifacts in S3."""
    name = "postgres_server" if number % 5 == 4 else "sqlite_server"
    return request.getfixturevalue(name)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("number", "seed"), list(enumerate(_SEEDS)))
def test_a_schedule_of_faults_loses_and_doubles_nothing(number, seed, request, monkeypatch):
    server = server_of(number, request)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    experiment = f"schedule-{seed}"
    with gateway_to(server.port) as gateway:
        run = mt.start_run(experiment=experiment, backend="local", params={"lr": 0.1})
        try:
            shipper, clock = some_trouble(run, gateway, seed)
            monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
            all_sent(shipper, clock)
            compare(run, shipper, server.uri, experiment)
        except BaseException:
            print(again(seed, "a_schedule_of_faults"))
            raise
