"""What W&B's client writes offline of a run, read back with W&B's own messages."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import struct
from collections.abc import Iterator
from pathlib import Path

import PIL.Image
import psutil
import pytest
import torch
from click.testing import CliRunner

import mlflow_track as mt
from mlflow_track.backends.protocol import Lost, MediaItem, MetricPoint, Opened, Unavailable
from mlflow_track.backends.wandb import client
from mlflow_track.backends.wandb.backend import WandbBackend, _legal
from mlflow_track.backends.wandb.folders import Place, settle
from mlflow_track.cli import main
from mlflow_track.formats.wandb_records import POSITION_KEY
from mlflow_track.mirror.shipper import Shipper
from mlflow_track.mirror.state import Ledger
from mlflow_track.record.rows import files_of, iterate_rows
from tests.backends import wandb_reader
from tests.campaign import sampled
from tests.mirror.test_shipper import Trainer, small_batches

_ = small_batches


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    yield
    client.tear_down()
    assert cores() == []


def cores() -> list[psutil.Process]:
    found = psutil.Process().children(recursive=True)
    return [
        each
        for each in found
        if each.name() == "wandb-core" and each.status() != psutil.STATUS_ZOMBIE
    ]


def opened(trainer: Trainer) -> tuple[WandbBackend, Opened]:
    """A backend on its way to a run, as the mirror makes it."""
    backend = WandbBackend()
    ledger = Ledger(trainer.directory.path, "wandb", backend)
    assert backend.destination == ""
    return backend, backend.open(ledger.read_run(ledger.read_info()), None)


def points(*values: float, step: int = 0) -> list[MetricPoint]:
    return [
        MetricPoint("a/b.c", value, 1_700_000_000_123 + number, step, f"metrics.csv={number}:9::0")
        for number, value in enumerate(values, 1)
    ]


AWKWARD = [0.1 + 0.2, 1e-320, 5e-324, 1.7976931348623157e308, -0.0, 2.0**60, 1e16, 1e22, 1 / 3]
AWKWARD += [math.nan, math.inf, -math.inf, 123456789012345678.0]
AWKWARD += [struct.unpack("<d", random.Random(n).randbytes(8))[0] for n in range(50)]


def test_log_metrics_keeps_values_times_and_steps(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path)
    backend, _ = opened(trainer)
    # Late and repeated steps: W&B's own counter of steps would drop them.
    sent = [
        point._replace(step=step)
        for point, step in zip(points(*AWKWARD), [7, 3, 3] * 99, strict=False)
    ]
    assert backend.log_metrics(sent) == []
    backend.close("FAILED", 0.0)
    trainer.end()
    folder = trainer.directory.path / "wandb"
    found = wandb_reader.values(folder)
    assert [each[:3] for each in found] == [(p.key, p.step, p.timestamp) for p in sent]
    assert [same(each.value) for each in found] == [same(point.value) for point in sent]
    (path,) = wandb_reader.files(folder)
    assert [each.exit_code for each in wandb_reader.of_kind(path, "exit")] == [1]
    (run, *_) = wandb_reader.of_kind(path, "run")
    info = trainer.directory.info
    assert (run.run_id, run.display_name, run.project) == (info.id, info.name, "e")


def same(value: float) -> object:
    """Equal for floats of the same bits; of NaN there is one."""
    return "nan" if math.isnan(value) else struct.pack("<d", value)


def test_names_that_w_and_b_hides_get_others_that_no_metric_has() -> None:
    refused: dict[str, str] = {}
    names = ["a", "metrics/a", "_a", "metrics/_a", "metrics/metrics/_a", "a/_a"]
    legal = [_legal(name, refused) for name in names]
    assert legal[:4] == ["a", "metrics/a", "metrics/_a", "metrics/metrics/_a"]
    assert legal[5] == "a/_a" and len(set(legal)) == len(names)
    assert [name.split()[-1] for name in refused] == names[2:5]


def test_open_gives_the_position_of_the_last_row_in_the_file(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path)
    backend, first = opened(trainer)
    assert first.position == "" and not (trainer.directory.path / "wandb").exists()
    backend.log_metrics(points(1.0, 2.0))
    backend.close("FINISHED", 0.0)
    assert opened(trainer)[1].position == "metrics.csv=2:9::0"
    # The file of a kill: its last record is cut, and W&B would read no further.
    (path,) = wandb_reader.files(trainer.directory.path / "wandb")
    content = path.read_bytes()
    at = content.rindex(b"metrics.csv=2:9::0")
    path.write_bytes(content[: at + 3])
    backend, second = opened(trainer)
    assert second.position == "metrics.csv=1:9::0"
    backend.log_metrics(points(1.0, 2.0)[1:])
    backend.close("FINISHED", 0.0)
    assert [v.value for v in wandb_reader.values(trainer.directory.path / "wandb")] == [1.0, 2.0]
    trainer.end()


def test_settle_removes_a_folder_that_holds_no_run(tmp_path: Path) -> None:
    for number, content in enumerate([b"", b":W&B\xe1\xbe\x00", b":W&B\xe1\xbe\x00torn"]):
        folder = tmp_path / f"offline-run-20260101_00000{number}-x"
        folder.mkdir()
        (folder / "run-x.wandb").write_bytes(content)
    other = tmp_path / "offline-run-20260101_000000-y"
    other.mkdir()
    (other / "run-y.wandb").write_bytes(b"")
    assert settle(tmp_path, "x").positions == {}
    assert [path.name for path in tmp_path.iterdir()] == [other.name]


def test_open_ends_the_process_that_an_earlier_mirror_left(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path)
    shipper = Shipper(trainer.directory.path, "wandb", WandbBackend())
    trainer.log(("a",))
    shipper.ship()
    (left,) = cores()
    # Stopped, as on a busy machine: it would write its rows when it continues.
    left.suspend()
    trainer.log(("a",))
    Shipper(trainer.directory.path, "wandb", WandbBackend()).ship()
    assert not left.is_running() or left.status() == psutil.STATUS_ZOMBIE
    trainer.end()


def test_log_metrics_of_a_client_that_ended_is_an_outage(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path)
    shipper = Shipper(trainer.directory.path, "wandb", WandbBackend())
    trainer.log(("a",))
    shipper.ship()
    for core in cores():
        core.kill()
        core.wait()
    trainer.log(("a",))
    with pytest.raises(Unavailable, match="W&B's client failed: Connection lost"):
        shipper.ship()
    shipper.ship()
    finish(trainer, shipper)
    steps = [value.step for value in wandb_reader.values(trainer.directory.path / "wandb")]
    assert steps == [0, 1]


def finish(trainer: Trainer, shipper: Shipper) -> None:
    trainer.directory.end_attempt("FINISHED")
    trainer.end()
    while not shipper.ship():
        pass
    assert shipper.finish() == "FINISHED"


@pytest.mark.faults
@pytest.mark.parametrize("seed", sampled(1, 2))
def test_kills_of_the_client_and_of_the_mirror_lose_and_repeat_nothing(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(seed)
    monkeypatch.setattr(client, "_SETTINGS", {**client._SETTINGS, **FLUSH[chance.randrange(2)]})
    trainer = Trainer(tmp_path)
    path = trainer.directory.path
    shipper = Shipper(path, "wandb", WandbBackend())
    for _ in range(chance.randrange(10, 30)):
        event = chance.random()
        if event < 0.6:
            for _ in range(chance.randrange(1, 30)):
                trainer.log(chance.choice([("a",), ("a", "b"), ("b",)]))
        if event > 0.3:
            try:
                shipper.ship()
            except Unavailable:
                pass
        if event > 0.85:
            for core in cores():
                os.kill(core.pid, chance.choice([signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM]))
            if chance.random() < 0.5:
                shipper = Shipper(path, "wandb", WandbBackend())
        elif event > 0.8:
            trainer.resume_after(max(-1, trainer.step - chance.randrange(12)))
    for core in cores():
        core.resume()
    finish(trainer, Shipper(path, "wandb", WandbBackend()))
    places = [(each.key, each.step) for each in wandb_reader.values(path / "wandb")]
    assert len(set(places)) == len(places)
    kept = {
        (name, row.step)
        for file in files_of(trainer.directory.metrics_path)
        for row in iterate_rows(file)
        for name in row.values
    }
    assert kept <= set(places)


# What the client has taken is in its file at once, or not until the end.
FLUSH = ({"x_transaction_log_flush_interval": 0.01}, {"x_transaction_log_flush_interval": 100.0})


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"WANDB_MODE": "online"}, "there is no login for https://.*: set WANDB_API_KEY"),
        ({"WANDB_MODE": "disabled"}, "WANDB_MODE is disabled"),
        ({"WANDB_MODE": "elsewhere"}, "W&B refuses its settings: .*'elsewhere'"),
    ],
)
def test_a_mode_without_a_place_to_send_to_is_refused(
    variables: dict[str, str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Unavailable, match=said) as caught:
        _ = WandbBackend().destination
    assert caught.value.is_final and cores() == []


def test_log_media_shows_images_texts_and_histograms(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path)
    backend, found = opened(trainer)
    assert found.media_position == ""
    pictures = tmp_path / "image.png"
    PIL.Image.new("RGB", (6, 4), "red").save(pictures)
    (tmp_path / "text.txt").write_text("Grüße")
    (tmp_path / "histogram.json").write_text(json.dumps({"edges": [0, 1, 2.5], "counts": [3, 1]}))
    (tmp_path / "damaged").write_text("{")
    files = [("image", "image.png"), ("text", "text.txt"), ("histogram", "histogram.json")]
    files += [("image", "damaged"), ("histogram", "damaged")]
    items = [
        MediaItem(kind, f"samples/{kind}", 7, 1_700_000_000_123, tmp_path / file, f"{number}")
        for number, (kind, file) in enumerate(files, 1)
    ]
    refused = backend.log_media(items)
    assert [name for name, _ in refused] == [
        "image 'samples/image' of step 7",
        "histogram 'samples/histogram' of step 7",
    ]
    with pytest.raises(FileNotFoundError):
        backend.log_media([items[0]._replace(path=tmp_path / "gone")])
    backend.close("FINISHED", 0.0)
    folder = trainer.directory.path / "wandb"
    (path,) = wandb_reader.files(folder)
    rows = wandb_reader.rows(path)
    assert all((row["step"], row["_timestamp"]) == (7, 1_700_000_000.123) for row in rows)
    image, text, histogram = rows[:3]
    sent = path.parent / "files" / image["samples/image.path"]
    assert PIL.Image.open(sent).size == (6, 4)
    table = json.loads((path.parent / "files" / text["samples/text.path"]).read_text())
    assert table["data"] == [[7, "Grüße"]]
    assert histogram["samples/histogram.bins"] == [0, 1, 2.5]
    assert histogram["samples/histogram.values"] == [3, 1]
    assert opened(trainer)[1].media_position == "5"
    trainer.end()


def test_sync_writes_what_a_run_is_and_its_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_TAGS", "mine")
    params = {"lr": 0.1, "net": {"depth": 2, "sizes": [1, 2]}, "nothing": None, "bad": math.nan}
    tags = {"t": "1", "long": "x" * 80, "mlflow.note.content": "about it"}
    with mt.start_run(experiment="e", run_name="r", params=params, tags=tags, backend="local") as r:
        keep = mt.Keep(last=2, best=1, metric="val/loss", mode="min")
        checkpoints = r.checkpoints(save=mt.EverySteps(2), keep=keep)
        for step in range(9):
            checkpoints.step(step, {"weight": torch.zeros(2)})
            # After the save, as where the evaluation comes last.
            r.log_metric("val/loss", float(abs(step - 4)), step=step)
        r.log_text("x", "notes/[1].txt")
        r.log_summary({"final": 2.5})
    for _ in range(2):
        done = CliRunner().invoke(main, ["sync", r.id, "--backend", "wandb"])
        assert done.exit_code == 0, done.output
    assert "tag long: a tag of W&B has at most 64 characters" in done.output + told(r.path)
    (path,) = wandb_reader.files(r.path / "wandb")
    run = wandb_reader.of_kind(path, "run")[-1]
    assert (run.display_name, run.project, run.notes) == ("r", "e", "about it")
    assert list(run.tags) == ["mine", "t: 1"]
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config.pop("_wandb") is not None
    assert config == {**params, "bad": "nan"}
    summary = {
        item.key: item.value_json
        for each in wandb_reader.of_kind(path, "summary")
        for item in each.update
    }
    assert summary["final"] == "2.5"
    artifacts = wandb_reader.of_kind(path, "artifact")
    assert [(a.type, a.name, set(a.aliases)) for a in artifacts] == [
        ("model", f"model-{r.id}", {"latest", f"step-{step}", *(["best"] if step == 4 else [])})
        for step in (4, 6, 8)
    ]
    # Their files stay for `wandb sync`, also when the run removes the checkpoint.
    for artifact in artifacts:
        for entry in artifact.manifest.contents:
            kept = Path(entry.local_path)
            assert (r.path / "wandb" / "models") in kept.parents and kept.stat().st_nlink == 2
    names = {each.path for files in wandb_reader.of_kind(path, "files") for each in files.files}
    assert {"artifacts/notes/[1].txt", "record/run.json", "record/metrics.csv"} <= names
    assert all((path.parent / "files" / name).is_file() for name in names)


def told(path: Path) -> str:
    return (path / "mirror" / "wandb.json").read_text()


def test_the_variables_of_w_and_b_keep_their_meaning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = {
        "DIR": str(tmp_path / "there"),
        "ENTITY": "us",
        "PROJECT": "ours",
        "NAME": "named",
        "NOTES": "noted",
        "RUN_GROUP": "trials",
        "RUN_ID": "chosen",
        "JOB_TYPE": "eval",
    }
    for name, value in variables.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    # Of a training that uses W&B itself: its process is not the mirror's.
    monkeypatch.setenv("WANDB_SERVICE", "3-1-unix-/nowhere")
    trainer = Trainer(tmp_path)
    backend, found = opened(trainer)
    assert found.id == "chosen"
    backend.log_metrics(points(1.0))
    backend.close("KILLED", 0.0)
    (path,) = wandb_reader.files(tmp_path / "there" / "wandb")
    run = wandb_reader.of_kind(path, "run")[0]
    assert (run.run_id, run.entity, run.project) == ("chosen", "us", "ours")
    assert (run.display_name, run.notes, run.run_group) == ("named", "noted", "trials")
    assert [each.exit_code for each in wandb_reader.of_kind(path, "exit")] == [255]
    assert not (trainer.directory.path / "wandb").exists()
    trainer.end()


def test_a_fork_is_another_run(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path)
    backend, first = opened(trainer)
    backend.log_metrics(points(1.0))
    backend.fork()
    ledger = Ledger(trainer.directory.path, "wandb", backend)
    second = backend.open(ledger.read_run(ledger.read_info()), None)
    assert (second.id, second.position) == (f"{first.id}-2", "")
    trainer.end()


def test_a_rewind_is_told_once(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path)
    shipper = Shipper(trainer.directory.path, "wandb", WandbBackend())
    for _ in range(3):
        trainer.log(("a",))
    shipper.ship()
    for _ in range(2):
        trainer.resume_after(0)
        trainer.log(("a",))
        shipper.ship()
    finish(trainer, shipper)
    assert shipper.state.refused == [
        "a rewind: what was sent before it stays, and those steps are not sent a second time"
    ]
    steps = [each.step for each in wandb_reader.values(trainer.directory.path / "wandb")]
    assert steps == [0, 1, 2]


@pytest.mark.parametrize("is_fork", [False, True])
def test_what_w_and_b_need_not_take_is_not_told(is_fork: bool, tmp_path: Path) -> None:
    trainer = Trainer(tmp_path)
    trainer.directory.add("inputs", {"name": "corpus", "sha256": "00"})
    for _ in range(3):
        trainer.log(("a",))
    if is_fork:
        trainer.directory.restate("mirror", {"rewind": "fork"})
        Shipper(trainer.directory.path, "wandb", WandbBackend()).ship()
    trainer.resume_after(0)
    trainer.log(("a",))
    shipper = Shipper(trainer.directory.path, "wandb", WandbBackend())
    finish(trainer, shipper)
    assert shipper.state.refused == []
    newest = wandb_reader.files(trainer.directory.path / "wandb")[-1]
    assert [row["step"] for row in wandb_reader.rows(newest)] == [0, 1]


def test_a_client_that_writes_is_not_one_that_has_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(tmp_path)
    backend, _ = opened(trainer)
    # What is in the file ends in the middle of batches.
    seen = iter(["", "in 1", "in 2", "in 2"])
    monkeypatch.setattr(client.Tail, "read", lambda _: Place(1, {POSITION_KEY: next(seen)}))
    monkeypatch.setattr(client, "_MOST_FLUSH_SECONDS", -1.0)
    for step in range(3):
        backend.log_metrics(points(1.0, 2.0, step=step))
    with pytest.raises(Unavailable, match="W&B's client does not write to"):
        backend.log_metrics(points(1.0, 2.0, step=3))
    trainer.end()


def test_files_that_a_kill_took_are_sent_again(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path)
    trainer.log(("a",))
    for name in ("a.txt", "b.txt"):
        (trainer.directory.path / "artifacts").mkdir(exist_ok=True)
        (trainer.directory.path / "artifacts" / name).write_text(name)
        Shipper(trainer.directory.path, "wandb", WandbBackend()).ship()
        for core in cores():
            core.kill()
            core.wait()
    for path in (trainer.directory.path / "wandb").glob("*/*.wandb"):
        path.write_bytes(b"")
    finish(trainer, Shipper(trainer.directory.path, "wandb", WandbBackend()))
    (path,) = wandb_reader.files(trainer.directory.path / "wandb")
    names = {each.path for files in wandb_reader.of_kind(path, "files") for each in files.files}
    assert {"artifacts/a.txt", "artifacts/b.txt"} <= names


def test_rows_that_the_file_lacks_at_the_end_are_sent_again(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path)
    shipper = Shipper(trainer.directory.path, "wandb", WandbBackend())
    for _ in range(3):
        trainer.log(("a",))
    shipper.ship()
    # The client writes to a file that nobody finds any more.
    for path in (trainer.directory.path / "wandb").glob("*/*.wandb"):
        path.unlink()
    with pytest.raises(Lost, match="W&B's client has not written all rows"):
        finish(trainer, shipper)
    finish(trainer, shipper)
    steps = [each.step for each in wandb_reader.values(trainer.directory.path / "wandb")]
    assert steps == [0, 1, 2]
