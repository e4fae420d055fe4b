"""A run that goes to several backends, one of another package, whatever fails."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner

import mlflow_track as mt
from mlflow_track.cli import main
from mlflow_track.mirror.status import read_statuses
from mlflow_track.record import layout
from mlflow_track.record.lock import is_locked
from mlflow_track.record.media.index import read_media
from tests import forked
from tests.backends import wandb_reader
from tests.backends.event_files import as_float32, event_folder, scalars_in, status_in
from tests.backends.everywhere import (
    assert_same_pictures,
    assert_same_texts,
    assert_same_values,
    texts_at,
)
from tests.campaign import sampled
from tests.mirror.conftest import history, only_run, runs_of
from tests.mirror.test_kills import kill_mirror
from tests.train.test_job import flags


def lines_of(record: mt.LoadedRun, folder: Path | None = None) -> list[dict[str, Any]]:
    path = (folder or record.path / "jsonl") / f"{record.id}.jsonl"
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def points_in(lines: list[dict[str, Any]]) -> list[tuple[str, int, float]]:
    points = [line for line in lines if not line.get("key", "system/").startswith("system/")]
    return [(point["key"], point["step"], point["value"]) for point in points]


def scalars_of(record: mt.LoadedRun) -> list[tuple[str, int, float]]:
    return [scalar[:3] for scalar in scalars_in(event_folder(record.path))]


# What a backend has of a run, and how it has a value.
HELD: dict[str, Callable[[mt.LoadedRun], list[tuple[str, int, float]]]] = {
    "jsonl": lambda record: points_in(lines_of(record)),
    "tensorboard": scalars_of,
    "wandb": lambda record: [
        (each.key, each.step, each.value) for each in wandb_reader.values(record.path / "wandb")
    ],
}
AS_HELD: dict[str, Callable[[float], float]] = {"tensorboard": as_float32}
# What an attempt logs again is taken back there; elsewhere the first values stay.
REWINDING = ("tensorboard",)


@pytest.fixture(autouse=True)
def wandb_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")


def wandb_processes(folder: Path) -> list[psutil.Process]:
    """The processes of W&B's client that mirrors have started for runs of this working folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.name() == "wandb-core" and process.cwd() == str(folder):
                found.append(process)
    return found


def held(backend: str, record: mt.LoadedRun) -> list[tuple[str, int, float]]:
    return sorted(HELD[backend](record))


def logged_for(backend: str, record: mt.LoadedRun) -> list[tuple[str, int, float]]:
    as_held = AS_HELD.get(backend, float)
    return sorted((name, step, as_held(value)) for name, step, value in logged(record))


def logged(record: mt.LoadedRun) -> list[tuple[str, int, float]]:
    frame = record.metrics().drop(columns="time")
    return [(name, step, row[name]) for step, row in frame.iterrows() for name in frame.columns]


def test_a_backend_of_another_package_is_small(site: Path) -> None:
    module = site / "mlflow_track_jsonl.py"
    assert len(module.read_text().splitlines()) < 60


JOB = """
import mlflow_track as mt, torch
numbers = [0.1 + 0.2, 5e-324, 1.7976931348623157e308, -0.0, 2.0**60, 1e22, 1 / 3, 1e-45, 3.5e38, 7]
with mt.start_run(experiment="e", run_name="r", params={"lr": 0.1}, tags={"t": "1"}) as run:
    for step, number in enumerate(numbers):
        run.log_metrics({"a": step / 3, "b": number}, step=step)
    for step in (3, 7):
        run.log_image(torch.full((3, 8, 6), step, dtype=torch.uint8), "pictures", step=step)
        run.log_text(f"Grüße {step}", "samples", step=step)
        run.log_histogram("weights", [step, 1, 2], step=step, bins=3)
    run.log_text("x", "note.txt")
status = run.sync_status()
assert status.is_complete, str(status)
assert [each.backend for each in status] == ["jsonl", "mlflow", "tensorboard", "wandb"], status
print(run.url)
"""


def test_a_run_reaches_all_and_each_says_so(
    run_script: Callable[..., Any], store: str, installed: Path, tmp_path: Path
) -> None:
    variables = {"MLFLOW_TRACKING_URI": store, "MLFLOW_TRACK_JSONL_TOKEN": "hunter2hunter2"}
    done = run_script(JOB, MLFLOW_TRACK_BACKEND="jsonl, mlflow, tensorboard, wandb", **variables)
    assert done.returncode == 0, done.stderr
    (record,) = mt.load_runs("runs")
    assert done.stdout.strip() == str(record.path.absolute() / "jsonl" / f"{record.id}.jsonl")
    lines = lines_of(record)
    assert points_in(lines) == logged(record)
    assert lines[0]["params"] == {"lr": "0.1"} and lines[0]["tags"] == {"t": "1"}
    assert lines[-1]["status"] == "FINISHED"
    run = only_run(store, "e")
    assert run.info.status == "FINISHED"
    assert_same_values(record.path, store, run)
    assert_same_texts(record.path, store, run.info.run_id, "samples", steps=(3, 7))
    assert_same_pictures(record.path, store, run.info.run_id, steps=(3, 7))
    assert status_in(event_folder(record.path)) == "STATUS_SUCCESS"
    assert wandb_processes(tmp_path) == []
    for backend in ("mlflow", *HELD):
        assert f"{backend} has everything (10 rows)" in done.stderr
    # What jsonl cannot do is said once, and is not pending for ever.
    assert done.stderr.count("jsonl does not accept files") == 1
    shown = CliRunner().invoke(main, ["doctor", record.id], env=variables)
    assert shown.exit_code == 0, shown.output
    assert shown.output.count("10 acknowledged, 0 pending") == 4
    assert "token=***" in shown.output
    files = [path for path in record.path.rglob("*") if path.is_file()]
    assert not [path for path in files if b"hunter2" in path.read_bytes()]
    assert "hunter2" not in done.stderr + shown.output


@pytest.mark.tables
def test_a_training_is_the_same_everywhere(store: str, tmp_path: Path) -> None:
    variables = {
        "MLFLOW_TRACKING_URI": store,
        "MLFLOW_TRACK_BACKEND": "mlflow,tensorboard,wandb",
        "PYTHONPATH": str(forked.ROOT),
    }
    start = "import sys; from train.__main__ import main; sys.exit(main())"
    arguments = flags(max_steps=30, eval_interval=10, max_checkpoints=2, experiment="e")
    done = forked.run(
        [sys.executable, "-c", start, *arguments],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    (record,) = mt.load_runs("runs")
    run = only_run(store, "e")
    assert_same_values(record.path, store, run)
    assert_same_texts(record.path, store, run.info.run_id, "samples", steps=(9, 19, 29))
    assert wandb_processes(tmp_path) == []


@pytest.mark.faults
@pytest.mark.parametrize("seed", sampled(1, 3))
def test_kills_of_trainer_and_mirror_lose_and_repeat_nothing_anywhere(
    seed: int,
    store: str,
    installed: Path,
    tmp_path: Path,
    wait_for: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chance = random.Random(seed)
    variables = {"MLFLOW_TRACKING_URI": store, "MLFLOW_TRACK_BACKEND": ",".join(("mlflow", *HELD))}
    last = -1
    for _ in range(2):
        last = train_until_killed(chance, tmp_path, variables)
    (record,) = mt.load_runs("runs")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if chance.random() < 0.5:
        # Between two mirrors the locks are free for a moment: only the states say that all came.
        wait_for(lambda: read_statuses(record.path, ["mlflow", *HELD]).is_complete)
    else:
        time.sleep(chance.uniform(0, 2))
        kill_mirror(record.path)
        wait_for(lambda: not any(map(is_locked, layout.mirror_locks(record.path))))
        done = CliRunner().invoke(main, ["sync", record.id])
        assert done.exit_code == 0, done.output
    record = mt.load_run(record.path)
    kept = logged(record)
    assert max(step for _, step, _ in kept) >= last
    (run,) = runs_of(store, "e")
    assert run.info.status == "KILLED"
    for name in ("a", "b"):
        steps = [step for key, step, _ in kept if key == name]
        assert [step for step, _ in history(store, run.info.run_id, name)] == steps
    for backend in HELD:
        found, expected = held(backend, record), logged_for(backend, record)
        # A step that the first attempt logged, and the second again, is there once.
        assert [point[:2] for point in found] == [point[:2] for point in expected], backend
        assert found == expected or backend not in REWINDING
    listed = sorted(item.step for item in read_media(record.path))
    places = texts_at(record.path, store, run.info.run_id, "text")
    for place, found in places.items():
        assert [step for step, _ in found] == listed, place
    wait_for(lambda: wandb_processes(tmp_path) == [])


ENDLESS = """
import itertools, os, time, mlflow_track as mt, torch
with mt.start_run(experiment="e", resume="auto") as run:
    checkpoints = run.checkpoints(save=mt.EverySteps(20))
    state = {"weight": torch.zeros(2)}
    for step in itertools.count(checkpoints.restore(state)):
        run.log_metrics({"a": step / 3, "b": -float(step)}, step=step)
        checkpoints.step(step, state)
        if step % 7 == 0:
            run.log_text(f"at {step}", "text", step=step)
        os.write(1, b"%d\\n" % step)
        if step % 20 == 19:
            time.sleep(0.08)  # The backends have to take all of them.
"""


def train_until_killed(chance: random.Random, folder: Path, variables: dict[str, str]) -> int:
    """The last step whose call had returned before SIGKILL; now and then the mirror goes first."""
    with forked.Popen(
        [sys.executable, "-c", textwrap.dedent(ENDLESS)],
        cwd=folder,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        os.set_blocking(process.stdout.fileno(), False)
        deadline = time.monotonic() + chance.uniform(0, 2.5)
        kill_at = time.monotonic() + chance.uniform(0, 4)
        while time.monotonic() < deadline:
            said += process.stdout.read(1 << 16) or b""
            time.sleep(0.005)
            # Later the trainer would not live to start another one, and nothing sends the rest.
            if kill_at < time.monotonic() < deadline - 1:
                for record in mt.load_runs(folder / "runs"):
                    kill_mirror(record.path)
                kill_at = deadline
        process.send_signal(signal.SIGKILL)
        process.wait()
        os.set_blocking(process.stdout.fileno(), True)
        said += process.stdout.read()
    return int(said[: said.rindex(b"\n")].rsplit(b"\n", 1)[-1])


@pytest.mark.parametrize("other", ["blocked", "down", "wandb"])
def test_a_backend_that_does_not_work_holds_up_no_other(
    other: str,
    run_script: Callable[..., Any],
    installed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wait_for: Callable[..., Any],
) -> None:
    # W&B's client sends to its server then, for which there is no login.
    monkeypatch.delenv("WANDB_MODE")
    code = """
    import mlflow_track as mt
    run = mt.start_run(experiment="e")
    run.log_metric("a", 1.0, step=0)
    run.finish()
    print(run.sync_status()["jsonl"].is_complete, run.sync_status().is_complete)
    """
    variables = {
        "MLFLOW_TRACK_BACKEND": f"{other},jsonl",
        # One that is refused is over once its client is loaded.
        "MLFLOW_TRACK_FINISH_TIMEOUT": "60" if other == "wandb" else "8",
        "MLFLOW_TRACK_MIRROR_LINGER": "20",
        f"MLFLOW_TRACK_{other.upper()}_TOKEN": "hunter2hunter2",
        "NETRC": "nowhere",
        "HOME": str(tmp_path),
    }
    done = run_script(code, **variables)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", "False"], done.stderr
    (record,) = mt.load_runs("runs")
    kill_mirror(record.path)
    assert lines_of(record)[-1]["status"] == "FINISHED"
    assert f"not yet in {other}: 1 of 1 row" in done.stderr
    if other == "down":
        assert "WARNING: down cannot be reached" in done.stderr
        assert "no route to the host with the token ***" in done.stderr
    if other == "wandb":
        assert "WARNING: nothing is sent to wandb, training continues: there is no login" in (
            done.stderr
        )
    written = [path.read_bytes() for path in record.path.rglob("*") if path.is_file()]
    assert not [content for content in written if b"hunter2" in content]


@pytest.mark.parametrize("backend", HELD)
def test_sync_sends_to_a_backend_that_a_run_never_had(backend: str, installed: Path) -> None:
    with mt.start_run(experiment="e", backend="local") as run:
        run.log_metric("a", 1.0, step=0)
    for _ in range(2):
        done = CliRunner().invoke(main, ["sync", run.id, "--backend", backend])
        assert done.exit_code == 0, done.output
    (record,) = mt.load_runs("runs")
    assert held(backend, record) == [("a", 0, 1.0)]


def test_sync_uses_the_options_of_the_environment(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mt.start_run(experiment="e", backend="local") as run:
        run.log_metric("a", 1.0, step=0)
    monkeypatch.setenv("MLFLOW_TRACK_JSONL_FOLDER", str(tmp_path / "lines"))
    done = CliRunner().invoke(main, ["sync", run.id, "--backend", "jsonl"])
    assert done.exit_code == 0, done.output
    (record,) = mt.load_runs("runs")
    assert points_in(lines_of(record, tmp_path / "lines")) == [("a", 0, 1.0)]


@pytest.mark.parametrize("name", ["../../../secret", "a/b", "/tmp/x", "", "A"])
def test_a_record_whose_backend_names_a_file_elsewhere_is_damaged(
    name: str, tmp_path: Path
) -> None:
    with mt.start_run(experiment="e", backend="local") as run:
        run._attempt.record.restate("mirror", {"backends": ["mlflow"]})
    info = json.loads((run.path / "run.json").read_text())
    info["mirror"]["backends"] = [name]
    (run.path / "run.json").write_text(json.dumps(info))
    (tmp_path / "secret.json").write_text('{"url": "READ OUTSIDE"}')
    for command in ("doctor", "sync"):
        done = CliRunner().invoke(main, [command, "runs"])
        assert done.exit_code != 0 and "READ OUTSIDE" not in done.output
        assert "run.json is damaged" in done.output, done.output


@pytest.mark.parametrize(
    ("backend", "said"),
    [
        ("jsnl", "one or more of .*jsonl.*, got 'jsnl'; did you mean 'jsonl'?"),
        ("off,jsonl", "backend must be local, off, or names of backends"),
        ("", "backend must be"),
        (["mlflow", "local"], "backend must be local, off, or names of backends"),
    ],
)
def test_start_run_refuses_a_backend_that_is_not_there(
    backend: Any, said: str, installed: Path
) -> None:
    with pytest.raises(ValueError, match=said):
        mt.start_run(backend=backend)
    with pytest.raises(TypeError, match="backend must be a string or a list of strings, got 3"):
        mt.start_run(backend=3)  # type: ignore[arg-type]
