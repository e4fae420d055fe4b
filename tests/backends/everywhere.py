"""Whether a run is the same in its files, at MLflow, in event files and in `.wandb` files."""

from __future__ import annotations

import csv
import json
import struct
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from tests.backends import wandb_reader
from tests.backends.event_files import accumulated, as_float32, event_folder
from tests.mirror.conftest import client_of

# Metric, step and time in milliseconds.
Place = tuple[str, int, int]


def bits(value: float) -> bytes:
    """Tells 0.0 from -0.0, and finds a NaN equal to any other."""
    return struct.pack("<d", float("nan") if value != value else value)


def in_csv(path: Path) -> dict[Place, float]:
    """Every value in the run's own tables, as Python reads a number."""
    found = {}
    for name in ("metrics.csv", "system_metrics.csv"):
        with open(path / name, newline="") as file:
            for row in csv.DictReader(file):
                step, time = int(row.pop("step")), round(1000 * float(row.pop("time")))
                found |= {(key, step, time): float(text) for key, text in row.items() if text}
    return found


def in_mlflow(uri: str, run: Any) -> dict[Place, float]:
    client = client_of(uri)
    return {
        (key, point.step, point.timestamp): point.value
        for key in run.data.metrics
        for point in client.get_metric_history(run.info.run_id, key)
    }


def in_event_files(path: Path) -> dict[Place, float]:
    found = accumulated(event_folder(path))
    return {
        (tag, event.step, round(1000 * event.wall_time)): event.value
        for tag in found.Tags()["scalars"]
        for event in found.Scalars(tag)
    }


def in_wandb_files(path: Path) -> dict[Place, float]:
    return {
        (key, int(row["step"]), round(1000 * row["_timestamp"])): float(value)
        for file in wandb_reader.files(path / "wandb")
        for row in wandb_reader.rows(file)
        if not wandb_reader.is_media(row)
        for key, value in row.items()
        if key != "step" and not key.startswith("_")
    }


def as_sqlite(value: float) -> float:
    """SQLite has one zero, and SQL no infinity: MLflow's own substitute is the largest number."""
    return (
        max(-sys.float_info.max, min(value + 0.0, sys.float_info.max)) if value == value else value
    )


def assert_same_values(path: Path, uri: str, run: Any) -> None:
    """Bit for bit, as each place holds a number; event files have float32."""
    recorded = in_csv(path)
    assert recorded
    for place, found, as_held in (
        ("mlflow", in_mlflow(uri, run), as_sqlite),
        ("wandb", in_wandb_files(path), float),
        ("tensorboard", in_event_files(path), as_float32),
    ):
        wanted = {where: bits(as_held(value)) for where, value in recorded.items()}
        assert {where: bits(value) for where, value in found.items()} == wanted, place


def texts_at(path: Path, uri: str, run_id: str, key: str) -> dict[str, list[tuple[int, str]]]:
    """By place the steps and contents that it has of the texts of a key; "files" is the record."""
    client, event_files = client_of(uri), accumulated(event_folder(path))
    # A kill may leave a file without its line in the index: an artifact as any other.
    lines = map(json.loads, (path / "media.jsonl").read_text().splitlines())
    names = {line["file"] for line in lines if line["key"] == key}
    found = {
        "files": _by_step(path / "artifacts" / name for name in names),
        "mlflow": _by_step(
            Path(client.download_artifacts(run_id, item.path))
            for item in client.list_artifacts(run_id, key)
            if item.path in names
        ),
        "tensorboard": [
            (event.step, event.tensor_proto.string_val[0].decode())
            for event in event_files.Tensors(key)
        ],
        "wandb": [
            (step, text)
            for file in wandb_reader.files(path / "wandb")
            for row in wandb_reader.rows(file)
            if f"{key}.path" in row
            for step, text in json.loads((file.parent / "files" / row[f"{key}.path"]).read_text())[
                "data"
            ]
        ],
    }
    return {place: sorted(texts) for place, texts in found.items()}


def _by_step(files: Iterable[Path]) -> list[tuple[int, str]]:
    return [(int(file.stem.split("-")[1]), file.read_text()) for file in files]


def assert_same_texts(path: Path, uri: str, run_id: str, key: str, steps: Sequence[int]) -> None:
    places = texts_at(path, uri, run_id, key)
    assert [step for step, _ in places["files"]] == list(steps)
    for place, found in places.items():
        assert found == places["files"], place


def assert_same_pictures(path: Path, uri: str, run_id: str, steps: Sequence[int]) -> None:
    """The images `pictures`, each of 8 × 6 pixels as grey as its step, and histograms `weights`."""
    client, event_files = client_of(uri), accumulated(event_folder(path))
    (file,) = wandb_reader.files(path / "wandb")
    rows = wandb_reader.rows(file)
    sent = {
        int(item.path.split("+")[2]): Path(client.download_artifacts(run_id, item.path))
        for item in client.list_artifacts(run_id, "images")
        if item.path.endswith(".png")
    }
    wandb_files = {
        int(row["step"]): file.parent / "files" / row["pictures.path"]
        for row in rows
        if "pictures.path" in row
    }
    shown = {event.step: event.encoded_image_string for event in event_files.Images("pictures")}
    for step in steps:
        content = (path / "artifacts" / "pictures" / f"step-{step:09}.png").read_bytes()
        assert content == shown[step] == sent[step].read_bytes() == wandb_files[step].read_bytes()
        with Image.open(sent[step]) as picture:
            assert picture.size == (6, 8) and picture.getcolors() == [(48, (step,) * 3)]
    assert len(shown) == len(sent) == len(wandb_files) == len(steps)
    histograms = {
        step: json.loads((path / "artifacts" / "weights" / f"step-{step:09}.json").read_text())
        for step in steps
    }
    of_events: Mapping[int, Any] = {
        event.step: event.histogram_value for event in event_files.Histograms("weights")
    }
    of_wandb = {int(row["step"]): row for row in rows if "weights.bins" in row}
    for step, histogram in histograms.items():
        assert histogram["edges"][1:] == of_events[step].bucket_limit
        assert histogram["counts"] == of_events[step].bucket
        assert histogram["edges"] == of_wandb[step]["weights.bins"]
        assert histogram["counts"] == of_wandb[step]["weights.values"]
