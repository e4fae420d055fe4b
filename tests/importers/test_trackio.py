"""Trackio's databases come in, of today's schema and of the first, whole or damaged."""

from __future__ import annotations

import json
import math
import os
import random
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from mlflow_track.analysis.load import load_runs
from tests.importers.test_csv import imported, run_import

# As trackio 0.43 has them; the first versions had no run_id.
SCHEMA = """
CREATE TABLE metrics (id INTEGER PRIMARY KEY AUTOINCREMENT, {id} timestamp TEXT NOT NULL,
    run_name TEXT NOT NULL, step INTEGER NOT NULL, metrics TEXT NOT NULL);
CREATE TABLE configs (id INTEGER PRIMARY KEY AUTOINCREMENT, {id} run_name TEXT NOT NULL,
    config TEXT NOT NULL, created_at TEXT NOT NULL);
CREATE TABLE system_metrics (id INTEGER PRIMARY KEY AUTOINCREMENT, {id} timestamp TEXT NOT NULL,
    run_name TEXT NOT NULL, metrics TEXT NOT NULL);
"""
CONFIG = {"lr": 0.1, "model": {"dim": 8}, "_Username": "ada", "_Group": "g"}
CREATED = "2023-11-14T22:13:20+00:00"
STARTED = 1_700_000_000.0


def moment(seconds: float) -> str:
    return f"2023-11-14T22:13:{20 + seconds:09.6f}+00:00"


def make(
    path: Path, runs: dict[str, list[dict[str, Any]]], *, has_ids: bool = True
) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    database = sqlite3.connect(path)
    database.executescript(SCHEMA.replace("{id}", "run_id TEXT NOT NULL," if has_ids else ""))
    for name, rows in runs.items():
        key = {"run_id": f"id-{name}"} if has_ids else {}
        config = json.dumps({**CONFIG, "_Created": CREATED}).encode()
        insert(database, "configs", **key, run_name=name, config=config, created_at=CREATED)
        for step, row in enumerate(rows):
            text = json.dumps(row).encode()
            row = {"timestamp": moment(step), "run_name": name, "metrics": text}
            insert(database, "metrics", **key, **row, step=step)
        load = {"metrics": b'{"gpu": 5.0}', "timestamp": moment(1), "run_name": name}
        insert(database, "system_metrics", **key, **load)
    database.commit()
    return database


def insert(database: sqlite3.Connection, table: str, **row: Any) -> None:
    marks = ", ".join("?" * len(row))
    database.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})", [*row.values()])


ROWS = [{"loss": 1.0, "train": {"lr": 0.5}}, {"loss": "NaN", "n": 3}, {"loss": "-Infinity"}]


@pytest.mark.parametrize("has_ids", [True, False])
def test_runs_of_a_project_are_imported(has_ids: bool) -> None:
    make(Path("trackio/demo.db"), {"first": ROWS, "second": ROWS[:1]}, has_ids=has_ids).close()
    rows, runs = imported("trackio")
    assert [row["problems"] for row in rows] == [[], []]
    run = {run.name: run for run in runs}["first"]
    assert (run.experiment, run.created, run.status) == ("demo", STARTED, "FINISHED")
    assert run.params == {"lr": 0.1, "model": {"dim": 8}}
    assert run.tags == {"trackio.group": "g"} and run.info["provenance"]["user"] == "ada"
    frame = run.metrics()
    assert math.isnan(frame.loss[1]) and frame.loss[2] == -math.inf and frame.n[1] == 3
    assert frame["train/lr"][0] == 0.5 and frame.time.tolist() == [STARTED + n for n in range(3)]
    assert run.metrics("system_metrics.csv")["system/gpu"].tolist() == [5.0]
    assert {row["state"] for row in imported("trackio/demo.db")[0]} == {"unchanged"}


def test_rows_that_are_only_in_the_log_beside_are_imported() -> None:
    database = make(Path("demo.db"), {"first": ROWS})
    database.execute("PRAGMA journal_mode = WAL")
    text = json.dumps({"loss": 0.5})
    insert(database, "metrics", run_id="id-first", timestamp=moment(9), run_name="first",
           step=9, metrics=text)  # fmt: skip
    database.commit()
    assert os.path.getsize("demo.db-wal")
    assert imported("demo.db")[1][0].summary.last_step == 9
    database.close()


def test_media_become_artifacts_and_never_a_file_from_elsewhere(tmp_path: Path) -> None:
    Path("trackio/media/demo/first/1").mkdir(parents=True)
    Path("trackio/media/demo/first/1/a.png").write_bytes(b"png")
    Path("trackio/media/demo/first/1/b.png").symlink_to("/etc/passwd")
    Path("trackio/media/demo/out").symlink_to("/etc")
    images = [{"_type": "trackio.image", "file_path": f"demo/{name}"} for name in (
        "first/1/a.png", "first/1/b.png", "first/1/c.png", "out/passwd", "../../../secret/x",
    )]  # fmt: skip
    rows = [{f"image{n}": image} for n, image in enumerate(images)]
    bars = {"_type": "trackio.histogram", "bins": [0, 1, 2], "values": [3, 4]}
    Path("trackio/media/demo/first/1/v.mp4").write_bytes(b"mp4")
    rows[1] |= {"text": "hello", "bars": bars, "list": [1], "bad": {**bars, "bins": ["x"]}}
    rows[2] |= {"video": {"_type": "trackio.video", "file_path": "demo/first/1/v.mp4"}}
    make(Path("trackio/demo.db"), {"first": rows}).close()
    (row,), (run,) = imported("trackio")
    root = run.path / "artifacts"
    files = {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}
    assert json.loads(files.pop("bars/step-000000001.json")) == {
        "edges": [0, 1, 2],
        "counts": [3, 4],
    }
    assert files == {
        "image0/step-000000000.png": b"png",
        "text/step-000000001.txt": b"hello",
        "media/1/v.mp4": b"mp4",
    }
    index = [json.loads(line) for line in (run.path / "media.jsonl").read_text().splitlines()]
    assert [(item["kind"], item["key"], item["step"]) for item in index] == [
        ("image", "image0", 0), ("text", "text", 1), ("histogram", "bars", 1),
    ]  # fmt: skip
    assert len(row["problems"]) == 5 and "'list' is not a metric" in row["notes"][0]


def test_damaged_rows_are_counted_and_the_others_imported() -> None:
    database = make(Path("demo.db"), {"first": ROWS})
    for step, time, text in ((5, "never", "{}"), (6, moment(6), "{"), (7, moment(7), "[1]")):
        row = {"timestamp": time, "step": step, "metrics": text}
        insert(database, "metrics", run_id="id-first", run_name="first", **row)
    database.execute("UPDATE configs SET config = '[['")
    database.commit()
    (row,), (run,) = imported("demo.db")
    assert row["problems"] == ["the params are damaged", "left out 3 damaged rows"]
    assert run.summary.last_step == 2 and run.params == {}


def test_no_damage_of_the_file_ends_in_a_traceback(tmp_path: Path) -> None:
    make(Path("demo.db"), {f"run{n}": ROWS * 20 for n in range(5)}).close()
    whole = Path("demo.db").read_bytes()
    generator = random.Random(28)
    for case in range(25):
        data = bytearray(whole[: generator.randrange(20, len(whole))] if case % 3 == 0 else whole)
        for _ in range(generator.choice((1, 30))):
            at = generator.randrange(16, len(data))
            data[at] = generator.randrange(256)
        Path("broken.db").write_bytes(data)
        result = run_import("broken.db", "--to", f"runs{case}")
        assert result.exit_code in (0, 1, 3), result.output
        assert result.exit_code == 0 or result.stderr
        load_runs(f"runs{case}")
