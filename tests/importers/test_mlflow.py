"""A run that was sent to a real MLflow store comes back the same, and so do runs of others."""

from __future__ import annotations

import math
import sqlite3
from pathlib import Path
from typing import Any

import pytest

import mlflow_track as mt
from mlflow_track.analysis.load import load_runs
from mlflow_track.backends.mlflow.reading import StoreReader
from mlflow_track.backends.mlflow.source import parsed
from mlflow_track.backends.protocol import Unavailable
from mlflow_track.mirror.process import open_backend, sync_run
from mlflow_track.record.params import flatten, param_text
from tests.importers.test_csv import imported, run_import
from tests.mirror.conftest import client_of
from tests.servers.mlflow_server import MlflowServer

# SQLite has no minus zero.
VALUES = [0.1, 1 / 3, math.nan, math.inf, -math.inf, 5e-324, 1e300]


def sent(uri: str, **fields: Any) -> mt.Run:
    """A finished run with something of everything, that the store has in full."""
    with mt.start_run(
        experiment="demo", run_name="first", directory="sent", tags={"team": "vision"}, **fields
    ) as run:
        for step, value in enumerate(VALUES):
            run.log_metrics({"loss": value, "odd*name": step}, step=step)
        run.log_metric("late", 0.25, step=2**53)
        run.log_text("hello", "notes/hello.txt")
        run.log_summary({"best": math.inf, "note": "good"})
        run.log_input(name="d", sha256="ab" * 32, size_bytes=7, source="s3://b/d", context="train")
    sync_run(Path(run.path), "mlflow", open_backend("mlflow", {"tracking_uri": uri}))
    return run


def test_a_run_that_was_sent_comes_back_the_same(store: str) -> None:
    params = {"lr": 1e-3, "n": 3, "deep": {"xs": [1, "a"], "on": True, "no": None}, "text": "1e-3"}
    run = sent(store, params=params)
    (row,), (back,) = imported(store)
    assert row["problems"] == [] and back.id != run.id
    (first,) = load_runs("sent")
    assert (back.name, back.experiment, back.status) == ("first", "demo", "FINISHED")
    assert flatten(back.params) == flatten(first.params)
    assert back.tags == first.tags and back.summary_values == first.summary_values
    assert back.info["inputs"] == first.info["inputs"]
    for name in ("created", "ended"):
        assert abs(back.info[name] - first.info[name]) <= 5e-4
    one, other = first.metrics(), back.metrics()
    assert one.index.tolist() == other.index.tolist() == [*range(len(VALUES)), 2**53]
    assert [round(1000 * t) for t in one.time] == [round(1000 * t) for t in other.time]
    for name in ("loss", "odd*name", "late"):
        assert one[name].to_numpy().tobytes() == other[name].to_numpy().tobytes(), name
    assert (back.path / "artifacts/notes/hello.txt").read_text() == "hello"
    assert [p.name for p in (back.path / "artifacts").iterdir()] == ["notes"]
    assert "run first FINISHED" in (back.path / "training.log").read_text()
    assert imported(store)[0][0]["state"] == "unchanged"


def test_a_copy_of_a_record_that_is_here_is_not_imported(store: str) -> None:
    run = sent(store)
    (row,) = imported(store, "--to", "sent")[0]
    assert (row["state"], row["id"]) == ("unchanged", run.id)
    assert len(load_runs("sent")) == 1


def foreign_store(uri: str) -> tuple[str, str]:
    """What MLflow's own client logs; the ids of the experiment, and of a run below another."""
    client = client_of(uri)
    experiment = client.create_experiment("digits")
    client.create_experiment("empty")
    parent = client.create_run(experiment, start_time=1000, run_name="sweep").info.run_id
    child = client.create_run(
        experiment, start_time=2000, tags={"mlflow.parentRunId": parent, "mlflow.user": "ada",
                                           "mlflow.source.name": "train.py", "kind": "trial"},
    ).info.run_id  # fmt: skip
    client.log_param(child, "lr", "0.1")
    for step, moment in ((-1, 2500), (0, 3000), (0, 2900), (1, 4000)):
        client.log_metric(child, "loss", moment / 1000, timestamp=moment, step=step)
    client.log_metric(child, "system/cpu", 5.0, timestamp=3000, step=0)
    client.log_text(child, "hi", "deep/er/hi.txt")
    client.set_terminated(child, "FAILED", end_time=5000)
    gone = client.create_run(experiment).info.run_id
    client.delete_run(gone)
    return experiment, child


def test_runs_of_other_programs_are_imported(store: str) -> None:
    foreign_store(store)
    rows, runs = imported(store, "--only", "digits")
    parent, run = sorted(runs, key=lambda run: run.created)
    assert len(rows) == 2 and parent.name == "sweep" and parent.status == "KILLED"
    assert (run.created, run.info["ended"], run.status) == (2.0, 5.0, "FAILED")
    assert run.params == {"lr": 0.1}
    assert run.tags == {"kind": "trial", "mlflow.parentRunId": parent.id}
    assert (run.info["provenance"]["user"], run.info["provenance"]["script"]) == ("ada", "train.py")
    # A record has no negative steps; of those that come twice the later time counts.
    assert "1 value of metric 'loss'" in rows[1]["problems"][0]
    assert run.metrics().loss.to_dict() == {0: 3.0, 1: 4.0}
    assert run.metrics("system_metrics.csv")["system/cpu"].tolist() == [5.0]
    assert (run.path / "artifacts/deep/er/hi.txt").read_text() == "hi"
    assert {row["state"] for row in imported(store)[0]} == {"unchanged"}


def test_the_database_as_a_path_and_the_address_of_a_page_are_sources(store: str) -> None:
    experiment, child = foreign_store(store)
    path = store.removeprefix("sqlite:///")
    page = f"{store}#/experiments/{experiment}/runs/{child}"
    _, (run,) = imported(page, "--no-artifacts")
    assert run.status == "FAILED" and not (run.path / "artifacts").exists()
    assert [row["state"] for row in imported(path, "--no-artifacts")[0]] == [
        "imported",
        "unchanged",
    ]
    assert run_import(path, "--only", "nothing").exit_code == 3


def test_a_folder_of_the_store_of_files_is_a_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    foreign_store((tmp_path / "mlruns").as_uri())
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    # Set by the import alone, where MLflow opens no folder by itself any more.
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    rows, runs = imported("mlruns")
    assert {row["state"] for row in rows} == {"imported"} and len(runs) == 2
    assert {run.experiment for run in runs} == {"digits"}


def test_what_is_not_there_is_said_and_not_made(tmp_path: Path) -> None:
    missing = run_import(f"sqlite:///{tmp_path}/none.db")
    assert missing.exit_code == 1 and "there is no database" in missing.stderr
    assert not (tmp_path / "none.db").exists()
    silent = run_import("http://user:hunter2@127.0.0.1:1", "--json")
    assert silent.exit_code == 1 and "hunter2" not in silent.stdout + silent.stderr


def test_a_store_cannot_have_other_files_of_this_machine_read(
    store: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    foreign_store(store)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "key").write_text("secret")
    (file,) = tmp_path.rglob("hi.txt")
    file.with_name("link.txt").symlink_to(elsewhere / "key")
    file.with_name("folder").symlink_to(elsewhere)
    imported(store)
    assert [path.name for path in Path("runs").rglob("*.txt")] == ["hi.txt"]
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("UPDATE runs SET artifact_uri = ?", [elsewhere.as_uri()])
    database.close()
    rows, _ = imported(store, "--to", "refused")
    assert "confirm it with --as-recorded" in " ".join(rows[1]["problems"])
    assert not list(Path("refused").rglob("key"))
    run_import(store, "--to", "confirmed", "--as-recorded")
    assert len(list(Path("confirmed").rglob("key"))) == 2


@pytest.mark.xdist_group("server")
def test_runs_of_a_server_are_imported_with_their_files(sqlite_server: MlflowServer) -> None:
    experiment, child = foreign_store(sqlite_server.uri)
    page = f"{sqlite_server.uri}/#/experiments/{experiment}/runs/{child}"
    (row,), (run,) = imported(page)
    assert row["state"] == "imported" and run.metrics().loss.to_dict() == {0: 3.0, 1: 4.0}
    assert (run.path / "artifacts/deep/er/hi.txt").read_text() == "hi"
    assert imported(page)[0][0]["state"] == "unchanged"


def test_a_server_that_goes_away_ends_the_import_and_keeps_what_came(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign_store(store)

    def history(*arguments: Any) -> None:
        raise Unavailable("timed out")

    monkeypatch.setattr(StoreReader, "history", history)
    rows, runs = imported(store)
    assert [row["state"] for row in rows] == ["imported", "failed"] and len(runs) == 1
    assert "timed out; this run and those after it" in rows[1]["problems"][0]


def test_params_are_what_their_texts_say_where_nothing_is_lost() -> None:
    values = [0.1, 3, True, None, [1, "a"], {"a": 1.5}, 1e22, "x", ""]
    assert [parsed(param_text(value)) for value in values] == values
    for text in ("1e-3", "01", "1.50", "[1,2]", "NaN", "true", '"x"', "[" * 10_000):
        assert parsed(text) == text
