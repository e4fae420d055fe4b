"""Event files of TensorBoard come in as TensorBoard reads them, in whatever state they are."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, tensor_shape_pb2
from tensorboard.plugins.hparams import plugin_data_pb2
from torch.utils.tensorboard import SummaryWriter

from mlflow_track.analysis.load import LoadedRun, load_runs
from mlflow_track.formats.tfrecord import frame
from mlflow_track.importers.formats import open_source
from mlflow_track.importers.source import ForeignRun
from mlflow_track.record.media.index import file_of, read_media
from tests.backends.event_files import accumulated
from tests.importers.test_csv import imported, run_import

NAME = "events.out.tfevents.1700000000.host"
STARTED = 1_700_000_000.0
Value = summary_pb2.Summary.Value


def event(step: int = 0, *values: Any, after: float = 0.0, **fields: Any) -> bytes:
    if values:
        fields["summary"] = summary_pb2.Summary(value=values)
    wall_time = STARTED + after
    return event_pb2.Event(wall_time=wall_time, step=step, **fields).SerializeToString()


def scalar(tag: str, step: int, value: float, after: float = 0.0) -> bytes:
    return event(step, Value(tag=tag, simple_value=value), after=after)


def restart(step: int) -> bytes:
    return event(step, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))


def tensor(dtype: int, shape: Sequence[int] = (), **content: Any) -> Any:
    dims = [tensor_shape_pb2.TensorShapeProto.Dim(size=size) for size in shape]
    shape_of = tensor_shape_pb2.TensorShapeProto(dim=dims)
    return tensor_pb2.TensorProto(dtype=dtype, tensor_shape=shape_of, **content)


def of_page(plugin: str, content: bytes = b"") -> Any:
    data = summary_pb2.SummaryMetadata.PluginData(plugin_name=plugin, content=content)
    return summary_pb2.SummaryMetadata(plugin_data=data)


def shown(tag: str, plugin: str, held: Any) -> Any:
    return Value(tag=tag, metadata=of_page(plugin), tensor=held)


def session(**content: Any) -> bytes:
    """An event for HPARAMS."""
    (name,) = content
    data = plugin_data_pb2.HParamsPluginData(**content).SerializeToString()
    return event(0, Value(tag=f"_hparams_/{name}", metadata=of_page("hparams", data)))


def write(folder: Path, *events: bytes, name: str = NAME) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(frame([event(file_version="brain.Event:2"), *events]))
    return folder / name


def read(folder: str | Path) -> ForeignRun:
    """The one run in a folder."""
    (source,) = open_source(str(folder))
    (found,) = source.find()
    return found.read()


def values_of(run: ForeignRun) -> dict[str, list[tuple[int, float]]]:
    return {
        one.name: list(zip(one.steps, map(float, one.values), strict=True)) for one in run.metrics
    }


def media_of(run: LoadedRun) -> dict[tuple[str, str, int], bytes]:
    found = {}
    for entry in read_media(run.path):
        file = file_of(run.path, entry)
        assert file is not None
        found[entry.identity] = file.read_bytes()
    return found


def test_runs_of_the_writer_of_pytorch_are_imported() -> None:
    writer = SummaryWriter("logs/first")
    for step in range(3):
        writer.add_scalar("loss", 1 / (step + 1), step, walltime=STARTED + step)
    writer.add_scalar("new/style", 0.5, 7, walltime=STARTED + 2, new_style=True)
    writer.add_scalar("double", 1 / 3, 7, double_precision=True, new_style=True)
    writer.add_text("notes", "a *text*", 2, walltime=STARTED + 2)
    pixels = numpy.zeros((3, 4, 5), "uint8")
    writer.add_image("digit", pixels, 2, walltime=STARTED + 2)
    writer.add_histogram("weights", numpy.array([-1.0, 0.5, 0.5]), 2, walltime=STARTED + 2)
    writer.add_hparams({"lr": 0.1, "layers": 4, "bias": True, "act": "relu"}, {"best": 0.25})
    writer.close()
    rows, (run,) = imported("logs")
    assert [(row["problems"], row["notes"]) for row in rows] == [([], [])]
    assert (run.name, run.experiment, run.status) == ("first", "logs", "FINISHED")
    assert run.params == {"lr": 0.1, "layers": 4, "bias": True, "act": "relu"}
    assert type(run.params["layers"]) is int
    frame_ = run.metrics()
    assert frame_.loss.dropna().tolist() == [1.0, 0.5, float(numpy.float32(1 / 3))]
    assert frame_.time[[1, 2]].tolist() == [STARTED + 1, STARTED + 2]
    assert run.created == STARTED
    assert frame_["new/style"][7] == 0.5 and frame_.double[7] == 1 / 3
    assert frame_.best.dropna().tolist() == [0.25]
    media = media_of(run)
    assert media["text", "notes/text_summary", 2] == b"a *text*"
    (png,) = [data for (kind, key, _), data in media.items() if (kind, key) == ("image", "digit")]
    Path("digit.png").write_bytes(png)
    with Image.open("digit.png") as image:
        assert image.size == (5, 4)
    histogram = json.loads(media["histogram", "weights", 2])
    assert sum(histogram["counts"]) == 3 and len(histogram["edges"]) == len(histogram["counts"]) + 1
    assert histogram["edges"][0] == -1.0 and histogram["edges"][-1] == 0.5


def test_trials_of_one_writer_are_runs() -> None:
    for trial in (1, 2):
        start = plugin_data_pb2.SessionStartInfo()
        start.hparams["lr"].number_value = trial / 10
        events = session(session_start_info=start), scalar("best", 0, trial)
        write(Path(f"logs/170000000{trial}.25"), *events)
    write(Path("logs"), scalar("loss", 0, 1.0))
    _, runs = imported("logs")
    found = {run.name: (run.params, dict(run.metrics().iloc[0].drop("time"))) for run in runs}
    assert found == {
        "logs": ({}, {"loss": 1.0}),
        "1700000001.25": ({"lr": 0.1}, {"best": 1.0}),
        "1700000002.25": ({"lr": 0.2}, {"best": 2.0}),
    }


def test_params_of_lightning_keep_their_types() -> None:
    start = plugin_data_pb2.SessionStartInfo()
    start.hparams["lr"].number_value = 1.0
    start.hparams["only here"].string_value = "x"
    write(Path("logs"), session(session_start_info=start), scalar("loss", 0, 1.0))
    Path("logs/hparams.yaml").write_text("lr: 1.0\nmodel: {dim: 8}\n")
    assert read("logs").params == {"lr": 1.0, "model": {"dim": 8}, "only here": "x"}
    assert type(read("logs").params["lr"]) is float
    Path("logs/hparams.yaml").write_text("{")
    run = read("logs")
    assert run.params["lr"] == 1 and "hparams.yaml are missing" in run.problems[0]


HALF = int(numpy.array([0.5], "f2").view("u2")[0])


@pytest.mark.parametrize(
    ("held", "value"),
    [
        (tensor(1, float_val=[0.5]), 0.5),
        (tensor(2, double_val=[1 / 3]), 1 / 3),
        (tensor(2, tensor_content=numpy.array([1 / 3]).tobytes()), 1 / 3),
        (tensor(3, int_val=[-4]), -4.0),
        (tensor(9, int64_val=[2**40]), float(2**40)),
        (tensor(10, bool_val=[True]), 1.0),
        (tensor(14, half_val=[0x3F00]), 0.5),
        (tensor(19, half_val=[HALF]), 0.5),
        (tensor(1, [1], float_val=[math.nan]), math.nan),
    ],
)
def test_scalars_that_are_tensors_are_read(held: Any, value: float) -> None:
    first = Value(tag="a", metadata=of_page("scalars"), tensor=held)
    # Later values of a tag have no metadata.
    write(Path("logs"), event(0, first), event(1, Value(tag="a", tensor=held)))
    assert str(values_of(read("logs"))) == str({"a": [(0, value), (1, value)]})


def test_media_that_are_tensors_are_read() -> None:
    Image.new("L", (2, 3)).save("a.png")
    png = Path("a.png").read_bytes()
    bins = numpy.array([[0.0, 1.0, 2.0], [1.0, 3.0, 0.0]])
    values = [
        shown("i", "images", tensor(7, string_val=[b"2", b"3", png, png])),
        shown("t", "text", tensor(7, [2], string_val=[b"x", b"y"])),
        shown("h", "histograms", tensor(2, [2, 3], tensor_content=bins.tobytes())),
        shown("g", "images", tensor(7, string_val=[b"1", b"1", b"GIF"])),
        shown("audio", "audio", tensor(7, string_val=[b"x"])),
    ]
    write(Path("logs"), *(event(4, value) for value in values), event(0, graph_def=b"graph"))
    rows, (run,) = imported("logs")
    assert rows[0]["problems"] == [] and len(rows[0]["notes"]) == 3
    assert media_of(run) == {
        ("image", "i", 4): png,
        ("image", "i/1", 4): png,
        ("text", "t", 4): b"x\n\ny",
        ("histogram", "h", 4): b'{"edges": [0.0, 1.0, 3.0], "counts": [2, 0]}',
    }


LOGGED = st.lists(
    st.one_of(
        st.tuples(st.sampled_from("ab"), st.integers(0, 6)),
        st.integers(0, 6).map(lambda step: ("restart", step)),
        st.just(("another file", 0)),
    ),
    max_size=30,
)


@settings(max_examples=40, deadline=None)
@given(LOGGED)
def test_scalars_are_those_that_tensorboard_reads(logged: list[tuple[str, int]]) -> None:
    files: list[list[bytes]] = [[scalar("first", 0, 1.0)]]
    for number, (what, step) in enumerate(logged):
        if what == "another file":
            files.append([])
        elif what == "restart":
            files[-1].append(restart(step))
        else:
            files[-1].append(scalar(what, step, number / 3, number))
    with TemporaryDirectory() as folder:
        for number, events in enumerate(files):
            write(Path(folder), *events, name=f"{NAME}.{number:03d}")
        found = accumulated(Path(folder))
        expected = {
            tag: [(x.step, x.value) for x in found.Scalars(tag)] for tag in found.Tags()["scalars"]
        }
        run = read(folder)
        read_values = {name: values for name, values in values_of(run).items() if values}
        assert read_values == {tag: values for tag, values in expected.items() if values}
        times = [time for one in run.metrics for time in one.times]
        assert sorted(times) == sorted(
            x.wall_time for tag in found.Tags()["scalars"] for x in found.Scalars(tag)
        )


def test_a_restart_forgets_media_as_well() -> None:
    value = Value(tag="t", metadata=of_page("text"), tensor=tensor(7, string_val=[b"x"]))
    write(Path("logs"), event(1, value), event(5, value), restart(3))
    assert [item.step for item in read("logs").media] == [1]


DAMAGE: dict[str, tuple[Callable[[bytearray], bytes], str]] = {
    "a flipped bit": (lambda raw: bytes(flipped(raw, 300)), "does not match its checksum"),
    "a lost block": (lambda raw: bytes(raw[:250] + bytes(64) + raw[314:]), "checksum"),
    "a cut end": (lambda raw: bytes(raw[:-5]), "it ends within a record"),
    "zeros at the end": (lambda raw: bytes(raw + bytes(4096)), "checksum"),
}


def flipped(raw: bytearray, at: int) -> bytearray:
    raw[at] ^= 4
    return raw


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_named_and_the_rest_imported(what: str) -> None:
    file = write(Path("logs"), *(scalar("a", step, step) for step in range(40)))
    change, how = DAMAGE[what]
    file.write_bytes(change(bytearray(file.read_bytes())))
    rows, (run,) = imported("logs")
    assert run_import("logs").exit_code == 1
    (problem,) = rows[0]["problems"]
    assert problem.startswith(f"{NAME}: at byte ") and how in problem
    steps = run.metrics().index.tolist()
    lost = 0 if what == "zeros at the end" else 40 - len(steps)
    assert len(steps) == 40 - lost and lost <= 4 and (lost or what == "zeros at the end")


def test_records_that_are_not_events_are_named() -> None:
    write(
        Path("logs"), b"\xff\xff", scalar("a", 0, 1.0), event(1, Value(tag="b", tensor=tensor(7)))
    )
    first = Value(tag="c", metadata=of_page("scalars"), tensor=tensor(7, string_val=[b"x"]))
    write(Path("logs"), event(1, first), *[b"\xff"] * 5, name=f"{NAME}.2")
    run = read("logs")
    assert values_of(run) == {"a": [(0, 1.0)]}
    assert len(run.problems) == 2 and "is not an event" in run.problems[0]
    assert "c: a tensor has the type 7" in run.problems[1] and "and 3 more" in run.problems[1]
    assert run.notes == ["left out 1 value of tensors: a record has no place for that"]


def test_a_file_without_any_event_is_named() -> None:
    Path("logs").mkdir()
    Path(f"logs/{NAME}").write_bytes(b"not an event file at all")
    result = run_import("logs")
    assert result.exit_code == 1 and "does not match its checksum" in result.output
    assert load_runs("runs") == []


def test_an_end_that_was_logged_is_that_of_the_run() -> None:
    def end(status: int) -> bytes:
        info = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=STARTED + 50)
        content = plugin_data_pb2.HParamsPluginData(session_end_info=info).SerializeToString()
        return event(
            0, Value(tag="_hparams_/session_end_info", metadata=of_page("hparams", content))
        )

    for status in (1, 2, 3):
        write(Path(f"logs/{status}"), scalar("a", 0, 1.0), end(status))
    _, runs = imported("logs")
    assert {run.name: run.status for run in runs} == {"1": "FINISHED", "2": "FAILED", "3": "KILLED"}
    assert {run.info["ended"] for run in runs} == {STARTED + 50}


def test_importing_again_adds_what_was_logged_since() -> None:
    file = write(Path("logs/x"), scalar("a", 0, 1.0))
    assert imported("logs")[0][0]["state"] == "imported"
    assert imported("logs/x")[0][0]["state"] == "unchanged"
    write(Path("logs/x"), scalar("a", 0, 1.0), scalar("a", 1, 2.0))
    rows, (run,) = imported("logs")
    assert rows[0]["state"] == "updated" and run.metrics().a.tolist() == [1.0, 2.0]
    rows, runs = imported(str(file))
    assert rows[0]["state"] == "imported" and len(runs) == 2


def test_files_of_this_package_are_left_to_their_records() -> None:
    folder = Path("mine/e/1/tensorboard/name")
    write(folder, scalar("a", 0, 1.0), name="events.out.tfevents.0000000001.mlflow-track")
    assert len(list(open_source("mine")[0].find())) == 1
    Path("mine/e/1/run.json").write_text("{}")
    assert open_source("mine") == []


def test_a_link_to_event_files_elsewhere_is_not_followed(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", scalar("a", 0, 1.0))
    Path("logs").mkdir()
    os.symlink(tmp_path / "elsewhere" / NAME, f"logs/{NAME}")
    os.symlink(tmp_path / "elsewhere", "logs/folder")
    assert open_source("logs") == []
