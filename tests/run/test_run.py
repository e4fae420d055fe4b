"""The verbs of a run: what is logged is in the folder; invalid arguments are refused."""

import errno
import json
import math
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import mlflow_track as mt
from mlflow_track.attempt import Attempt
from mlflow_track.settings import absolute_uri

Script = Callable[..., subprocess.CompletedProcess[str]]


@dataclass
class Inner:
    width: int = 3
    path: Path = Path("data/x")


@dataclass
class Params:
    lr: float = 1e-3
    inner: Inner = field(default_factory=Inner)
    layers: tuple[int, ...] = (1, 2)


def test_a_run_leaves_the_record_of_the_design() -> None:
    with mt.start_run(
        experiment="my exp", run_name="a/b", params=Params(), tags={"stage": "x"}
    ) as run:
        for step in range(3):
            run.log_metrics({"train/loss": 1.0 / (step + 1), "lr": 0.1}, step=step)
        run.log_metric("val/loss", 0.5, step=2)
        run.set_tag("n", 3)  # type: ignore[arg-type]
        run.log_param("late", [1, "x"])
        run.log_input("corpus", sha256="ab", size_bytes=3)
        run.log_text("hello", "notes/hello.txt")
        run.log_dict({"a": [1]}, "a.json")
        run.log_table({"x": [1, 2], "y": ["a", "b"]}, "t.csv")
        assert mt.load_run(run.path).status == "RUNNING"
    folder = run.path
    assert folder.parent.name == "my exp" and folder.parent.parent == Path("runs").absolute()
    info = json.loads((folder / "run.json").read_text())
    assert (info["status"], info["name"], info["experiment"]) == ("FINISHED", "a/b", "my exp")
    assert info["tags"] == {"stage": "x", "n": "3"}
    assert info["inputs"][0]["name"] == "corpus"
    assert info["ended"] >= info["created"]
    assert info["provenance"]["platform"]
    config = json.loads((folder / "config.json").read_text())
    assert config["params"] == {
        "lr": 0.001,
        "inner": {"width": 3, "path": "data/x"},
        "layers": [1, 2],
        "late": [1, "x"],
    }
    assert "torch==" in (folder / "requirements.txt").read_text()
    assert "FINISHED" in (folder / "training.log").read_text()
    assert (folder / "artifacts/notes/hello.txt").read_text() == "hello"
    assert pd.read_csv(folder / "artifacts/t.csv")["y"].tolist() == ["a", "b"]
    loaded = mt.load_runs("runs", experiment="my exp")[0]
    assert (loaded.status, loaded.params["inner"]["width"]) == ("FINISHED", 3)
    frame = loaded.metrics()
    assert frame.index.tolist() == [0, 1, 2]
    assert frame.loc[2, "val/loss"] == 0.5 and frame.loc[2, "train/loss"] == 1 / 3
    assert math.isnan(frame.loc[1, "val/loss"])  # type: ignore[arg-type]


def test_numbers_of_every_kind_are_kept_exactly() -> None:
    values = {
        "float": 0.1,
        "int": 3,
        "big": 2**70,
        "bool": True,
        "nan": math.nan,
        "inf": math.inf,
        "-inf": -math.inf,
        "f32": np.float32(0.1),
        "f16": np.float16(0.1),
        "array": np.array([2.5]),
        "bf16": torch.tensor(0.1, dtype=torch.bfloat16),
        "i64": np.int64(7),
        "tensor": torch.tensor(0.25, requires_grad=True),
        "one": torch.tensor([1.5]),
    }
    with mt.start_run() as run:
        run.log_metrics(values, step=np.int64(4))  # type: ignore[arg-type]
    text = (run.path / "metrics.csv").read_text().splitlines()[1].split(",")[2:]
    assert text[4:7] == ["nan", "inf", "-inf"]
    row = mt.load_run(run.path).metrics().iloc[0]
    for name, value in values.items():
        number = float(value.item() if hasattr(value, "item") else value)
        assert row[name] == number or (name == "nan" and math.isnan(row[name]))


@pytest.mark.parametrize("value", [np.ma.masked, np.ma.array([0.5], mask=[True])])
def test_a_masked_value_is_logged_as_missing(value: Any) -> None:
    with mt.start_run() as run:
        run.log_metrics({"loss": value, "kept": np.ma.array([0.5], mask=[False])}, step=0)
        run.checkpoints().save(0, {"w": 1}, metrics={"late": value})
    row = mt.load_run(run.path).metrics().iloc[0]
    assert math.isnan(row["loss"]) and row["kept"] == 0.5
    assert math.isnan(mt.load_run(run.path).checkpoints[0].metrics["late"])


@pytest.mark.parametrize(
    ("metrics", "step", "error", "words"),
    [
        ({"acc": "high"}, 0, TypeError, "metric 'acc' must be a number, got 'high' .str"),
        ({"acc": None}, 0, TypeError, "must be a number, got None"),
        ({"acc": torch.zeros(2)}, 0, TypeError, "one number, got tensor.*Tensor"),
        ({"acc": [1]}, 0, TypeError, "one number, got .1. .list"),
        ({"acc": 1 + 2j}, 0, TypeError, "one number, got .*complex"),
        ({"acc": np.complex64(1 + 2j)}, 0, TypeError, "one number, got .*complex64"),
        ({"acc": np.datetime64("2026-01-01")}, 0, TypeError, "one number, got .*datetime64"),
        ({"acc": bytearray(b"1")}, 0, TypeError, "a number, got .*bytearray"),
        ({"acc": 10**400}, 0, ValueError, "small enough for a float"),
        ({"": 1.0}, 0, ValueError, "name must be 1 to .*, got ''"),
        ({"a\nb": 1.0}, 0, ValueError, "control"),
        ({"step": 1.0}, 0, ValueError, "column"),
        ({3: 1.0}, 0, TypeError, "name must be a string, got 3"),
        ({3: "acc"}, 0, TypeError, "name must be a string, got 3"),
        ({"acc": 1.0}, -1, ValueError, "step must be an integer from 0 .*, got -1"),
        ({"acc": 1.0}, 1.5, TypeError, "step must be an integer .*, got 1.5"),
        ({"acc": 1.0}, "1", TypeError, "step must be an integer .*, got '1'"),
        ({"acc": 1.0}, True, TypeError, "bool"),
        ({"acc": 1.0}, None, TypeError, "step must be an integer .*, got None"),
    ],
)
@pytest.mark.parametrize("backend", ["local", "off"])
def test_bad_metrics_are_refused_and_harm_nothing(
    metrics: Any, step: Any, error: type[Exception], words: str, backend: str
) -> None:
    with mt.start_run(backend=backend) as run:
        run.log_metrics({"loss": 1.0}, step=0)
        with pytest.raises(error, match=words):
            run.log_metrics(metrics, step=step)
        run.log_metrics({"loss": 2.0}, step=1)
    if backend == "local":
        frame = mt.load_run(run.path).metrics()
        assert frame["loss"].tolist() == [1.0, 2.0]
        assert list(frame.columns) == ["time", "loss"]


@pytest.mark.parametrize("backend", ["local", "off"])
def test_swapped_or_foreign_arguments_are_refused_with_what_was_expected(backend: str) -> None:
    name, thing = "must be a string, got", object()
    with mt.start_run(backend=backend) as run:
        calls: list[tuple[str, Callable[..., Any], Any, Any]] = [
            (f"a metric's name {name} 1", partial(run.log_metric, step=0), 1, "loss"),
            (f"a param's name {name} 1", run.log_param, 1, "lr"),
            (f"a histogram's name {name}", partial(run.log_histogram, step=0), [1.0], "w"),
            (f"an artifact's name {name}", run.log_image, "a.png", [[1.0]]),
            (f"an artifact's name {name}", partial(run.log_image, step=0), "a", [[1.0]]),
            (f"an artifact's name {name}", run.log_figure, "a.png", thing),
            (f"an artifact's name {name}", run.log_table, "a.csv", {"a": [1]}),
            (f"an artifact's name {name}", run.log_dict, "a.json", {"a": 1}),
            (f"an artifact's name {name}", run.log_artifact, __file__, 1),
            ("the source must be the path of .*, got 1", run.log_artifact, 1, "a"),
            ("the source must be the path of .*, got None", run.log_artifacts, None, "a"),
            ("tag 'a' must be a string, .*, got object", run.set_tag, "a", thing),
            (r"tag 'a' must be a string, .*, got list", run.set_tag, "a", [thing]),
        ]
        for words, call, first, second in calls:
            with pytest.raises(TypeError, match=words):
                call(first, second)
        values: Any = {"a": 1.5, "b": Path("b"), "c": "an address at 0x1"}
        run.set_tags(values)
    if backend == "local":
        assert mt.load_run(run.path).tags == {"a": "1.5", "b": "b", "c": "an address at 0x1"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            {"name": "c", "sha256": "00", "size_bytes": 1.5},
            "size_bytes of input 'c' must be",
        ),
        ({"name": "c", "sha256": b"00", "size_bytes": 1}, "sha256 of an input"),
        ({"name": Path("c"), "sha256": "00", "size_bytes": 1}, "name of an input"),
    ],
)
def test_a_bad_input_is_refused_and_harms_nothing(arguments: dict[str, Any], words: str) -> None:
    with mt.start_run() as run:
        with pytest.raises(TypeError, match=words):
            run.log_input(**arguments)
        run.log_input("corpus", sha256="00", size_bytes=np.int64(5))  # type: ignore[arg-type]
    loaded = mt.load_run(run.path)
    assert loaded.status == "FINISHED"
    assert [(i["name"], i["size_bytes"]) for i in loaded.info["inputs"]] == [("corpus", 5)]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"params": {"a": {"f": object()}}}, TypeError, r"'a\.f' must be .* got builtins.object"),
        ({"params": {1: 2, "1": 3}}, ValueError, "names in 'params' must be different as text"),
        ({"params": 3}, TypeError, "must be a mapping, a dataclass or .*, got builtins.int"),
        ({"backend": "cloud"}, ValueError, "local, off, or one or more of mlflow"),
        ({"resume": "maybe"}, LookupError, "resume must be .never., .auto., .must. or"),
        ({"resume": "must"}, LookupError, "no unfinished run"),
        ({"experiment": " "}, ValueError, "experiment must be a name of at least"),
        ({"experiment": 5}, TypeError, "experiment must be a string, got 5 .int."),
        ({"run_name": 5}, TypeError, "run_name must be a string, got 5 .int."),
        ({"params": dict}, TypeError, "must be a mapping, .* got the class builtins.dict"),
        ({"tags": ["x"]}, TypeError, "mapping"),
        ({"tags": []}, TypeError, "mapping"),
        ({"tags": {"a": object()}}, TypeError, "tag 'a' must be a string, .*, got object"),
        ({"tags": {"": "x"}}, ValueError, "tag's name must be"),
        ({"tags": "x"}, TypeError, "mapping"),
        ({"directory": "file/runs"}, OSError, "MLFLOW_TRACK_DIR"),
    ],
)
def test_a_start_that_does_not_fit_says_what_does_and_leaves_nothing(
    arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    Path("file").write_text("")
    with pytest.raises(error, match=words):
        mt.start_run(**arguments)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("uri", "meant"),
    [
        ("localhost:5000", "http://localhost:5000"),
        ("http/tracking.example:80/x", "http://tracking.example:80/x"),
        ("10.0.0.1:5000/", "http://10.0.0.1:5000/"),
        ("sqlite://mlflow.db", "sqlite:///mlflow.db"),
    ],
)
def test_a_mistyped_tracking_uri_is_refused_with_what_was_meant(
    uri: str, meant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(ValueError, match=f"did you mean '{meant}'"):
        mt.start_run()
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    "uri", ["http://h:5000", "sqlite:///:memory:", "postgresql+psycopg://u@h/d", "databricks://p"]
)
def test_a_uri_of_a_store_stays_as_it_is(uri: str) -> None:
    assert absolute_uri(uri) == uri


def test_artifacts_cannot_leave_their_folder(tmp_path: Path) -> None:
    with mt.start_run() as run:
        for name in ("../x.txt", "/x.txt", "", "a/../../x.txt"):
            with pytest.raises(ValueError, match="artifact's name must be"):
                run.log_text("x", name)
        (run.path / "artifacts").mkdir()
        (run.path / "artifacts" / "link").symlink_to(tmp_path)
        with pytest.raises(ValueError, match="link"):
            run.log_text("x", "link/x.txt")
        with pytest.raises(FileNotFoundError):
            run.log_artifact("nothing.txt")
        Path("folder/deep").mkdir(parents=True)
        Path("folder/deep/f.txt").write_text("f")
        run.log_artifact("folder")
        run.log_artifacts("folder", "copies")
    assert (run.path / "artifacts/folder/deep/f.txt").read_text() == "f"
    assert (run.path / "artifacts/copies/deep/f.txt").read_text() == "f"


def test_off_writes_nothing_and_keeps_the_interface() -> None:
    with mt.start_run(backend="off", params={"a": 1}) as run:
        run.log_metrics({"a": 1.0}, step=0)
        run.log_text("x", "x.txt")
        run.set_tags({"a": "b"})
        checkpoints = run.checkpoints(save=mt.EverySteps(1), keep=mt.Keep(last=1))
        assert checkpoints.restore({}) == 0
        assert checkpoints.step(1, {"step": 1}) is True
        assert checkpoints.list() == []
        assert len(run.metrics()) == 0 and run.url is None
    assert list(Path().iterdir()) == []


def test_the_environment_the_dotenv_and_arguments_in_their_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Path(".env").write_text("MLFLOW_TRACK_DIR=from-dotenv\nEXPERIMENT_NAME=dotenv\n")
    with mt.start_run() as run:
        assert run.path.parent == Path("from-dotenv/dotenv").absolute()
    monkeypatch.setenv("EXPERIMENT_NAME", "plain")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mlflow's")
    with mt.start_run() as run:
        assert run.path.parent.name == "mlflow's"
    with mt.start_run(experiment="argument", directory="d") as run:
        assert run.path.parent == Path("d/argument").absolute()
    assert "MLFLOW_TRACK_DIR" not in os.environ


@pytest.mark.parametrize(
    ("value", "recorded"),
    [
        (np.ma.masked, math.nan),
        (np.ma.array([3.0], mask=[True]), math.nan),
        (np.ma.array([3.0]), 3.0),
        (np.ma.array(2.0, mask=False), 2.0),
    ],
)
def test_a_masked_number_is_recorded_as_nan(value: object, recorded: float) -> None:
    with mt.start_run() as run:
        run.log_metrics({"a": value}, step=0)  # type: ignore[dict-item]
    assert run.metrics()["a"].tolist() == pytest.approx([recorded], nan_ok=True)


STATUS = """
import sys, mlflow_track as mt
how = sys.argv[1]
if how == "plain":
    run = mt.start_run(); run.log_metrics({"a": 1.0}, step=0)
elif how == "plain error":
    run = mt.start_run(); raise ValueError("broken")
else:
    with mt.start_run() as run:
        run.log_metrics({"a": 1.0}, step=0)
        if how == "error": raise ValueError("broken")
        if how == "exit 0": sys.exit(0)
        if how == "exit 3": sys.exit(3)
        if how == "interrupt": raise KeyboardInterrupt
        import os, signal
        if how == "sigkill": os.kill(os.getpid(), 9)
        if how == "sigterm": os.kill(os.getpid(), 15)
        if how == "sigterm obeyed":
            run.should_stop
            os.kill(os.getpid(), 15)
            assert run.should_stop
        if how == "sigterm twice":
            run.should_stop
            os.kill(os.getpid(), 15)
            os.kill(os.getpid(), 15)
"""


@pytest.mark.parametrize(
    ("how", "code", "status"),
    [
        ("plain", 0, "FINISHED"),
        ("plain error", 1, "FAILED"),
        ("with", 0, "FINISHED"),
        ("error", 1, "FAILED"),
        ("exit 0", 0, "FINISHED"),
        ("exit 3", 3, "FAILED"),
        ("interrupt", -2, "KILLED"),
        ("sigkill", -9, "KILLED"),
        ("sigterm", -15, "KILLED"),
        ("sigterm obeyed", 0, "KILLED"),
        ("sigterm twice", -15, "KILLED"),
    ],
)
def test_the_status_is_true_however_the_run_ends(
    how: str, code: int, status: str, run_script: Script
) -> None:
    done = run_script(STATUS, how)
    assert done.returncode in (code, 128 - code), done.stderr
    (run,) = mt.load_runs("runs")
    assert run.status == status
    if how == "error":
        assert run.info["attempts"][0]["error"] == "ValueError: broken"


def test_importing_and_logging_locally_loads_no_heavy_package(run_interpreter: Script) -> None:
    code = """
    import sys
    def heavy():
        return sorted({"torch", "mlflow", "pandas", "matplotlib"} & set(sys.modules))
    import mlflow_track as mt
    assert not heavy(), heavy()
    with mt.start_run(backend="local", params={"a": 1}) as run:
        run.log_metrics({"loss": 1.0}, step=0)
    assert not heavy(), heavy()
    """
    done = run_interpreter(code)
    assert done.returncode == 0, done.stderr


def test_a_deadline_that_has_passed_is_refused_at_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACK_DEADLINE", "2020-01-01")
    with pytest.raises(ValueError, match=r"in the future, got .* \(2020-01-01 00:00:00\)"):
        mt.start_run()
    assert not Path("runs").exists()


def test_names_with_invalid_utf8_do_not_end_a_training(
    run_script: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    folder = Path("caf\udce9")
    folder.mkdir()
    code = """
        import os, sys, mlflow_track as mt
        os.chdir(sys.argv[1])
        for resume in ("never", "auto"):
            run = mt.start_run(params={"data": sys.argv[1]}, directory="../runs", resume=resume)
            run.set_tag("data", sys.argv[1])
            run.print(sys.argv[1])
            run.finish("FAILED")
    """
    done = run_script(code, str(folder))
    assert done.returncode == 0, done.stderr
    (run,) = mt.load_runs("runs")
    assert run.params == {"data": "caf\\udce9"} and run.info["tags"] == {"data": "caf\\udce9"}
    assert run.info["attempts"][0]["command"][-1] == "caf\\udce9"
    assert run.info["provenance"]["working_folder"].endswith("caf\\udce9")
    log = (run.path / "training.log").read_text()
    assert "caf\\udce9" in log and "changed" not in log


def test_a_dotenv_with_other_bytes_is_named_and_its_other_lines_count(
    capfd: pytest.CaptureFixture[str],
) -> None:
    Path(".env").write_bytes(b"\xff\xfe=x\nEXPERIMENT_NAME=from-dotenv\nBROKEN LINE\n")
    with mt.start_run(backend="local") as run:
        run.log_metric("a", 1.0, step=0)
    assert run.path.parent.name == "from-dotenv"
    assert "has bytes that are not UTF-8" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["_start_mirror", "_start_system_metrics"])
def test_what_cannot_be_started_beside_the_loop_costs_a_warning(
    name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refused(self: Attempt) -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(Attempt, name, refused)
    with mt.start_run(backend="local") as run:
        run.log_metric("a", 1.0, step=0)
    assert "WARNING: " in (told := capfd.readouterr().err) and "cannot start" in told
    assert mt.load_run(run.path).status == "FINISHED"
    assert mt.load_run(run.path).metrics()["a"].tolist() == [1.0]


def test_replaced_checkpoints_refuse_every_verb_but_the_list() -> None:
    with mt.start_run(backend="local") as run:
        first = run.checkpoints(save=mt.EverySteps(1))
        first.save(1, {"a": 1})
        second = run.checkpoints(save=mt.EverySteps(1))
        for call in (
            lambda: first.step(2, {"a": 1}),
            lambda: first.save(2, {"a": 1}),
            lambda: first.restore({"a": 1}),
            lambda: first.wait(),
        ):
            with pytest.raises(RuntimeError, match="these checkpoints are closed"):
                call()
        first.close()
        second.save(2, {"a": 2})
    assert [c.step for c in first.list()] == [1, 2]
