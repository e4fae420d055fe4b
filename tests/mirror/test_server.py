"""Does the mirror get along with a real `mlflow server`, also one that goes away?"""

from __future__ import annotations

import re
import time

import pytest

import mlflow_track as mt
from tests.mirror.conftest import files_under, history, only_run

pytestmark = pytest.mark.xdist_group("server")


def test_rows_are_there_before_the_run_ends_and_the_page_is_known(server, wait_for, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    with mt.start_run(experiment="live") as run:
        run.log_metric("a", 1.0, step=0)
        run.log_text("x" * 1000, "note.txt")
        url = wait_for(lambda: run.url)
        run_id = url.rsplit("/", 1)[1]
        wait_for(lambda: history(server.uri, run_id, "a"))
        assert only_run(server.uri, "live").info.status == "RUNNING"
        assert re.fullmatch(re.escape(server.uri) + r"/#/experiments/\d+/runs/\w{32}", url)
    done = only_run(server.uri, "live")
    assert done.info.status == "FINISHED"
    assert "note.txt" in files_under(server.uri, run_id)


@pytest.mark.faults
def test_a_server_that_goes_away_and_comes_back_gets_every_row_once(server, wait_for, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    with mt.start_run(experiment="outage") as run:
        slowest = 0.0
        for step in range(600):
            if step == 100:
                url = wait_for(lambda: run.url)
            if step == 200:
                server.stop()
            if step == 400:
                server.start()
            began = time.perf_counter()
            run.log_metrics({"a": step / 3, "b": -step}, step=step)
            slowest = max(slowest, time.perf_counter() - began)
            time.sleep(0.01)
    run_id = url.rsplit("/", 1)[1]
    assert history(server.uri, run_id, "a") == [(step, step / 3) for step in range(600)]
    assert history(server.uri, run_id, "b") == [(step, -step) for step in range(600)]
    assert only_run(server.uri, "outage").info.status == "FINISHED"
    assert slowest < 0.5
    log = (run.path / "training.log").read_text()
    assert log.count("WARNING: mlflow cannot be reached") == 1
    assert log.count("is reachable again") == 1
