"""Run folders that earlier versions wrote read as what they were meant to be, and can be continued.

`frozen/runs-v<layout>` are such folders, `frozen/expected-v<layout>.json` is what they must read
as; `frozen/write.py` says how they were made. A folder that is there is never written again. These
tests know public names and the names of files only, so that the insides may move.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

import mlflow_track as mt
from mlflow_track.cli import main
from tests.frozen.states import draws, fresh_state, told, train_step
from tests.mirror.conftest import client_of, files_under, history

# They share what takes seconds to import.
pytestmark = pytest.mark.xdist_group("frozen")

FROZEN = Path(__file__).parent / "frozen"
VERSIONS = sorted(path.name.removeprefix("runs-") for path in FROZEN.glob("runs-v*"))
STATUSES = ("FINISHED", "FAILED", "KILLED")


class Frozen(NamedTuple):
    """A copy of a frozen run, and what it must read as."""

    path: Path
    expected: dict[str, Any]

    @property
    def root(self) -> Path:
        return self.path.parent.parent


def expected_of(version: str) -> list[dict[str, Any]]:
    return json.loads((FROZEN / f"expected-{version}.json").read_bytes())


EVERY = [(version, expected) for version in VERSIONS for expected in expected_of(version)]


def named(runs: Iterable[tuple[str, dict[str, Any]]]) -> list[Any]:
    """Parameters of a test, called after version and run."""
    return [
        pytest.param(version, expected, id=f"{version}-{expected['name'].replace(' ', '-')}")
        for version, expected in runs
    ]


def copy_of(version: str, expected: dict[str, Any], to: Path) -> Frozen:
    path = to / "runs" / expected["folder"]
    shutil.copytree(FROZEN / f"runs-{version}" / expected["folder"], path)
    return Frozen(path, expected)


def copy_named(name: str, to: Path, version: str = "v1") -> Frozen:
    (expected,) = [run for run in expected_of(version) if run["name"] == name]
    return copy_of(version, expected, to)


def invoke(*words: str | Path, status: int = 0) -> Result:
    result = CliRunner().invoke(main, list(map(str, words)), prog_name="mlflow-track")
    assert result.exit_code == status, (words, result.output, result.exception)
    assert "Traceback" not in result.output
    return result


# --- what is read, and what it must be, in the same form ---


def as_read(path: Path) -> dict[str, Any]:
    run = mt.load_run(path)
    shown = json.loads(invoke("show", path, "--json").output)
    attempts = shown["run"]["attempts"]
    artifacts = [p for p in (path / "artifacts").rglob("*") if p.is_file()]
    return {
        "id": run.id,
        "name": run.name,
        "experiment": run.experiment,
        "status": run.status,
        "created": shown["created"],
        "ended": shown["ended"],
        "params": run.params,
        "tags": run.tags,
        "metrics": values_of(run.metrics()),
        "counts": {name: m["count"] for name, m in shown["metrics"].items() if m["count"]},
        "rewound": {p.name: values_of(run.metrics(p.name)) for p in path.glob("*.rewound-*.csv")},
        "system": values_of(run.metrics("system_metrics.csv")),
        "attempts": len(attempts),
        "ends": [attempt["status"] for attempt in attempts[:-1]],
        "error": attempts[-1].get("error") if attempts else None,
        "checkpoints": [checkpoint.step for checkpoint in run.checkpoints],
        "inputs": shown["run"]["inputs"],
        "artifacts": {
            p.relative_to(path / "artifacts").as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in artifacts
        },
    }


def meant(expected: dict[str, Any]) -> dict[str, Any]:
    names = {name for _, metrics in expected["rows"] for name in metrics}
    return {
        **{key: expected[key] for key in ("id", "name", "experiment", "status", "created")},
        **{key: expected[key] for key in ("ended", "params", "tags", "artifacts")},
        "metrics": values_of_rows(expected["rows"]),
        "counts": {name: sum(name in row[1] for row in expected["rows"]) for name in names},
        "rewound": {file: values_of_rows(rows) for file, rows in expected["rewound"].items()},
        "system": values_of_rows(expected["system"]),
        "attempts": len(expected["attempts"]),
        "ends": expected["attempts"][:-1],
        "error": expected.get("error"),
        "checkpoints": sorted(map(int, expected["checkpoints"])),
        "inputs": expected.get("inputs", []),
    }


def values_of(frame: Any) -> dict[str, dict[int, str]]:
    """By metric and step the exact value, without NaN, which stands for what is not there, too.

    `counts` tells the two apart.
    """
    values: dict[str, dict[int, str]] = {}
    for name in frame.columns.drop("time"):
        for step, value in frame[name].dropna().items():
            values.setdefault(name, {})[step] = repr(float(value))
    return values


def values_of_rows(rows: list[list[Any]]) -> dict[str, dict[int, str]]:
    """The same of what was logged; a later value of the same step counts."""
    values: dict[str, dict[int, str]] = {}
    for step, metrics in sorted(rows, key=lambda row: row[0]):
        for name, value in metrics.items():
            if not math.isnan(float(value)):
                values.setdefault(name, {})[step] = repr(float(value))
    return values


@pytest.mark.parametrize(("version", "expected"), named(EVERY))
def test_a_frozen_run_reads_as_what_was_logged(
    version: str, expected: dict[str, Any], tmp_path: Path
) -> None:
    run = copy_of(version, expected, tmp_path)
    assert as_read(run.path) == meant(expected)


def test_a_frozen_run_that_changed_by_one_byte_reads_as_another(tmp_path: Path) -> None:
    run = copy_named("all kinds", tmp_path)
    for name, old, new in (
        ("metrics.csv", b"0.3333333333333333", b"0.3333333333333334"),
        ("metrics.csv", b"nan", b""),
        ("metrics.csv", b"5e-324", b"0.0000"),
        ("config.json", b"[\n      1,\n      2\n", b"[\n      1,\n      3\n"),
        ("run.json", b'"team": "vision and', b'"team": "vision ond'),
        ("run.json", b'"status": "FINISHED"', b'"status": "KILLED"'),
        ("artifacts/files/one file.bin", b"\x01", b"\x00"),
    ):
        before = (run.path / name).read_bytes()
        assert old in before, (name, old)
        (run.path / name).write_bytes(before.replace(old, new))
        assert as_read(run.path) != meant(run.expected), (name, old)
        (run.path / name).write_bytes(before)
    assert as_read(run.path) == meant(run.expected)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_reader_gives_the_same_status(version: str, tmp_path: Path) -> None:
    shutil.copytree(FROZEN / f"runs-{version}", tmp_path / "runs")
    expected = {run["id"]: run["status"] for run in expected_of(version)}
    runs = mt.load_runs("runs")
    assert [run.id for run in runs] == [
        run["id"] for run in sorted(expected_of(version), key=lambda run: run["created"])
    ]
    assert {run.id: run.status for run in runs} == expected
    listed = json.loads(invoke("ls", "runs", "--json").output)
    assert {run["id"]: run["status"] for run in listed} == expected
    assert dict(mt.compare(runs)["status"]) == expected
    for status in STATUSES:
        wanted = {run_id for run_id, found in expected.items() if found == status}
        assert {run.id for run in mt.load_runs("runs", where=f"status = '{status}'")} == wanted
        answer = json.loads(invoke("ls", "runs", "--status", status, "--json").output)
        assert {run["id"] for run in answer} == wanted
    for run_id, status in expected.items():
        shown = invoke("show", "-d", "runs", run_id).output
        assert [line.split()[1] for line in shown.splitlines() if "  status " in line] == [status]
        code = 0 if status == "FINISHED" else 1
        invoke("tail", "-d", "runs", run_id, status=code)
    client = client_of(f"mlflow-track://{tmp_path}/runs")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    served = client.search_runs(experiments)
    assert sorted(run.info.status for run in served) == sorted(expected.values())


@pytest.mark.parametrize("version", VERSIONS)
def test_many_frozen_runs_read_as_one_table(version: str, tmp_path: Path) -> None:
    shutil.copytree(FROZEN / f"runs-{version}", tmp_path / "runs")
    runs = mt.load_runs("runs")
    together, table = mt.load_metrics(runs), mt.compare(runs)
    for expected in expected_of(version):
        wanted = values_of_rows(expected["rows"])
        assert values_of(together.loc[expected["id"]]) == wanted
        assert table.loc[expected["id"], "name"] == expected["name"]
        for name, values in wanted.items():
            last = values[max(values)]
            assert repr(float(table.loc[expected["id"], name])) == last, (expected["id"], name)
    exported = invoke("export", "-d", "runs").output
    assert all(expected["id"] in exported for expected in expected_of(version))


def test_a_change_of_a_param_stays_in_the_config_of_a_frozen_run(tmp_path: Path) -> None:
    for name in ("all kinds", "resumed twice"):
        run = copy_named(name, tmp_path)
        (change,) = json.loads((run.path / "config.json").read_bytes())["changes"]
        assert change["params"] == run.expected["changes"]


# --- checkpoints ---

WITH_CHECKPOINTS = [(version, run) for version, run in EVERY if run["checkpoints"]]


@pytest.mark.parametrize(("version", "expected"), named(WITH_CHECKPOINTS))
def test_the_commands_find_the_checkpoints_of_a_frozen_run_whole(
    version: str, expected: dict[str, Any], tmp_path: Path
) -> None:
    run = copy_of(version, expected, tmp_path)
    steps = sorted(map(int, expected["checkpoints"]))
    rows = json.loads(invoke("ckpt", "ls", run.path, "--json").output)
    assert [row["step"] for row in rows] == steps
    assert [row["step"] for row in rows if row["is_pinned"]] == expected.get("pinned", [])
    assert invoke("ckpt", "verify", run.path).output.count(" verified") == len(steps)
    for step in steps:
        assert "tensor model.0.weight" in invoke("ckpt", "show", f"{run.path}", str(step)).output


@pytest.mark.parametrize("file", ["state.safetensors", "state.json", "manifest.json"])
def test_a_flipped_bit_in_a_frozen_checkpoint_is_found(file: str, tmp_path: Path) -> None:
    run = copy_named("resumed twice", tmp_path)
    path = run.path / "checkpoints" / "step-000000011" / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert "step 11  DAMAGED" in invoke("ckpt", "verify", run.path, status=1).output
    state = fresh_state()
    with mt.start_run(resume=run.expected["id"], directory=run.root) as again:
        assert again.checkpoints().restore(state) == 9
    assert told_all(state) == run.expected["checkpoints"]["8"]["state"]
    assert told_all(state) != run.expected["checkpoints"]["11"]["state"]


def told_all(state: dict[str, Any]) -> dict[str, Any]:
    """As the expectations hold it: what JSON makes of it."""
    return json.loads(json.dumps({name: told(entry) for name, entry in state.items()}))


def state_like(saved: dict[str, Any]) -> dict[str, Any]:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    return fresh_state(has_all_kinds="kinds" in saved["state"])


@pytest.mark.parametrize(
    ("version", "expected", "step"),
    [
        pytest.param(*parameter.values, int(step), id=f"{parameter.id}-{step}")
        for parameter in named(WITH_CHECKPOINTS)
        for step in parameter.values[1]["checkpoints"]
    ],
)
def test_a_frozen_checkpoint_restores_bit_for_bit(
    version: str, expected: dict[str, Any], step: int, tmp_path: Path
) -> None:
    run = copy_of(version, expected, tmp_path)
    saved = expected["checkpoints"][str(step)]
    state = state_like(saved)
    assert told_all(state) != saved["state"] and draws() != saved["draws"]
    with mt.start_run(resume=expected["id"], directory=run.root) as again:
        assert again.checkpoints().restore(state, step=step) == step + 1
        assert draws() == saved["draws"]
    assert told_all(state) == saved["state"]
    if "kinds" in state:
        assert state["kinds"]["tied"][0] is state["kinds"]["tied"][1]
    rows = [row for row in expected["rows"] if row[0] <= step]
    assert values_of(mt.load_run(run.path).metrics()) == values_of_rows(rows)


@pytest.mark.parametrize(("version", "expected"), named(WITH_CHECKPOINTS))
def test_a_frozen_run_trains_on_and_finishes(
    version: str, expected: dict[str, Any], tmp_path: Path
) -> None:
    run = copy_of(version, expected, tmp_path)
    last = max(map(int, expected["checkpoints"]))
    state = state_like(expected["checkpoints"][str(last)])
    with mt.start_run(resume=expected["id"], directory=run.root) as again:
        assert again.name == expected["name"]
        checkpoints = again.checkpoints()
        begin = checkpoints.restore(state)
        assert begin == last + 1
        new = []
        for step in range(begin, begin + 2):
            new.append([step, {"train/loss": train_step(state)}])
            again.log_metrics(new[-1][1], step=step)
        checkpoints.save(step, state)
    found, kept = as_read(run.path), [row for row in expected["rows"] if row[0] <= last]
    assert found["status"] == "FINISHED"
    assert found["metrics"] == values_of_rows(kept + new)
    assert found["attempts"] == len(expected["attempts"]) + 1
    assert found["params"] == expected["params"] and found["tags"] == expected["tags"]
    assert found["rewound"].items() >= meant(expected)["rewound"].items()
    invoke("ckpt", "verify", run.path)
    other = state_like(expected["checkpoints"][str(last)])
    with mt.start_run(resume=expected["id"], directory=run.root) as again:
        assert again.checkpoints().restore(other) == step + 1
    assert told_all(other) == told_all(state)


@pytest.mark.parametrize(
    ("version", "expected"), named(pair for pair in EVERY if not pair[1]["checkpoints"])
)
def test_a_frozen_run_without_checkpoints_takes_more_and_finishes(
    version: str, expected: dict[str, Any], tmp_path: Path
) -> None:
    run = copy_of(version, expected, tmp_path)
    step = 1 + max(step for step, _ in expected["rows"])
    params = {"learning_rate": 7.0}
    with mt.start_run(resume=expected["id"], directory=run.root, params=params) as again:
        again.log_metrics({"new": 0.1}, step=step)
        again.set_tag("again", "yes")
    found = as_read(run.path)
    assert found["status"] == "FINISHED"
    assert found["metrics"] == values_of_rows([*expected["rows"], [step, {"new": 0.1}]])
    assert found["params"] == {**expected["params"], **params}
    assert found["tags"] == {**expected["tags"], "again": "yes"}
    changes = json.loads((run.path / "config.json").read_bytes())["changes"]
    assert changes[-1]["params"] == {
        "learning_rate": [expected["params"]["learning_rate"], params["learning_rate"]]
    }


# --- fields that this version does not know ---

UNKNOWN = {"deep": {"er": [1, None, "größe"]}, "flag": True}


def put_unknown(path: Path, *places: tuple[str | int, ...]) -> None:
    """A field that nobody knows into each of the places of a JSON file."""
    content = json.loads(path.read_bytes())
    for place in places:
        at(content, place)["of a later version"] = UNKNOWN
    path.write_text(json.dumps(content))


def at(content: Any, place: tuple[str | int, ...]) -> Any:
    for key in place:
        content = content[key]
    return content


def lost(path: Path, *places: tuple[str | int, ...]) -> list[tuple[str | int, ...]]:
    """The places from which it has gone."""
    content = json.loads(path.read_bytes())
    return [p for p in places if at(content, p).get("of a later version") != UNKNOWN]


def test_unknown_fields_survive_a_resume_that_rewinds_and_finishes(tmp_path: Path) -> None:
    run = copy_named("resumed twice", tmp_path)
    of_run = ((), ("attempts", 0), ("attempts", 2), ("rewinds", 1), ("restores", 0))
    of_run += (("provenance",), ("checkpoints",))
    of_config = ((), ("changes", 0))
    put_unknown(run.path / "run.json", *of_run)
    put_unknown(run.path / "config.json", *of_config)
    state = fresh_state()
    with mt.start_run(
        resume=run.expected["id"], directory=run.root, params={"learning_rate": 0.1}
    ) as again:
        checkpoints = again.checkpoints(keep=mt.Keep(last=2))
        step = checkpoints.restore(state, step=8)
        again.set_tag("again", "yes")
        again.log_params({"width": 4})
        again.log_metrics({"train/loss": train_step(state)}, step=step)
        checkpoints.save(step, state)
    assert lost(run.path / "run.json", *of_run) == []
    assert lost(run.path / "config.json", *of_config) == []
    assert mt.load_run(run.path).status == "FINISHED"
    assert mt.load_run(run.path).params == {"learning_rate": 0.1, "width": 4}


def test_unknown_fields_survive_a_kill_and_a_resume_without_a_checkpoint(
    tmp_path: Path,
) -> None:
    for version, name in (("v1", "failed"), ("v0", "20231114-221320-0a1b2c")):
        run = copy_named(name, tmp_path, version)
        put_unknown(run.path / "run.json", ())
        put_unknown(run.path / "config.json", ())
        run_id = run.expected["id"]
        mt.start_run(resume=run_id, directory=run.root, params={"a": 1}).finish("KILLED")
        assert lost(run.path / "run.json", ()) == lost(run.path / "config.json", ()) == []


# --- the mirror ---


def with_times(run: Frozen) -> Frozen:
    """Git keeps no times of files; the mirror knows by them which it has sent."""
    stamps = json.loads((run.path / "mirror.json").read_bytes())["artifacts"]
    for name, (_, changed) in stamps.items():
        folder = run.path / "artifacts"
        if name.startswith("record/"):
            folder, name = run.path, name.removeprefix("record/")
        os.utime(folder / name, ns=(changed, changed))
    return run


def test_a_mirrored_frozen_run_needs_nothing_and_its_store_is_not_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = with_times(copy_named("mirrored", tmp_path))
    monkeypatch.setenv("MLFLOW_TRACK_DIR", str(run.root))
    invoke("doctor", run.path)
    invoke("doctor")
    # Its store does not exist.
    invoke("sync")
    with open(run.path / "metrics.csv", "a") as metrics:
        metrics.write("6,1795769029,0.5\n")
    invoke("doctor", run.path, status=1)


# What the server's files hold that it has.
SENT_BEFORE = b"sent before"


def stand_in(run: Frozen, store: str) -> tuple[str, set[tuple[int, int]]]:
    """A run in the store that has what the mirror says to have sent, each value larger by 1000.

    Returns:
        Its id. What is sent again would be seen: it would stand beside it.
    """
    from mlflow.entities import Metric

    client = client_of(store)
    artifacts = (Path(store.removeprefix("sqlite:///")).parent / "artifacts").as_uri()
    experiment = client.create_experiment(run.expected["experiment"], artifacts)
    sent = json.loads((run.path / "mirror.json").read_bytes())
    there = client.create_run(experiment, tags=sent["tags"])
    for name, value in sent["params"].items():
        client.log_param(there.info.run_id, name, value)
    times = {}
    for file in ("metrics.csv", *run.expected["rewound"]):
        frame = mt.load_run(run.path).metrics(file)
        times |= {
            (step, repr(float(row["train/loss"]))): round(1000 * row["time"])
            for step, row in frame.iterrows()
        }
    points = [
        Metric(name, value + 1000, times[step, repr(float(value))], step)
        for step, row in run.expected["sent"]
        for name, value in row.items()
    ]
    client.log_batch(there.info.run_id, metrics=points)
    checkpoints = (run.path / "checkpoints" / name for name in sent["checkpoints"])
    files = [str(f.relative_to(run.path)) for folder in checkpoints for f in folder.iterdir()]
    for name in (*sent["artifacts"], *files):
        client.log_text(there.info.run_id, SENT_BEFORE.decode(), name)
    client.set_terminated(there.info.run_id, "KILLED")
    for name in ("mirror.json", "run.json"):
        content = json.loads((run.path / name).read_bytes())
        if name == "mirror.json":
            content |= {"run_id": there.info.run_id, "experiment_id": experiment}
            content["tracking_uri"] = store
        else:
            content["mirror"]["tracking_uri"] = store
        (run.path / name).write_text(json.dumps(content))
    return there.info.run_id


def test_a_half_mirrored_frozen_run_sends_the_rest_and_nothing_twice(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = with_times(copy_named("half mirrored", tmp_path))
    there = stand_in(run, store)
    of_state = ((), ("files", "metrics.csv"))
    of_run = ((), ("mirror",))
    put_unknown(run.path / "mirror.json", *of_state)
    put_unknown(run.path / "run.json", *of_run)
    invoke("doctor", run.path, status=1)
    invoke("sync", run.path, "--as-recorded")
    invoke("doctor", run.path)
    sent = {step: row["train/loss"] + 1000 for step, row in run.expected["sent"]}
    rest = {step: row for step, row in run.expected["rows"] if step not in sent}
    losses = sent | {step: row["train/loss"] for step, row in rest.items()}
    assert history(store, there, "train/loss") == sorted(losses.items())
    late = [(step, row["late"]) for step, row in run.expected["rows"] if "late" in row]
    assert history(store, there, "late") == late
    found = client_of(store).get_run(there)
    assert found.info.status == "FINISHED"
    assert found.data.tags["late"] == "yes"
    # Of what was sent before, artifacts and the checkpoint were not sent again.
    assert found.data.params == {"learning_rate": "0.01", "nested.width": "3"}
    before = {
        name
        for name in files_under(store, there)
        if Path(client_of(store).download_artifacts(there, name)).read_bytes() == SENT_BEFORE
    }
    assert "notes.txt" in before and "later.txt" not in before
    assert len([name for name in before if name.startswith("checkpoints/")]) == 3

    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_TRACK_FINISH_TIMEOUT", "100")
    monkeypatch.setenv("MLFLOW_TRACK_MIRROR_NICE", "0")
    with mt.start_run(resume=run.expected["id"], directory=run.root) as again:
        again.log_metrics({"train/loss": 0.5}, step=9)
    assert history(store, there, "train/loss") == [*sorted(losses.items()), (9, 0.5)]
    states = [run.path / "mirror" / "mlflow.json", run.path / "mirror.json"]
    assert lost(next(path for path in states if path.exists()), *of_state) == []
    assert lost(run.path / "run.json", *of_run) == []
