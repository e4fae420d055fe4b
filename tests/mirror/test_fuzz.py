"""Does a run arrive whole whatever its names and values are, or did the call raise?"""

from __future__ import annotations

import math
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import mlflow_track as mt
from mlflow_track.backends.mlflow.server_run import Memory
from mlflow_track.mirror.shipper import Shipper
from tests.mirror.conftest import client_of, shipper_to

pytestmark = pytest.mark.xdist_group("server")

# Mostly what people write, and now and then anything at all.
NAMES = st.one_of(
    st.text("abAB/._- :*?", min_size=1, max_size=12),
    st.text(min_size=1, max_size=8),
    st.builds(
        lambda text, times: text * times, st.text(min_size=1, max_size=3), st.integers(1, 99)
    ),
)
NUMBERS = st.one_of(st.floats(), st.integers(-(2**60), 2**60), st.booleans())
TEXTS = st.one_of(
    st.text(max_size=20),
    # Around the lengths at which MLflow cuts.
    st.builds(
        lambda text, length: text + "é" * length, st.text(max_size=3), st.integers(5990, 8010)
    ),
)
PARAM_VALUES = st.one_of(TEXTS, NUMBERS, st.none(), st.lists(NUMBERS, max_size=3))


RUNS = {
    "params": st.dictionaries(NAMES, PARAM_VALUES, max_size=5),
    "tags": st.dictionaries(NAMES, TEXTS, max_size=5),
    "rows": st.lists(st.dictionaries(NAMES, NUMBERS, min_size=1, max_size=4), max_size=4),
}


@settings(
    deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(**RUNS)
@example(params={"..a": 1}, tags={"..:": ""}, rows=[{"..": 1.0, "...": 2.0}])
def test_a_run_arrives_whole_or_the_call_raised(sqlite_server, params, tags, rows):
    arrives(sqlite_server, params, tags, rows)


@pytest.mark.tables
@pytest.mark.timeout(600)
@settings(
    deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(**RUNS)
def test_many_runs_arrive_whole_or_the_call_raised(sqlite_server, params, tags, rows):
    arrives(sqlite_server, params, tags, rows)


def arrives(sqlite_server, params, tags, rows) -> None:
    with TemporaryDirectory() as folder:
        run = mt.start_run(experiment="fuzz", directory=folder, backend="local")
        try:
            for call, value in ((run.log_params, params), (run.set_tags, tags)):
                _unless_refused(call, value)
            logged: dict[tuple[str, int], float] = {}
            for step, row in enumerate(rows):
                if _unless_refused(run.log_metrics, row, step=step):
                    logged |= {(name, step): float(value) for name, value in row.items()}
        finally:
            run.finish()
        shipper = shipper_to(run.path, sqlite_server.uri)
        assert shipper.ship()
        assert shipper.finish() == "FINISHED"
        _compare(sqlite_server.uri, run.path, shipper, logged)


def _unless_refused(call, *arguments, **named) -> bool:
    try:
        call(*arguments, **named)
    except (TypeError, ValueError):
        return False
    return True


def _compare(uri: str, path: Path, shipper: Shipper, logged: dict[tuple[str, int], float]) -> None:
    state = shipper.state
    memory = Memory.of(state.memory)
    assert state.refused == []
    client = client_of(uri)
    run = client.get_run(state.run_id)
    record = mt.load_run(path)
    from mlflow_track.record.params import flatten

    flat = flatten(record.params)
    names = {name: memory.renamed.get("params", {}).get(name, name) for name in flat}
    assert set(run.data.params) == set(names.values())
    assert len(set(names.values())) == len(flat)
    for name in record.tags:
        assert memory.renamed.get("tags", {}).get(name, name) in run.data.tags
    found = {}
    for name in {name for name, _ in logged}:
        there = memory.renamed.get("metrics", {}).get(name, name)
        for point in client.get_metric_history(state.run_id, there):
            found[name, point.step] = point.value
    assert found.keys() == logged.keys()
    for key, value in logged.items():
        if math.isinf(value):
            assert abs(found[key]) > 1e308
            assert key[0] in memory.infinite
        else:
            assert found[key] == value or (math.isnan(value) and math.isnan(found[key]))
