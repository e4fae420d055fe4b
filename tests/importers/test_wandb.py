"""Runs come in from the folders of W&B, as its client and the tests write them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from wandb.proto import wandb_internal_pb2 as messages

import mlflow_track as mt
from mlflow_track.cli import main
from mlflow_track.importers.formats import open_source
from mlflow_track.importers.source import ForeignRun
from mlflow_track.importers.wandb import WandbSource
from tests.backends.wandb_writer import ended, framed, row, run_of, write
from tests.importers.sources import STARTED

T = STARTED


def runs_in(root: Path) -> list[ForeignRun]:
    (source,) = open_source(str(root))
    assert isinstance(source, WandbSource)
    return [found.read() for found in source.find()]


def values(run: ForeignRun) -> dict[str, list[tuple[int, float, float]]]:
    return {one.name: list(zip(*one[1:], strict=True)) for one in run.metrics}


def test_a_run_comes_with_all_that_its_file_says(tmp_path: Path) -> None:
    described = run_of("r", T, lr=0.1, net={"depth": 2}, _wandb={"t": 1})
    described.run.tags.extend(["x", "y"])
    described.run.notes, described.run.run_group = "about it", "trials"
    described.run.git.commit = "c0ffee"
    changed = messages.Record()
    changed.config.update.add(key="lr", value_json="0.2")
    changed.config.update.add(nested_key=["net", "width"], value_json="3")
    changed.config.remove.add(nested_key=["net", "depth"])
    summed = messages.Record()
    summed.summary.update.add(key="best", value_json="7.5")
    summed.summary.update.add(key="loss", value_json="0.25")
    defined = messages.Record()
    defined.metric.name, defined.metric.summary.max = "acc", True
    sampled = messages.Record()
    sampled.stats.timestamp.FromNanoseconds(round((T + 5) * 1e9))
    sampled.stats.item.add(key="cpu", value_json="12.5")
    history = [
        row({"loss": 0.5, "acc": "NaN", "a/-/b": 1, "text": "x"}, 0, T + 1),
        row({"loss": math.inf, **media_row("video-file", "v.mp4", "v")}, 3, T + 2.125),
        row({**media_row("image-file", "media/i.png", "i")}, 3, T + 2.125),
        row({**media_row("image-file", "../../../../etc/i.png", "i")}, 3, T + 2.125),
        row({"h": {"_type": "histogram", "bins": [0, 1, 2], "values": [3, 4]}}, 4, T + 2.125),
    ]
    folder = tmp_path / "wandb" / "offline-run-20260101_000000-r"
    write(folder, [described, changed, summed, defined, *history, sampled, ended(1)])
    (folder / "files" / "media").mkdir()
    (folder / "files" / "media" / "i.png").write_bytes(b"picture")
    (folder / "files" / "note.txt").write_text("hi")
    (folder / "files" / "output.log").write_text("said")
    (folder / "files" / "config.yaml").write_text("x: 1")
    os.symlink("/etc/hostname", folder / "files" / "link")
    (run,) = runs_in(tmp_path)
    assert (run.name, run.experiment, run.status) == ("name of r", "p", "FAILED")
    assert (run.started, run.ended) == (T, T + 2.125)
    assert run.params == {"lr": 0.2, "net": {"width": 3}}
    assert run.tags == {
        "wandb.tags": "x, y",
        "wandb.group": "trials",
        "mlflow.note.content": "about it",
    }
    found = values(run)
    assert found["loss"] == [(0, T + 1, 0.5), (3, T + 2.125, math.inf)]
    assert math.isnan(found["acc"][0][2]) and found["a.b"] == [(0, T + 1, 1.0)]
    assert found.keys() == {"loss", "acc", "a.b"}
    assert run.summary == {"best": 7.5} and run.directions == {"acc": "max"}
    (system,) = run.system_metrics
    assert (system.name, *system[1:]) == ("system/cpu", [0], [T + 5], [12.5])
    assert [file.name for file in run.files] == ["note.txt"]
    assert run.log is not None and run.attempt.host == "here"
    assert run.provenance.git is not None and run.provenance.git.commit == "c0ffee"
    image, histogram = run.media
    assert (image.kind, image.key, image.step, image.time) == ("image", "i", 3, T + 2.125)
    image.save(tmp_path / "copy.png")
    assert (tmp_path / "copy.png").read_bytes() == b"picture"
    histogram.save(tmp_path / "copy.json")
    copied = json.loads((tmp_path / "copy.json").read_text())
    assert (histogram.step, copied) == (4, {"edges": [0, 1, 2], "counts": [3, 4]})
    (problem,) = run.problems
    assert problem.startswith("left out image-file 'i' of step 3: it leads out of ")
    assert sorted(run.notes) == [
        "left out 1 value of the type str",
        "left out 1 value of the type video-file",
        "left out the file link: it is a link",
    ]


def media_row(kind: str, path: str, key: str) -> dict[str, object]:
    return {f"{key}/-/_type": kind, f"{key}/-/path": path, f"{key}/-/width": 4}


def test_a_run_that_was_sent_from_a_record_names_it(tmp_path: Path) -> None:
    rows = [
        row({"loss": 1.0, "step": 7, "_mlflow_track/position": "1 x"}, 0, T),
        row({"loss": 2.0, "step": 3, "_mlflow_track/position": "1 y"}, 1, T),
    ]
    write(tmp_path / "offline-run-x", [run_of("20260101-000000-abcdef", T), *rows])
    (run,) = runs_in(tmp_path)
    assert run.record_id == "20260101-000000-abcdef"
    # As in the record, not as W&B counts.
    assert [(step, value) for step, _, value in values(run)["loss"]] == [(7, 1.0), (3, 2.0)]


def test_folders_of_one_run_are_one_run(tmp_path: Path) -> None:
    # The name of a folder is in local time: the run itself says which one came first.
    for number, folder in enumerate(["offline-run-b", "offline-run-a"]):
        start = T + 100 * number
        rows = [row({"loss": float(10 * number + n)}, n, start + n) for n in range(2)]
        write(tmp_path / folder, [run_of("r", start), *rows, ended(0)])
    write(tmp_path / "run-c", [run_of("other", T)], "other")
    run, other = sorted(runs_in(tmp_path), key=lambda run: -len(run.metrics))
    # W&B counts on from where the folder before ends.
    assert [(step, value) for step, _, value in values(run)["loss"]] == [
        (0, 0.0),
        (1, 1.0),
        (2, 10.0),
        (3, 11.0),
    ]
    assert other.status == "RUNNING" and other.identity != run.identity


def test_import_is_the_same_twice_and_names_damage(tmp_path: Path) -> None:
    rows = [row({"loss": n / 3}, n, T + n) for n in range(3000)]
    path = write(tmp_path / "offline-run-x", [run_of("r", T), *rows, ended(0)])
    content = bytearray(path.read_bytes())
    content[40_000] ^= 0xFF
    path.write_bytes(content)
    write(tmp_path / "offline-run-y", [], "empty")
    arguments = ["import", str(tmp_path), "--to", str(tmp_path / "runs")]
    done = CliRunner().invoke(main, arguments)
    assert "at byte" in done.output and "does not match its checksum" in done.output
    assert "there is no run in it" in done.output
    (record,) = mt.load_runs(tmp_path / "runs")
    loss = record.metrics()["loss"].dropna()
    assert 2000 < len(loss) < 3000 and all(value == step / 3 for step, value in loss.items())
    assert "1 unchanged" in CliRunner().invoke(main, arguments).output
    assert len(mt.load_runs(tmp_path / "runs")) == 1


def test_the_files_in_a_record_are_not_a_source(tmp_path: Path) -> None:
    write(tmp_path / "run" / "wandb" / "offline-run-x", [run_of("r", T)])
    assert len(open_source(str(tmp_path))) == 1
    (tmp_path / "run" / "run.json").write_text("{}")
    assert open_source(str(tmp_path)) == []


@settings(deadline=None, max_examples=50)
@given(
    messages_=st.lists(
        st.one_of(
            st.binary(max_size=80),
            st.sampled_from(
                [
                    run_of("r", T, a=1).SerializeToString(),
                    row({"loss": 1.0}, 2**62, T).SerializeToString(),
                    row({"loss": [[1]], "_step/-/x": 1}, -5, 1e300).SerializeToString(),
                ]
            ),
        ),
        max_size=6,
    )
)
def test_records_of_any_content_are_read_or_named(
    messages_: list[bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("any")
    path = root / "run-r.wandb"
    path.write_bytes(framed(messages_))
    for found in WandbSource(root).find():
        try:
            found.read()
        except ValueError as error:
            assert "there is no run in it" in str(error)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    import wandb

    yield wandb
    wandb.teardown()


def test_a_run_of_the_client_comes_in(
    offline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = {"lr": 0.1, "net": {"depth": 2}}
    run = offline.init(
        project="p",
        mode="offline",
        dir=str(tmp_path),
        name="first",
        config=config,
        settings=offline.Settings(silent=True, console="off", x_disable_stats=True),
    )
    for step in range(20):
        run.log({"loss": step / 3, "nested": {"a": step}})
    run.log({"hist": offline.Histogram([1, 2, 3])})
    run.summary["best"] = 7.5
    run.finish()
    # Only the end of its process brings all of it into the file.
    offline.teardown()
    done = CliRunner().invoke(main, ["import", "wandb", "--to", "runs"])
    assert done.exit_code == 0, done.output
    (record,) = mt.load_runs("runs")
    assert (record.name, record.experiment, record.status) == ("first", "p", "FINISHED")
    frame = record.metrics()
    assert list(frame["loss"]) == [step / 3 for step in range(20)]
    assert list(frame["nested.a"]) == [float(step) for step in range(20)]
    assert json.loads((record.path / "config.json").read_text())["params"] == config
    assert json.loads((record.path / "run.json").read_text())["summary"] == {"best": 7.5}
    (shown,) = record.path.glob("artifacts/hist/step-*.json")
    assert sum(json.loads(shown.read_text())["counts"]) == 3
