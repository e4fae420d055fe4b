"""The same questions to a folder of records and to SQLite after `sync`: the same answers."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlflow_track.analysis.histories import History
from mlflow_track.mirror.process import open_backend, sync_run
from mlflow_track.record.directory import RunDirectory
from mlflow_track.record.files import write_json
from mlflow_track.ui.address import experiment_id_of, uri_of
from tests.campaign import seeds

METRICS = ("loss", "val/acc", "a b.c", "none")
PARAMS = ("lr", "model.width", "name", "none")
TAGS = ("stage", "note x", "mlflow.user", "none")
TEXTS = ("0.1", "8", "Large", "large model", "x_y", "", "%", "zoë ☃")
NUMBERS = ("0", "1", "-2.5", "0.1", "1e300")
# The mirror says these of itself, and of the best values only the local page speaks.
OF_THE_MIRROR = tuple(
    f"mlflow_track.{name}" for name in ("rewinds", "renamed", "infinite", "heartbeat", "cut")
)


class Stores(NamedTuple):
    """Two clients of the same runs."""

    records: Any
    sqlite: Any
    experiments: tuple[list[str], list[str]]


def record(root: Path, number: int) -> Path:
    """A run like no other: some metrics, params and tags are missing, and none ends alike."""
    values = [0.1, -2.5, math.nan, 1.0, math.inf, 0.0, 1.0, 2.0]
    directory = RunDirectory.create(
        root, experiment="e" if number % 5 else "other", name=f"run {TEXTS[number]}", tags={}
    )
    directory.start_attempt({"command": ["x"]})
    metrics = directory.open_metrics()
    for step in (0, 3, 2):
        metrics.append(step, ("loss",), [values[number] + step])
        if number % 2:
            # Of two values at one step the later counts, if it is not of the same millisecond.
            time.sleep(0.002)
            metrics.append(step, ("loss", "val/acc"), [values[number] - step, values[-number]])
    if number > 3:
        metrics.append(9, ("a b.c",), [values[number]])
    params: dict[str, Any] = {"lr": 0.1 * (number % 3), "model": {"width": number // 2}}
    if number % 3:
        params["name"] = TEXTS[number]
    write_json(
        directory.path / "config.json",
        {"params": params, "changes": [] if number % 4 else [{"attempt": 1}]},
    )
    directory.set_tags({"stage": TEXTS[-number]} if number % 2 else {"note x": TEXTS[number]})
    if number % 3 == 0:
        directory.update(provenance={"user": "zoë", "script": "train.py"})
    for item in range(number % 3):
        digest = f"{item}{number}" * 20
        directory.add(
            "inputs",
            {
                "name": f"data {item}",
                "sha256": digest,
                "size_bytes": 5,
                "source": "s",
                "context": ("training", "validation")[item],
            },
        )
    if number not in (2, 5):
        directory.end_attempt(("FINISHED", "FAILED", "KILLED")[number % 3], "why" * (number % 2))
    metrics.close()
    if number != 2:
        directory.release()
    return directory.path


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path) -> Stores:
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("differential")
    sqlite = f"sqlite:///{shutil.copy(migrated_database, folder / 'mlflow.db')}"
    paths = [record(folder / "runs", number) for number in range(8)]
    for path in paths:
        sync_run(path, "mlflow", open_backend("mlflow", {"tracking_uri": sqlite}))
    records, database = MlflowClient(uri_of(folder / "runs")), MlflowClient(sqlite)
    names = ("e", "other")
    return Stores(
        records,
        database,
        (
            [experiment_id_of(name) for name in names],
            [database.get_experiment_by_name(name).experiment_id for name in names],
        ),
    )


def quoted(text: str) -> str:
    return "'" + text + "'"


def clause(kind: str, names: tuple[str, ...], *comparisons: Any) -> Any:
    name = st.sampled_from([f"{kind}.`{name}`" for name in names])
    compared = st.one_of([st.tuples(st.sampled_from(ops), values) for ops, values in comparisons])
    return st.tuples(name, compared).map(lambda parts: f"{parts[0]} {' '.join(parts[1])}".strip())


TEXT = st.sampled_from(TEXTS).map(quoted)
PATTERN = st.sampled_from(["%a%", "l%", "%l", "L%", "x_y", "%", "_", "run %", "FIN%"]).map(quoted)
NUMBER = st.sampled_from(NUMBERS)
EQUAL, LIKE, NULL = ["=", "!="], ["LIKE", "ILIKE"], ["IS NULL", "IS NOT NULL"]
ORDER = ["=", "!=", "<", "<=", ">", ">="]
STATUS = st.sampled_from(["FINISHED", "FAILED", "KILLED", "RUNNING"]).map(quoted)
DIGEST = st.sampled_from(["01" * 18, "12" * 18, "x"]).map(quoted)
NAME = st.sampled_from(TEXTS).map(lambda text: quoted(f"run {text}"))
TIME = st.sampled_from(["0", "9" * 13])
DATASET = st.sampled_from(["data 0", "data 1"]).map(quoted)
CONTEXT = st.sampled_from(["training", "validation"]).map(quoted)
CLAUSE = st.one_of(
    clause("metrics", METRICS, (ORDER, NUMBER)),
    clause("params", PARAMS, (EQUAL, TEXT), (LIKE, PATTERN), (NULL, st.just(""))),
    clause("tags", TAGS, (EQUAL, TEXT), (LIKE, PATTERN), (NULL, st.just(""))),
    clause("attributes", ("status",), (EQUAL, STATUS), (LIKE, PATTERN)),
    clause("attributes", ("run_name",), (EQUAL, NAME), (LIKE, PATTERN)),
    clause("attributes", ("start_time", "end_time"), (ORDER, TIME)),
    clause("datasets", ("name",), (EQUAL, DATASET), (LIKE, PATTERN)),
    clause("datasets", ("digest",), (EQUAL, DIGEST)),
    clause("datasets", ("context",), (EQUAL, CONTEXT)),
)
SORTED_BY = st.sampled_from(
    [f"metrics.`{name}`" for name in METRICS]
    + [f"params.`{name}`" for name in PARAMS]
    + [f"tags.`{name}`" for name in TAGS]
    + [f"attributes.{name}" for name in ("status", "run_name", "start_time", "end_time")]
)
DIRECTION = st.sampled_from(["", " ASC", " DESC"])
ORDER_BY = st.lists(
    st.tuples(SORTED_BY, DIRECTION), max_size=2, unique_by=lambda item: item[0]
).map(lambda items: ["".join(item) for item in items])


def described(run: Any) -> dict[str, Any]:
    """What must be the same of a run: all but ids, places, and the best values."""
    metrics = {k: repr(v) for k, v in run.data.metrics.items() if not k.endswith((" min", " max"))}
    return {
        "id": run.data.tags["mlflow_track.run_id"],
        "metrics": metrics,
        "params": run.data.params,
        "tags": {k: v for k, v in run.data.tags.items() if k not in OF_THE_MIRROR},
        "info": [run.info.run_name, run.info.status, run.info.start_time, run.info.user_id],
        "end": run.info.end_time,
        "inputs": sorted(
            (d.dataset.name, d.dataset.digest, d.dataset.source, [(t.key, t.value) for t in d.tags])
            for d in run.inputs.dataset_inputs
        ),
    }


def both(stores: Stores, search: Callable[[Any, list[str]], Any]) -> tuple[Any, Any]:
    return tuple(
        [described(run) for run in search(client, experiments)]
        for client, experiments in zip(stores[:2], stores.experiments, strict=True)
    )


def test_all_runs_are_the_same_on_both(stores):
    ours, theirs = both(stores, lambda client, experiments: client.search_runs(experiments))
    assert len(ours) == 8
    assert ours == theirs


@settings(max_examples=len(seeds(100)), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(clauses=st.lists(CLAUSE, max_size=3), order_by=ORDER_BY)
def test_any_filter_and_order_finds_the_same(stores, clauses, order_by):
    ours, theirs = both(
        stores,
        lambda client, experiments: client.search_runs(
            experiments, " AND ".join(clauses), order_by=order_by
        ),
    )
    assert [run["id"] for run in ours] == [run["id"] for run in theirs]
    assert ours == theirs


@settings(max_examples=10, deadline=None)
@given(clauses=st.lists(CLAUSE, min_size=1, max_size=1), size=st.integers(1, 3))
def test_pages_are_cut_at_the_same_places(stores, clauses, size):
    def search(client: Any, experiments: list[str]) -> list[Any]:
        found, token, pages = [], None, 0
        while pages == 0 or token:
            page = client.search_runs(
                experiments, clauses[0], max_results=size, page_token=token, order_by=["run_name"]
            )
            found, token, pages = [*found, *page], page.token, pages + 1
        return found

    ours, theirs = both(stores, search)
    assert ours == theirs


@pytest.mark.parametrize("name", METRICS)
def test_histories_are_the_same_on_both(stores, name):
    def history(client: Any, experiments: list[str]) -> dict[str, Any]:
        return {
            run.data.tags["mlflow_track.run_id"]: sorted(
                (point.step, point.timestamp, repr(point.value))
                for point in client.get_metric_history(run.info.run_id, name)
            )
            for run in client.search_runs(experiments)
        }

    ours, theirs = (
        history(client, experiments)
        for client, experiments in zip(stores[:2], stores.experiments, strict=True)
    )
    assert ours == theirs and any(ours.values()) == (name != "none")


def test_a_store_that_forgets_a_rule_is_found_out(stores, monkeypatch):
    """The negative control: without the treatment of NaN and infinity the answers differ."""
    from mlflow_track.ui import entities

    monkeypatch.setattr(entities, "_storable", lambda value: value)
    monkeypatch.setattr(stores.records._tracking_client.store, "_runs", {})
    ours, theirs = both(stores, lambda client, experiments: client.search_runs(experiments))
    assert ours != theirs


ENDS = st.tuples(st.integers(0, 60), st.integers(0, 60)).map(sorted)
HISTORY = st.lists(st.integers(0, 60), max_size=40).map(sorted)


@given(runs=st.lists(HISTORY, max_size=3), most=st.integers(1, 20), ends=st.none() | ENDS)
def test_a_chart_shows_the_points_that_mlflow_would(runs, most, ends):
    from mlflow.entities import Metric
    from mlflow.store.tracking.abstract_store import AbstractStore

    from mlflow_track.ui.store import RecordStore

    first, last = ends or (None, None)

    class Plain(AbstractStore):
        """With nothing of its own, so that the rule is MLflow's."""

        def get_metric_history(self, run_id, metric_key, max_results=None, page_token=None):
            return [Metric(metric_key, 0.0, 0, step) for step in runs[int(run_id)]]

    class Ours(RecordStore):
        def _summary(self, run_id):
            return run_id

        def _history(self, summary, name):
            steps = runs[int(summary)]
            return History(steps, [0.0] * len(steps), [0.0] * len(steps))

    ids = [str(number) for number in range(len(runs))]
    ours, theirs = (
        store.get_metric_history_bulk_interval(ids, "m", most, first, last)
        for store in (Ours("mlflow-track:/x"), Plain())
    )
    assert [(p.run_id, p.step) for p in ours] == [(p.run_id, p.step) for p in theirs]
