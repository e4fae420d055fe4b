"""What neptune-exporter saved before Neptune was shut down comes in, with files and times."""

from __future__ import annotations

import json
import math
import os
import random
from datetime import datetime, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from mlflow_track.analysis.load import load_runs
from tests.importers.test_csv import imported, run_import

# As README.md of neptune-exporter has it, of February 2026.
SCHEMA = pyarrow.schema(
    [
        *((name, pyarrow.string()) for name in ("project_id", "run_id", "attribute_path")),
        ("attribute_type", pyarrow.string()),
        ("step", pyarrow.decimal128(18, 6)),
        ("timestamp", pyarrow.timestamp("ms", tz="UTC")),
        ("int_value", pyarrow.int64()),
        ("float_value", pyarrow.float64()),
        ("string_value", pyarrow.string()),
        ("bool_value", pyarrow.bool_()),
        ("datetime_value", pyarrow.timestamp("ms", tz="UTC")),
        ("string_set_value", pyarrow.list_(pyarrow.string())),
        ("file_value", pyarrow.struct([("path", pyarrow.string())])),
        (
            "histogram_value",
            pyarrow.struct(
                [
                    ("type", pyarrow.string()),
                    ("edges", pyarrow.list_(pyarrow.float64())),
                    ("values", pyarrow.list_(pyarrow.float64())),
                ]
            ),
        ),
    ]
)
STARTED = 1_700_000_000.5


def moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(STARTED + seconds, timezone.utc)


def row(path: str, kind: str, **values: Any) -> dict[str, Any]:
    return {
        **dict.fromkeys(SCHEMA.names),
        "project_id": "team/demo",
        "run_id": "DEMO-1",
        "attribute_path": path,
        "attribute_type": kind,
        **values,
    }


def points(path: str, steps: list[str], values: list[float]) -> list[dict[str, Any]]:
    return [
        row(path, "float_series", step=Decimal(step), timestamp=moment(n), float_value=value)
        for n, (step, value) in enumerate(zip(steps, values, strict=True))
    ]


SCALARS = [
    row("config/lr", "float", float_value=0.1),
    row("config/layers", "int", int_value=4),
    row("config/on", "bool", bool_value=True),
    row("config/names", "string_set", string_set_value=["a", "b"]),
    row("sys/name", "string", string_value="first"),
    row("sys/owner", "string", string_value="ada"),
    row("sys/tags", "string_set", string_set_value=["x", "y"]),
    row("sys/creation_time", "datetime", datetime_value=moment(-5)),
    row("sys/failed", "bool", bool_value=True),
]


def export(folder: Path, *parts: list[dict[str, Any]], run: str = "DEMO-1-0a1b") -> Path:
    home = folder / "data" / "team_demo-c3d4"
    home.mkdir(parents=True, exist_ok=True)
    for number, rows in enumerate(parts):
        table = pyarrow.Table.from_pylist(rows, SCHEMA)
        pyarrow.parquet.write_table(table, home / f"{run}_part_{number}.parquet")
    return home


def test_an_exported_run_is_imported_with_times_and_files(tmp_path: Path) -> None:
    files = tmp_path / "exports/files/team_demo-c3d4/DEMO-1"
    files.mkdir(parents=True)
    (files / "plot.png").write_bytes(b"png")
    (files / "1.png").write_bytes(b"one")
    steps = [str(n) for n in range(5)]
    first = [*SCALARS, *points("train/loss", steps, [1.0, math.nan, 0.5, 0.25, math.inf])]
    second = [
        *points("train/loss", ["5"], [0.125]),
        *points("train/acc", ["0"], [0.5]),
        *points("monitoring/ab12/cpu", ["0.5", "1.25"], [50.0, 60.0]),
        row("logs/stdout", "string_series", step=Decimal(0), string_value="epoch 1"),
        row("plots/loss", "file", file_value={"path": "DEMO-1/plot.png"}),
        row(
            "images",
            "file_series",
            step=Decimal(1),
            timestamp=moment(1),
            file_value={"path": "DEMO-1/1.png"},
        ),
        row(
            "weights",
            "histogram_series",
            step=Decimal(1),
            timestamp=moment(1),
            histogram_value={"type": "COUNTING", "edges": [0, 1, 2], "values": [3, 4]},
        ),
        row("future", "tensor_series", step=Decimal(1)),
    ]
    export(tmp_path / "exports", first, second)
    (told,), (run,) = imported("exports")
    assert told["problems"] == [] and "'future' is not a metric" in told["notes"][0]
    assert (run.experiment, run.name, run.status) == ("team/demo", "first", "FAILED")
    assert run.created == STARTED - 5 and run.info["ended"] == STARTED + 4
    assert run.info["provenance"]["user"] == "ada"
    assert run.tags == {"neptune.run_id": "DEMO-1", "neptune.tags": "x, y"}
    names = ["a", "b"]
    params = {"config/lr": 0.1, "config/layers": 4, "config/on": True, "config/names": names}
    assert run.params == params
    frame = run.metrics()
    assert frame["train/loss"].to_dict() | {1: 0} == {
        0: 1,
        1: 0,
        2: 0.5,
        3: 0.25,
        4: math.inf,
        5: 0.125,
    }
    assert math.isnan(frame["train/loss"][1]) and frame.time[3] == STARTED + 3
    system = run.metrics("system_metrics.csv")
    assert system["system/ab12/cpu"].to_dict() == {0: 50.0, 1: 60.0}
    there = {p.relative_to(run.path / "artifacts").as_posix(): p.read_bytes()
             for p in (run.path / "artifacts").rglob("*") if p.is_file()}  # fmt: skip
    assert json.loads(there.pop("weights/step-000000001.json"))["counts"] == [3, 4]
    assert there == {
        "logs/stdout.txt": b"epoch 1\n",
        "plots/loss.png": b"png",
        "images/step-000000001.png": b"one",
    }
    assert imported("exports")[0][0]["state"] == "unchanged"


def test_steps_that_are_not_integers_are_multiplied(tmp_path: Path) -> None:
    export(
        tmp_path, points("loss", ["0", "0.25", "1.5"], [1.0, 2.0, 3.0]), points("b", ["2"], [4.0])
    )
    (told,), (run,) = imported(str(tmp_path))
    assert run.metrics().index.tolist() == [0, 25, 150, 200]
    assert "100 times" in told["notes"][0]


def test_damage_and_paths_that_lead_out_are_named(tmp_path: Path) -> None:
    Path("secret").write_text("secret")
    rows = [
        row("out", "file", file_value={"path": "../../../secret"}),
        row("gone", "file", file_value={"path": "DEMO-1/gone"}),
        *points("loss", ["-1", "1"], [1.0, 2.0]),
    ]
    home = export(
        tmp_path / "exports", rows, points("loss", ["2"], [3.0]), points("loss", ["3"], [4.0])
    )
    (home / "DEMO-1-0a1b_part_1.parquet").unlink()
    os.mkfifo(home / "pipe_part_0.parquet")
    (home / "other_part_0.parquet").write_bytes(b"PAR1 no")
    result = run_import("exports")
    assert result.exit_code == 1 and "1 imported, 1 failed" in result.stdout
    (run,) = load_runs("runs")
    assert run.metrics().loss.to_dict() == {1: 2.0, 3: 4.0}
    for words in ("1 part of the run missing", "leads out", "'gone'", "1 value of metric 'loss'"):
        assert words in result.stderr
    assert not (run.path / "artifacts").exists()


def test_no_damage_of_a_file_ends_in_a_traceback(tmp_path: Path) -> None:
    home = export(tmp_path / "exports", [*SCALARS, *points("loss", ["0", "1"], [1.0, 2.0])])
    (file,) = home.iterdir()
    whole, generator = file.read_bytes(), random.Random(28)
    for case in range(30):
        data = bytearray(whole)
        for _ in range(generator.choice((1, 20))):
            data[generator.randrange(len(data))] = generator.randrange(256)
        file.write_bytes(data)
        result = run_import("exports", "--to", f"runs{case}")
        assert result.exit_code == 0 or result.stderr
        load_runs(f"runs{case}")
