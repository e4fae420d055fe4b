"""Does a command send a run where the user says, and not where a folder of a stranger says?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import mlflow_track as mt
from mlflow_track.cli import main
from mlflow_track.cli.exchange.destination import NotConfirmed, options_for
from mlflow_track.mirror.doctor import head
from mlflow_track.mirror.state import MirrorState
from tests.mirror.gateway import Reply, gateway_to


def make_run(**mirror: Any) -> mt.LoadedRun:
    """A run whose folder says where it was sent."""
    with mt.start_run(experiment="e", backend="local") as run:
        run.log_metric("a", 1.0, step=0)
        run._attempt.record.restate("mirror", mirror)
    return mt.load_run(run.path)


def call(*words: str) -> Any:
    return CliRunner().invoke(main, list(words))


@pytest.mark.parametrize("command", ["sync", "doctor"])
def test_no_server_is_asked_that_only_a_folder_names(command, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "SECRET-4711")
    with gateway_to() as gateway:
        gateway.rule = lambda *_: Reply(200, "{}")
        run = make_run(backends=["mlflow"], tracking_uri=gateway.uri)
        result = call(command, run.id)
        assert gateway.seen == []
        assert result.exit_code == 1 and "--as-recorded" in result.output, result.output
        # The negative control: confirmed, it is asked.
        call(command, run.id, "--as-recorded")
        assert gateway.seen


def test_the_server_that_a_later_sync_sent_a_run_to_is_named(monkeypatch):
    run = make_run()
    with pytest.raises(LookupError, match="no server is known"):
        options_for(run, "mlflow", None, True)
    MirrorState(destination="http://later:1").write(run.path, "mlflow")
    with pytest.raises(NotConfirmed, match=r"the server http://later:1.*--as-recorded"):
        options_for(run, "mlflow", None, False)
    assert options_for(run, "mlflow", None, True) == {"tracking_uri": "http://later:1"}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://here:2")
    assert options_for(run, "mlflow", None, False) == {"tracking_uri": "http://here:2"}
    MirrorState(destination="http://me:***@later:1").write(run.path, "mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(LookupError, match="does not store the password"):
        options_for(run, "mlflow", None, True)


def test_doctor_names_a_run_without_a_name_once():
    run = make_run()
    assert head(run.path) == f"run {run.id} of e: FINISHED"


def test_no_database_is_made_where_only_a_folder_says(tmp_path):
    there = tmp_path / "elsewhere.db"
    run = make_run(backends=["mlflow"], tracking_uri=f"sqlite:///{there}")
    result = call("sync", run.id, "--json")
    (row,) = json.loads(result.stdout)
    assert row["state"] == "failed" and str(there) in row["text"]
    assert not there.exists()


def test_where_folder_and_environment_differ_neither_is_taken(monkeypatch):
    run = make_run(backends=["mlflow"], tracking_uri="http://recorded:1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://here:2")
    with pytest.raises(NotConfirmed, match=r"http://recorded:1.*http://here:2"):
        options_for(run, "mlflow", None, False)
    assert options_for(run, "mlflow", None, True) == {"tracking_uri": "http://recorded:1"}
    assert options_for(run, "mlflow", "http://cli:3", False) == {"tracking_uri": "http://cli:3"}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://recorded:1")
    assert options_for(run, "mlflow", None, False) == {"tracking_uri": "http://recorded:1"}


def test_an_option_that_only_a_folder_has_must_be_confirmed(monkeypatch):
    run = make_run(backends=["jsonl"], options={"jsonl": {"folder": "/theirs"}})
    with pytest.raises(NotConfirmed, match=r"folder=/theirs; set MLFLOW_TRACK_JSONL_FOLDER"):
        options_for(run, "jsonl", None, False)
    assert options_for(run, "jsonl", None, True) == {"folder": "/theirs"}
    monkeypatch.setenv("MLFLOW_TRACK_JSONL_FOLDER", "/mine")
    assert options_for(run, "jsonl", None, False) == {"folder": "/mine"}
    # Also where a folder is confirmed, what the user has set counts.
    assert options_for(run, "jsonl", None, True) == {"folder": "/mine"}


def test_a_variable_of_the_working_folder_counts_as_said(monkeypatch):
    run = make_run(backends=["mlflow"], tracking_uri="http://recorded:1")
    Path(".env").write_text("MLFLOW_TRACKING_URI=http://recorded:1\n")
    assert options_for(run, "mlflow", None, False) == {"tracking_uri": "http://recorded:1"}
