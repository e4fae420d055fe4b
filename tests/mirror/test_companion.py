"""Does the trainer's side cope with a mirror that dies, and does it say what is pending?"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections import deque
from dataclasses import replace

import pytest
from click.testing import CliRunner

import mlflow_track as mt
from mlflow_track.cli import main
from mlflow_track.mirror import companion as companion_module
from mlflow_track.mirror.companion import Companion
from mlflow_track.mirror.status import SyncStatus, read_statuses
from tests.mirror.conftest import ROOT, history, only_run, runs_of

DEAD = "http://127.0.0.1:9"


@pytest.mark.faults
def test_a_killed_mirror_is_replaced_and_every_row_arrives_once(store, wait_for, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    with mt.start_run(experiment="e") as run:
        killed = []
        for step in range(300):
            if step in (100, 200):
                wait_for(lambda: run.sync_status().acknowledged_rows >= 50)
                killed.append(run._attempt.companion.pid)
                os.kill(killed[-1], signal.SIGKILL)
                wait_for(lambda: run._attempt.companion.pid != killed[-1])
            run.log_metric("a", step / 3, step=step)
    assert len(set(killed)) == 2
    run_id = only_run(store, "e").info.run_id
    assert history(store, run_id, "a") == [(step, step / 3) for step in range(300)]
    assert only_run(store, "e").info.status == "FINISHED"


def test_a_mirror_that_always_dies_is_given_up_and_the_run_is_told_so(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(companion_module, "_RESTART_PAUSE_SECONDS", 0.0)
    run = mt.start_run(experiment="e", backend="local")
    # Without a server in its environment the process ends at once.
    companion = Companion(run.path, ["mlflow"], {"PYTHONHOME": "/absent"})
    assert companion._has_ended.wait(60)
    said = capfd.readouterr().err
    assert said.count("; restarted") == 1 and "after 5 restarts" in said
    assert f"mlflow-track sync {run.path}" in said
    status = companion.close(timeout_seconds=60)
    assert not status.is_complete
    run.finish()


def test_the_end_of_a_run_repeats_no_reason_that_the_mirror_has_given(capfd):
    with mt.start_run(experiment="e", backend="local") as run:
        (status,) = read_statuses(run.path, ["mlflow"])
    status = replace(status, error="no login")
    companion = object.__new__(Companion)
    for said, shown in (
        ((), "(no login)"),
        (("WARNING: mlflow cannot be reached: no login. It is kept",), "the status. Nothing"),
        ((str(status),), ""),
    ):
        companion._said = deque(said)
        capfd.readouterr()
        companion.report(SyncStatus((status,)))
        text = capfd.readouterr().err
        assert shown in text and bool(text) == bool(shown), said
        assert ("no login" in text) == (not said)


def test_a_mirror_that_dies_now_and_then_is_always_replaced(monkeypatch, capfd, wait_for):
    monkeypatch.setattr(companion_module, "_RESTART_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(companion_module, "_STEADY_SECONDS", 0.0)
    said = []
    monkeypatch.setattr(companion_module, "say", said.append)
    run = mt.start_run(experiment="e", backend="local")
    companion = Companion(run.path, ["mlflow"], {"PYTHONHOME": "/absent"})
    wait_for(lambda: len(said) > 7)
    assert not companion._has_ended.is_set()
    monkeypatch.undo()
    assert companion._has_ended.wait(60)
    run.finish()


def test_at_a_terminal_the_end_of_a_run_shows_what_it_waits_for(tmp_path):
    code = """
    import mlflow_track as mt
    with mt.start_run(experiment="e") as run:
        for step in range(7):
            run.log_metric("a", 1.0, step=step)
    """
    # A mirror that does not linger has seen that nobody answers before a line is due.
    ours, theirs = os.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stderr=theirs,
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "MLFLOW_TRACKING_URI": DEAD,
            "MLFLOW_TRACK_FINISH_TIMEOUT": "3",
            "MLFLOW_TRACK_MIRROR_LINGER": "3",
        },
    ) as process:
        os.close(theirs)
        seen = b""
        while piece := _read(ours):
            seen += piece
        assert process.wait(100) == 0
    os.close(ours)
    text = seen.decode()
    assert "\rsending to mlflow: 7 of 7 rows, " in text
    assert "not yet in mlflow: 7 of 7 rows" in text.rsplit("\r", 1)[-1] or "7 of 7" in text
    (run,) = mt.load_runs(tmp_path / "runs")
    assert f"mlflow-track sync {run.path} ships the rest" in text


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except OSError:  # the other side of a terminal is closed
        return b""


def test_sync_without_words_sends_what_was_meant_for_a_server_and_with_all_the_rest(
    run_script, store
):
    code = """
    import mlflow_track as mt
    with mt.start_run(experiment="e") as run:
        run.log_metric("a", 1, step=0)
    """
    for variables in ({"MLFLOW_TRACKING_URI": DEAD}, {"MLFLOW_TRACK_BACKEND": "local"}):
        done = run_script(code, MLFLOW_TRACK_MIRROR_LINGER="0", **variables)
        assert done.returncode == 0, done.stderr
    meant, local = mt.load_runs("runs")

    def sync(*words: str) -> str:
        result = CliRunner().invoke(main, ["sync", *words, "--tracking-uri", store])
        assert result.exit_code == 0, result.output
        return result.output

    first = sync()
    assert meant.id in first and local.id not in first
    assert sync() == "nothing is pending\n"
    assert local.id in sync("--all")
    assert len(runs_of(store, "e")) == 2
    result = CliRunner().invoke(main, ["sync", local.id, "--tracking-uri", "nonsense://x"])
    assert result.exit_code == 1
    assert result.output.startswith(f"{local.id}: ") and "unsupported URI" in result.output


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("htps://alice:hunter2@h/", "got unsupported URI 'htps://alice:***@h/'"),
        ("mysql://alice:hunter2@h/db", "driver MySQLdb is not installed"),
        ("bogus", "filesystem tracking backend"),
    ],
)
def test_a_uri_that_mlflow_cannot_open_is_explained_in_a_line_without_its_password(
    run_script, tmp_path, uri, why
):
    patience = {"MLFLOW_TRACK_FINISH_TIMEOUT": "30", "MLFLOW_TRACK_MIRROR_LINGER": "0"}
    done = run_script(
        "import mlflow_track as mt; mt.start_run().finish()", MLFLOW_TRACKING_URI=uri, **patience
    )
    assert done.returncode == 0 and why in done.stderr, done.stderr
    (run,) = mt.load_runs("runs")
    for command in ("sync", "doctor"):
        result = CliRunner().invoke(main, [command, run.id, "--tracking-uri", uri])
        assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
        assert why in result.output and "hunter2" not in result.output
    recorded = b"".join(path.read_bytes() for path in run.path.rglob("*") if path.is_file())
    assert b"hunter2" not in recorded and "hunter2" not in done.stderr


def test_the_doctor_counts_and_says_why_and_what_to_do(run_script, store):
    code = """
    import mlflow_track as mt
    with mt.start_run(experiment="e") as run:
        run.log_metric("a", 1, step=0)
    """
    done = run_script(code, MLFLOW_TRACKING_URI=DEAD, MLFLOW_TRACK_MIRROR_LINGER="0")
    assert done.returncode == 0, done.stderr
    (run,) = mt.load_runs("runs")
    result = CliRunner().invoke(main, ["doctor", run.id])
    assert result.exit_code == 1
    assert "rows         1 written, 0 acknowledged, 1 pending" in result.output
    assert "Connection refused" in result.output
    assert f"mlflow-track sync {run.path.absolute()}" in result.output
    assert CliRunner().invoke(main, ["sync", run.id, "--tracking-uri", store]).exit_code == 0
    result = CliRunner().invoke(main, ["doctor", run.id, "--tracking-uri", store])
    assert result.exit_code == 0, result.output
    assert "rows         1 written, 1 acknowledged, 0 pending" in result.output
    assert "destination  answers" in result.output


@pytest.mark.parametrize("backend", ["local", "off"])
def test_a_run_without_a_server_has_no_sync_status(backend):
    with mt.start_run(backend=backend) as run:
        assert run.sync_status() is None
