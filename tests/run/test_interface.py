"""The public interface: names, signatures, and the verbs that are small enough to stand here."""

from __future__ import annotations

import gc
import inspect
import json
import math
import os
import signal
import subprocess
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import mlflow_track as mt
from mlflow_track.cli import main
from mlflow_track.record.info import read_config, read_info
from mlflow_track.record.tags import SUMMARY_TAG, record_tags

Script = Callable[..., subprocess.CompletedProcess[str]]

NAMES = """
    AtSteps Budget Checkpoint Checkpoints Comparison Continuous CorruptCheckpointError EarlyStopping
    EvenlySpaced EveryMinutes EverySteps Keep LoadedRun OnImprovement Run RunHeldError SavePolicy
    SyncStatus __version__ active_run compare load_metrics load_run load_runs load_weights resumable
    start_run
"""
SIGNATURES: list[tuple[str, str]] = [
    (
        "start_run",
        "*, experiment=None, run_name=None, params=None, tags=None, resume=None, on_rewind=None, "
        "backend=None, tracking_uri=None, directory=None, rank=None",
    ),
    ("active_run", ""),
    ("load_weights", "source, *, step='last', prefix='model'"),
    ("resumable", "loader, *, seed=None"),
    ("EvenlySpaced", "max_steps, warmup_steps=0, max_checkpoints=5"),
    ("EverySteps", "interval"),
    ("EveryMinutes", "minutes"),
    ("Continuous", ""),
    ("OnImprovement", "metric, mode=None, min_delta=0, relative=False, noise_sigmas=0"),
    ("Budget", "max_overhead, mean_time_between_failures=None"),
    ("Keep", "*, last=1, best=0, metric=None, mode=None, milestones=True, max_bytes=None"),
    ("EarlyStopping", "metric, patience, min_delta=0, mode=None"),
    ("SavePolicy.due", "self, now, history"),
    ("Run.log_metric", "self, key, value, *, step"),
    ("Run.log_metrics", "self, metrics, *, step"),
    ("Run.log_summary", "self, values"),
    ("Run.define_metric", "self, name, *, mode"),
    ("Run.log_param", "self, key, value"),
    ("Run.log_params", "self, params"),
    ("Run.set_tag", "self, key, value"),
    ("Run.set_tags", "self, tags"),
    ("Run.log_artifact", "self, local_path, artifact_path=None"),
    ("Run.log_artifacts", "self, local_dir, artifact_path=None"),
    ("Run.log_text", "self, text, artifact_file, *, step=None"),
    ("Run.log_dict", "self, content, artifact_file"),
    ("Run.log_table", "self, data, artifact_file"),
    ("Run.log_figure", "self, figure, artifact_file, *, step=None"),
    ("Run.log_image", "self, image, artifact_file, *, step=None"),
    ("Run.log_histogram", "self, key, values, *, step, bins=64"),
    (
        "Run.checkpoints",
        "self, *, save=None, keep=None, stop=None, upload=None, max_steps=None, require_same=(), "
        "allow_changed=()",
    ),
    ("Run.log_handler", "self"),
    ("Run.metrics", "self"),
    ("Run.sync_status", "self"),
    ("Run.finish", "self, status='FINISHED', error=None"),
    ("Checkpoints.restore", "self, state, step=None, *, generators=True"),
    ("Checkpoints.step", "self, step, state, metrics=None"),
    ("Checkpoints.save", "self, step, state, metrics=None"),
    ("Checkpoints.plan", "self, state=None"),
    ("Checkpoints.due", "self, step"),
    ("Checkpoints.load", "self, step=None"),
    *((f"Checkpoints.{name}", "self") for name in "put_generators_back wait list close".split()),
]


def plain(signature: inspect.Signature) -> str:
    """Names and defaults, without types."""
    parameters = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    text = str(signature.replace(parameters=parameters, return_annotation=signature.empty))
    return text[1:-1].replace("=0.0", "=0")


@pytest.mark.parametrize(("name", "expected"), SIGNATURES)
def test_signatures_are_those_of_the_contract(name: str, expected: str) -> None:
    found: Any = mt
    for part in name.split("."):
        found = getattr(found, part)
    assert plain(inspect.signature(found)) == expected


def test_names_are_those_of_the_contract() -> None:
    assert sorted(NAMES.split()) == sorted(mt.__all__) == dir(mt)
    assert all(getattr(mt, name) is not None for name in mt.__all__)
    assert mt.__version__[0].isdigit()


def test_checkpoints_offer_what_is_documented_and_nothing_else() -> None:
    offered = {name for name in dir(mt.Checkpoints) if not name.startswith("_")}
    assert offered == {name.split(".")[1] for name, _ in SIGNATURES if "Checkpoints." in name} | {
        "report"
    }


# --- active_run ---


def test_active_run_is_the_newest_that_has_not_ended() -> None:
    assert mt.active_run() is None
    with mt.start_run() as outer:
        with mt.start_run(backend="off") as inner:
            assert mt.active_run() is inner
        assert mt.active_run() is outer
        outer.finish()
        assert mt.active_run() is None


def test_active_run_needs_no_other_reference_and_goes_when_it_has_ended() -> None:
    mt.start_run()
    gc.collect()
    run = mt.active_run()
    assert run is not None
    run.log_metric("loss", 1.0, step=0)
    ref, path = weakref.ref(run), run.path
    run.finish()
    del run
    gc.collect()
    assert ref() is None and mt.load_run(path).status == "FINISHED"


def test_active_run_of_a_forked_child_is_none() -> None:
    with mt.start_run():
        child = os.fork()
        if not child:
            os._exit(0 if mt.active_run() is None else 3)
        assert os.waitpid(child, 0)[1] == 0


# --- log_summary ---


def test_log_summary_stands_in_run_json_and_later_values_replace() -> None:
    with mt.start_run() as run:
        run.log_summary({"acc": 0.5, "steps": 3, "is_final": True, "note": "plain"})
        run.log_summary({"acc": torch.tensor(0.75), "nan": math.nan, "np": np.float32(0.5)})
        run.log_summary({"url": "https://user:secret@host", "api_key": "abc"})
    summary = json.loads((run.path / "run.json").read_text())["summary"]
    assert summary == {
        "acc": 0.75,
        "steps": 3,
        "is_final": True,
        "note": "plain",
        "nan": "nan",
        "np": 0.5,
        "url": "https://user:***@host",
        "api_key": "***",
    }
    assert mt.load_run(run.path).info["summary"] == summary
    # What an MLflow server gets, and the MLflow UI on the folder shows.
    info, config = read_info(run.path), read_config(run.path)
    assert json.loads(record_tags(info, config)[SUMMARY_TAG]) == summary


@pytest.mark.parametrize("wrong", [{"": 1}, {"a": [1]}, {"a": None}, {3: 1}, ["a"], {"a": 10**400}])
def test_log_summary_refuses(wrong: Any) -> None:
    with mt.start_run() as run, pytest.raises((TypeError, ValueError)):
        run.log_summary(wrong)


# --- log_image ---

RED = np.zeros((2, 5, 3), np.uint8)
RED[..., 0] = 255


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (RED, RED),
        (RED.astype("int64"), RED),
        (torch.tensor(RED / 255.0), RED),
        (torch.tensor(RED).movedim(-1, 0), RED),
        (torch.tensor(RED / 255.0, dtype=torch.bfloat16).requires_grad_(), RED),
        (RED[..., 0], RED[..., :1]),
        (RED[..., 0] > 0, RED[..., :1]),
        (np.dstack([RED, RED[..., 0]]), np.dstack([RED, RED[..., 0]])),
        (np.array([[0.0, 0.5, 1.0]]), np.array([[[0], [128], [255]]])),
    ],
)
def test_log_image_writes_the_pixels(image: Any, expected: Any) -> None:
    from matplotlib.image import imread

    with mt.start_run() as run:
        path = run.log_image(image, "some/picture.png")
    read = np.atleast_3d(np.rint(imread(path) * 255))
    assert path == run.path / "artifacts/some/picture.png"
    assert read[..., : expected.shape[-1]].tolist() == expected.tolist()


def test_log_image_takes_a_picture_of_pil() -> None:
    from PIL import Image

    with mt.start_run() as run:
        for name in ("a.png", "a.jpg"):
            found = Image.open(run.log_image(Image.fromarray(RED), name))
            assert (found.size, found.format) == ((5, 2), {"a.png": "PNG", "a.jpg": "JPEG"}[name])


@pytest.mark.parametrize(
    "wrong",
    [
        "text",
        None,
        np.zeros((2, 2, 2)),
        np.zeros((0, 2, 3)),
        np.zeros(3),
        np.full((2, 2), 1.5),
        np.full((2, 2), -1),
        np.full((2, 2), math.nan),
        np.full((2, 2), 256),
    ],
)
def test_log_image_refuses(wrong: Any) -> None:
    with mt.start_run() as run, pytest.raises((TypeError, ValueError), match="image"):
        run.log_image(wrong, "a.png")


# --- start_run ---


def test_resume_allow_is_auto_and_tracking_uri_names_the_server(tmp_path: Path) -> None:
    with mt.start_run(run_name="r", resume="allow") as first:
        first.finish("FAILED")
    with mt.start_run(run_name="r", resume="allow") as again:
        assert again.id == first.id
    store = f"sqlite:///{tmp_path}/mlflow.db"
    from mlflow_track.settings import read_settings

    settings = read_settings(tracking_uri=store)
    assert settings.backends == ("mlflow",) and settings.tracking_uri == store


def test_stop_reason_is_the_signal() -> None:
    with mt.start_run() as run:
        checkpoints = run.checkpoints()
        assert run.stop_reason is None
        signal.raise_signal(signal.SIGTERM)
        checkpoints.step(0, {"w": 1})
        assert run.should_stop and run.stop_reason == "SIGTERM"
    assert mt.load_run(run.path).status == "KILLED"


# --- generators, load ---


def saved_run() -> tuple[mt.Run, torch.Tensor]:
    torch.manual_seed(5)
    model = torch.nn.Linear(2, 2)
    with mt.start_run() as run:
        checkpoints = run.checkpoints()
        checkpoints.save(3, {"model": model, "note": [1, {"t": torch.arange(3)}]})
        drawn = torch.rand(4)
        run.finish("FAILED")
    return run, drawn


def state() -> dict[str, Any]:
    return {"model": torch.nn.Linear(2, 2), "note": [0, {"t": torch.zeros(3, dtype=torch.int64)}]}


def test_generators_are_left_alone_until_they_are_put_back() -> None:
    saved, drawn = saved_run()
    with mt.start_run(resume=saved.id) as run:
        checkpoints, live = run.checkpoints(), state()
        torch.manual_seed(99)
        expected = torch.rand(1)
        torch.manual_seed(99)
        assert checkpoints.restore(live, generators=False) == 4
        assert torch.equal(torch.rand(1), expected)
        assert "exact:" not in (run.path / "training.log").read_text()
        checkpoints.put_generators_back()
        assert torch.equal(torch.rand(4), drawn)
        assert checkpoints.report is not None and checkpoints.report.is_exact
        checkpoints.step(4, state())
        run.finish("FAILED")
    (restore,) = json.loads((run.path / "run.json").read_text())["restores"]
    assert restore["is_exact"] and restore["restored"] == ["model", "note", "random generators"]


def test_generators_that_nobody_puts_back_are_not_exact() -> None:
    saved, _ = saved_run()
    with mt.start_run(resume=saved.id) as run:
        checkpoints = run.checkpoints()
        checkpoints.put_generators_back()
        checkpoints.restore(state(), generators=False)
        checkpoints.step(4, state())
        assert checkpoints.report is not None and not checkpoints.report.is_exact
    log = (run.path / "training.log").read_text()
    assert log.count("exact: no (the random generators were not restored)") == 1


def test_report_is_what_the_last_restore_found() -> None:
    saved, _ = saved_run()
    with mt.start_run(resume=saved.id) as run:
        checkpoints = run.checkpoints()
        assert checkpoints.report is None
        checkpoints.restore(state())
        report = checkpoints.report
        assert report is not None and report.step == 3 and report.is_exact


def test_load_gives_plain_data_of_its_own_and_restores_nothing() -> None:
    saved, _ = saved_run()
    with mt.start_run(resume=saved.id) as run:
        checkpoints = run.checkpoints()
        torch.manual_seed(99)
        before = torch.get_rng_state()
        loaded = checkpoints.load()
        assert torch.equal(torch.get_rng_state(), before)
        assert loaded["model"].keys() == {"weight", "bias"} and loaded["note"][0] == 1
        tensor = loaded["note"][1]["t"]
        tensor += 1
        assert checkpoints.load(step=3)["note"][1]["t"].tolist() == [0, 1, 2]
        checkpoints.save(4, {"w": 1})
        assert checkpoints.load() == {"w": 1}
        with pytest.raises(FileNotFoundError, match="no checkpoint of step 9"):
            checkpoints.load(9)
    with mt.start_run() as run, pytest.raises(FileNotFoundError, match="no checkpoint"):
        run.checkpoints().load()


# --- load_weights ---


@pytest.fixture
def trained() -> mt.Run:
    model = torch.nn.Linear(2, 1)
    with mt.start_run() as run:
        keep = mt.Keep(last=3, best=1, metric="loss")
        checkpoints = run.checkpoints(save=mt.EverySteps(1), keep=keep)
        for step, loss in enumerate([3.0, 1.0, 2.0], 1):
            torch.nn.init.constant_(model.weight, step)
            checkpoints.step(
                step, {"model": model, "ema": {"net": {**model.state_dict()}}, "w": torch.ones(1)}
            )
            run.log_metric("loss", loss, step=step)
    return run


@pytest.mark.parametrize(("step", "expected"), [("last", 3), ("best", 2), (1, 1)])
def test_load_weights_takes_the_step(step: Any, expected: int, trained: mt.Run) -> None:
    for source in (trained.path, str(trained.path), trained, mt.load_run(trained.path)):
        weights = mt.load_weights(source, step=step)
        model = torch.nn.Linear(2, 1)
        model.load_state_dict(weights)
        assert model.weight.tolist() == [[expected] * 2]


def test_load_weights_of_a_checkpoint_and_of_other_entries(trained: mt.Run) -> None:
    checkpoint = mt.load_run(trained.path).checkpoints[0]
    assert mt.load_weights(checkpoint)["weight"].tolist() == [[1.0, 1.0]]
    assert mt.load_weights(checkpoint.path, prefix="").keys() == {
        *("model.weight", "model.bias", "w"),
        *("ema.net.weight", "ema.net.bias"),
    }
    assert mt.load_weights(trained, prefix="ema.net").keys() == {"weight", "bias"}


def test_load_weights_reads_an_export_under_the_same_prefixes(trained: mt.Run) -> None:
    for entry in ("model", "ema"):
        words = ["ckpt", "export", str(trained.path), "last", "--entry", entry]
        assert CliRunner().invoke(main, [*words, "-o", f"{entry}.safetensors"]).exit_code == 0
    for source, prefix in (("model.safetensors", "model"), ("ema.safetensors", "ema.net")):
        weights = mt.load_weights(source, prefix=prefix)
        assert weights.keys() == {"weight", "bias"}
        assert torch.equal(weights["weight"], mt.load_weights(trained, prefix=prefix)["weight"])
    with pytest.raises(ValueError, match=r"prefix must be .*'model'; ema\.safetensors has 'ema'"):
        mt.load_weights("ema.safetensors")
    Path("other.pt").write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match=r"other\.pt must be a file of ckpt export"):
        mt.load_weights("other.pt")


def test_load_weights_of_a_wrapped_model_start_a_fresh_bare_one() -> None:
    wrapped = torch.nn.DataParallel(torch.nn.Linear(2, 1))
    with mt.start_run() as run:
        run.checkpoints().save(0, {"model": wrapped})
    fresh = torch.nn.Linear(2, 1).bfloat16()
    fresh.load_state_dict(mt.load_weights(run))
    assert torch.equal(fresh.weight, wrapped.module.weight.bfloat16())


def test_load_weights_refuses_what_is_not_there_and_what_is_damaged(trained: mt.Run) -> None:
    with pytest.raises(ValueError, match=r"prefix must be .*'mod'.*'model', 'ema', 'w'"):
        mt.load_weights(trained, prefix="mod")
    with pytest.raises(FileNotFoundError, match="step must be one of 1, 2, 3"):
        mt.load_weights(trained, step=9)
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        mt.load_weights(trained.path / "nowhere")
    tensors = trained.path / "checkpoints/step-000000003/state.safetensors"
    data = bytearray(tensors.read_bytes())
    data[-1] ^= 1
    tensors.write_bytes(data)
    with pytest.raises(mt.CorruptCheckpointError):
        mt.load_weights(trained)
    with mt.start_run() as run:
        run.checkpoints().save(0, {"model": torch.nn.Linear(1, 1)})
    with pytest.raises(ValueError, match="which defines the best"):
        mt.load_weights(run, step="best")
