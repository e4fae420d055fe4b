"""`mlflow-track ckpt …` on runs that were really made."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

import mlflow_track as mt
from mlflow_track.checkpoint import pruning
from mlflow_track.checkpoint.disk.store import held_for_reading
from mlflow_track.cli import main
from tests import forked


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
        self.second.weight = self.first.weight


@pytest.fixture
def run() -> mt.LoadedRun:
    """Five checkpoints, of which step 2 is a milestone and step 3 the best."""
    torch.manual_seed(0)
    model = Tied()
    state = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}
    with mt.start_run(run_name="demo", params={"lr": 0.1}) as made:
        checkpoints = made.checkpoints(save=mt.EverySteps(1) | mt.AtSteps(2))
        for step, loss in enumerate([5.0, 4.0, 3.0, 1.0, 2.0]):
            torch.nn.init.constant_(model.first.weight, float(step))
            checkpoints.step(step, state, metrics={"loss": loss})
        checkpoints.save(5, state, metrics={"loss": 2.5})
    return mt.load_run(made.path)


def call(*words: object, code: int = 0) -> str:
    result = CliRunner().invoke(main, ["ckpt", *map(str, words)], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.output


def test_ls_says_what_is_there_and_why(run: mt.LoadedRun) -> None:
    pruning.pin(run.checkpoints[0])
    lines = call("ls", "demo").splitlines()
    assert len(lines) == 1 + 5
    assert lines[0].split() == ["STEP", "SAVED", "SIZE", "loss", "WHY", "NOTES"]
    assert " 4 " in lines[1] and "every 1 step" in lines[1] and "pinned" in lines[1]
    assert "one of the given steps" in lines[2] and "milestone" in lines[2]
    assert "requested by the caller" in lines[5]
    rows = json.loads(call("ls", "demo", "--json"))
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]


def test_ls_and_verify_name_what_is_damaged(run: mt.LoadedRun) -> None:
    assert call("verify", "demo").count("verified") == 5
    cut, flipped, torn = run.checkpoints[:3]
    (cut.path / "state.json").write_bytes(b"")
    content = bytearray((flipped.path / "state.safetensors").read_bytes())
    content[-1] ^= 1
    (flipped.path / "state.safetensors").write_bytes(content)
    (torn.path / "manifest.json").write_text("{}")
    listed = call("ls", "demo")
    assert (
        "the size of a file differs" in listed and "DAMAGED: step-000000003/manifest.json" in listed
    )
    said = call("verify", "demo", code=1)
    assert said.count("DAMAGED") == 3 and said.count("verified") == 2
    call("verify", "demo", "5")


def test_show_and_diff_read_no_tensor(run: mt.LoadedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: object) -> None:
        raise AssertionError("a tensor was read")

    with monkeypatch.context() as patch:
        patch.setattr("mlflow_track.checkpoint.disk.store.Checkpoint.read", read)
        shown, differs = call("show", "demo"), call("diff", "demo", "1", "last")
    assert "tensor model.first.weight: F32 [2, 2]" in shown and "params.lr: 0.1" in shown
    assert json.loads(call("show", "demo", "3", "--json"))["metrics"] == {"loss": 1.0}
    assert "metrics.loss" in differs and "tensor" not in differs
    with_values = call("diff", "demo", "1", "last", "--values")
    assert "tensor model.first.weight" in with_values and "by 3 at most" in with_values
    assert "bias" not in with_values


def test_no_command_but_replay_needs_torch(run: mt.LoadedRun) -> None:
    code = """
import sys
from collections import deque
from mlflow_track.cli import main
for words in (["ls"], ["verify"], ["show"], ["diff", 1, 2], ["export", 1], ["prune"]):
    command, *rest = words
    options = ["--last", "1", "--dry-run"] if command == "prune" else []
    try:
        main(["ckpt", command, "demo", *map(str, rest), *options])
    except SystemExit as end:
        assert not end.code, words
assert "torch" not in sys.modules and "mlflow" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_prune_says_what_it_would_do_and_does_it(run: mt.LoadedRun) -> None:
    assert "the run keeps all" in call("prune", "demo", "--dry-run", code=2)
    rules = ("--last", 1, "--best", 1, "--metric", "loss")
    said = call("prune", "demo", *rules, "--dry-run")
    assert "keep   step 2: a milestone" in said and "keep   step 3: number 1 of the best" in said
    assert "remove step 1" in said and "remove step 4" in said
    assert [c.step for c in run.checkpoints] == [1, 2, 3, 4, 5]
    call("pin", "demo", 1)
    with held_for_reading(run.checkpoints[3].path):
        said = call("prune", "demo", *rules, code=4)
    assert "step 4 stays: another process reads it" in said
    assert [c.step for c in run.checkpoints] == [1, 2, 3, 4, 5]
    call("unpin", "demo", 1)
    assert call("prune", "demo", *rules).splitlines() == ["removed step 1", "removed step 4"]
    assert [c.step for c in run.checkpoints] == [2, 3, 5]


def flip_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_prune_keeps_the_newest_that_verifies_beside_a_damaged_one(run: mt.LoadedRun) -> None:
    for checkpoint in run.checkpoints[3:]:
        flip_last_byte(checkpoint.path / "state.safetensors")
    rules = ("--last", 1, "--no-milestones")
    assert "keep   step 3: the newest" in call("prune", "demo", *rules, "--dry-run")
    call("prune", "demo", *rules)
    assert [c.step for c in run.checkpoints] == [3, 5]
    run.checkpoints[0].verify()


def test_prune_keeps_the_one_resumed_from(run: mt.LoadedRun) -> None:
    with mt.start_run(resume=run.id) as again:
        checkpoints = again.checkpoints()
        state = {"model": Tied(), "optimizer": None}
        state["optimizer"] = torch.optim.SGD(state["model"].parameters(), lr=0.1)  # type: ignore
        assert checkpoints.restore(state, step=3) == 4
        checkpoints.save(4, state)
        checkpoints.save(5, state)
    call("prune", "demo", "--last", 1, "--no-milestones")
    assert [c.step for c in mt.load_run(run.path).checkpoints] == [3, 5]


def test_prune_leaves_a_live_run_to_its_own_process_and_takes_its_rules() -> None:
    with mt.start_run(run_name="live") as live:
        checkpoints = live.checkpoints(keep=mt.Keep(last=2))
        checkpoints.save(0, {"w": 1})
        checkpoints.wait()
        assert "is open in this process" in call("prune", "live", code=1)
        assert "keep   step 0" in call("prune", "live", "--dry-run")


def test_export_is_what_the_model_loads_tied_weights_included(run: mt.LoadedRun) -> None:
    assert "4 tensors of step 3" in call("export", "demo", "3", "-o", "weights.safetensors")
    model = Tied()
    model.load_state_dict(load_file("weights.safetensors"), strict=True)
    assert torch.equal(model.second.weight, torch.full((2, 2), 3.0))
    assert "it has model, optimizer" in call("export", "demo", "3", "--entry", "net", code=3)
    damaged = run.checkpoints[0].path / "state.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    call("export", "demo", "1", "-o", "never.safetensors", code=1)
    assert not Path("never.safetensors").exists()


def test_export_knows_weights_that_are_not_laid_out_row_by_row() -> None:
    model = torch.nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last)
    with mt.start_run(run_name="c") as run:
        run.checkpoints().save(0, {"model": model})
    assert "2 tensors of step 0" in call("export", "c", "-o", "weights.safetensors")
    assert torch.equal(load_file("weights.safetensors")["weight"], model.weight)


class Wrapper(torch.nn.Module):
    """Its only child has the name that DDP gives to what it wraps."""

    def __init__(self, child: str = "module") -> None:
        super().__init__()
        self.add_module(child, torch.nn.Linear(2, 1))


def export_of(state: dict[str, Any], *words: str, code: int = 0) -> str:
    with mt.start_run() as run:
        run.checkpoints().save(0, state)
    return call("export", run.path, "last", "-o", "weights.safetensors", *words, code=code)


def test_export_keeps_the_names_of_a_class_whose_child_is_called_module() -> None:
    model = Wrapper()
    export_of({"model": model})
    Wrapper().load_state_dict(load_file("weights.safetensors"))
    assert list(load_file("weights.safetensors")) == ["module.weight", "module.bias"]


def test_export_has_complex_weights_or_refuses_them() -> None:
    model = torch.nn.ParameterDict({"w": torch.randn(3, dtype=torch.complex64).t()})
    export_of({"model": model})
    assert torch.equal(load_file("weights.safetensors")["w"], model["w"])
    assert torch.equal(mt.load_weights("weights.safetensors")["w"], model["w"])
    wide = torch.nn.ParameterDict({"w": torch.randn(3, dtype=torch.complex128)})
    Path("weights.safetensors").unlink()
    assert "model.w is complex, of two F64" in export_of({"model": wide}, code=1)
    assert not Path("weights.safetensors").exists()


def test_export_finds_the_tensors_in_containers_of_any_kind() -> None:
    parts = deque([torch.ones(2), {3: torch.zeros(1)}], maxlen=4)
    export_of({"parts": (parts, "text")}, "--entry", "parts")
    assert list(load_file("weights.safetensors")) == ["0.0", "0.1.3"]


@pytest.mark.parametrize("name", ["model.pt", "model.pth", "model.bin", "model"])
def test_export_refuses_a_name_that_says_another_format(name: str) -> None:
    with mt.start_run() as run:
        run.checkpoints().save(0, {"model": torch.nn.Linear(2, 1)})
    assert "ending in .safetensors" in call("export", run.path, "last", "-o", name, code=2)
    assert not Path(name).exists()


def test_best_is_a_step_by_the_metric_that_the_run_compares() -> None:
    with mt.start_run(run_name="b") as run:
        checkpoints = run.checkpoints(keep=mt.Keep(last=9, metric="loss"))
        for step, loss in enumerate((3.0, 1.0, float("nan"), 2.0)):
            checkpoints.save(step, {"w": step}, metrics={"loss": loss})
    assert "step: 1\n" in call("show", "b", "best")
    with mt.start_run(run_name="none") as run:
        run.checkpoints().save(0, {"w": 1})
    assert "no metric says which is best" in call("show", "none", "best", code=3)


def test_prune_by_another_metric_takes_its_direction() -> None:
    with mt.start_run(run_name="b") as run:
        run.define_metric("temperature", mode="max")
        checkpoints = run.checkpoints(keep=mt.Keep(last=9, metric="loss"))
        for step, value in enumerate((1.0, 3.0, 2.0, 0.0)):
            metrics = {"loss": value, "acc": value, "temperature": value, "size": value}
            checkpoints.save(step, {"w": step}, metrics=metrics)

    def kept(*words: str) -> list[str]:
        said = call("prune", "b", "--last", "1", "--best", "1", "--dry-run", *words)
        return re.findall(r"keep   step (\d)", said)

    assert kept() == ["3"]
    assert kept("--metric", "acc") == kept("--metric", "temperature") == ["1", "3"]
    assert kept("--metric", "size", "--mode", "max") == ["1", "3"]
    said = call("prune", "b", "--best", "1", "--metric", "size", "--dry-run", code=2)
    assert "give mode='min' or mode='max'" in " ".join(said.split())


def test_a_step_that_is_not_there_is_named_with_those_that_are(run: mt.LoadedRun) -> None:
    assert "no checkpoint of step 9; there are 1, 2, 3, 4, 5, last" in call(
        "show", "demo", "9", code=3
    )


SCRIPT = """
import sys, torch, mlflow_track as mt
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 1))
optimizer = torch.optim.AdamW(model.parameters())
state = {"model": model, "optimizer": optimizer}
# The arguments name a folder and a resume of their own.
with mt.start_run(run_name="again", directory="runs", resume="never") as run:
    checkpoints = run.checkpoints(save=mt.EverySteps(5), max_steps=18)
    for step in range(checkpoints.restore(state), 18):
        loss = model(torch.randn(8, 4)).pow(2).mean()
        if len(sys.argv) > 1 and step == 16:
            loss = loss * float(open(sys.argv[1]).read())
        optimizer.zero_grad(); loss.backward(); optimizer.step()
        run.log_metrics({"loss": loss.item()}, step=step)
        checkpoints.step(step, state)
        if run.should_stop:
            break
"""


def whole(folder: Path) -> dict[str, bytes]:
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "run.lock")
    return {str(p): p.read_bytes() for p in files}


def test_replay_comes_to_the_recorded_state_and_touches_nothing(
    tmp_path: Path,
    run_script: Callable[..., subprocess.CompletedProcess[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert run_script(SCRIPT).returncode == 0
    before = whole(tmp_path / "runs")
    assert "equal: step 15 to step 17" in call("replay", "again")
    # The first one started as anywhere.
    monkeypatch.setattr(subprocess, "Popen", forked.Popen)
    assert "equal: step 5 to step 15" in call("replay", "again", "--from", 5, "--to", 15)
    assert whole(tmp_path / "runs") == before
    assert "no checkpoint of step 4" in call("replay", "again", "--from", 4, code=3)


@pytest.mark.slow
def test_replay_names_the_tensors_that_another_computation_changes(
    tmp_path: Path, run_script: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    (tmp_path / "factor").write_text("1.0")
    assert run_script(SCRIPT, "factor").returncode == 0
    (tmp_path / "factor").write_text("1.5")
    said = call("replay", "again", code=1)
    assert "differs: tensor model.0.weight" in said
    shutil.rmtree(mt.load_runs("runs")[0].checkpoints[0].path)
    (tmp_path / "factor").unlink()
    assert "without a checkpoint of step 17" in call("replay", "again", code=1)
