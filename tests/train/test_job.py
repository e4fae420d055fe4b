"""Does `python -m train` keep the promises on real input? Processes, kills, and what they leave."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import mlflow_track as mt
from tests import forked
from tests.campaign import sampled
from train.__main__ import main

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = "train/loss train/lr train/grad_norm perf/tokens_per_second perf/step_ms".split()
SETTINGS = {
    "--max-steps": 60,
    "--warmup-steps": 6,
    "--max-checkpoints": 6,
    "--batch-size": 4,
    "--context-length": 16,
    "--d-model": 16,
    "--num-layers": 1,
    "--num-heads": 2,
    "--d-ff": 24,
    "--dropout": 0.2,
    "--eval-interval": 15,
    "--eval-batches": 2,
    "--sample-tokens": 4,
    "--min-learning-rate": 0,
    "--precision": "fp32",
    "--device": "cpu",
}


def flags(**changes: object) -> list[str]:
    settings = SETTINGS | {f"--{k.replace('_', '-')}": v for k, v in changes.items()}
    return [str(word) for pair in settings.items() for word in pair]


def only_run(**what: str) -> mt.LoadedRun:
    (run,) = [r for r in mt.load_runs("runs") if all(getattr(r, k) == v for k, v in what.items())]
    return run


def weights(run: mt.LoadedRun) -> str:
    path = run.checkpoints[-1].path / "state.safetensors"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def losses(run: mt.LoadedRun) -> list[str]:
    """The losses of every step, digit for digit as they lie in the file."""
    rows = pd.read_csv(run.path / "metrics.csv", dtype=str)
    assert rows["step"].tolist() == [str(step) for step in range(60)]
    return rows["train/loss"].tolist()


def job(*arguments: str, prelude: str = "") -> subprocess.Popen[str]:
    code = (
        textwrap.dedent(prelude) + "\nimport sys; from train.__main__ import main; sys.exit(main())"
    )
    return forked.Popen(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )


def kill_after(process: subprocess.Popen[str], name: str, rows: int, pause: float) -> None:
    """SIGKILL the job `pause` seconds after it has logged so many rows."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        files = [r.path / "metrics.csv" for r in mt.load_runs("runs") if r.name == name]
        if files and files[0].exists() and files[0].read_bytes().count(b"\n") > rows:
            break
        time.sleep(0.002)
    time.sleep(pause)
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[str]]:
    """Weights and losses of the job as nobody interrupts it."""
    folder, before = tmp_path_factory.mktemp("whole"), Path.cwd()
    os.chdir(folder)
    try:
        assert main(flags()) == 0
        run = only_run()
        return weights(run), losses(run)
    finally:
        os.chdir(before)


# Without pandas the rows cannot be read.
@pytest.mark.parametrize("failing", ["train.__main__.draw_curves", "mlflow_track.run.Run.metrics"])
def test_a_picture_that_cannot_be_drawn_is_a_warning_and_the_run_is_finished(failing, monkeypatch):
    def fail(*arguments):
        raise ValueError("no picture")

    monkeypatch.setattr(failing, fail)
    assert main(flags(run_name="lr $x_{$", max_steps=12, warmup_steps=1, max_checkpoints=1)) == 0
    run = only_run()
    assert run.status == "FINISHED" and not (run.path / "artifacts/curves.png").exists()
    log = (run.path / "training.log").read_text()
    assert "WARNING: curves.png cannot be drawn: ValueError('no picture')" in log


def test_the_record_has_one_row_a_step_with_the_metrics_of_the_job():
    assert main(flags(run_name="r")) == 0
    run = only_run()
    assert run.status == "FINISHED"
    rows = pd.read_csv(run.path / "metrics.csv")
    evaluated = ["val/loss", "val/bits_per_byte", "perf/data_share", "perf/save_share"]
    evaluated.append("perf/peak_memory_mb")
    assert list(rows) == ["step", "time", *COLUMNS, *evaluated]
    assert rows["step"].tolist() == list(range(60))
    assert not rows[COLUMNS].isna().any().any()
    assert rows["val/loss"].dropna().index.tolist() == [14, 29, 44, 59]
    assert rows["perf/peak_memory_mb"].dropna().gt(50).tolist() == [True] * 4
    shares = rows[["perf/data_share", "perf/save_share"]].dropna()
    assert len(shares) == 4 and shares.gt(0).all().all() and shares.sum(axis=1).lt(1).all()
    assert rows["train/lr"].iloc[-1] == 0
    assert rows["train/lr"].max() == 3e-3
    assert rows["train/loss"].iloc[-10:].mean() < rows["train/loss"].iloc[:10].mean()
    assert [c.step for c in run.checkpoints] == [6, 17, 27, 38, 48, 59]
    assert set(run.checkpoints[-1].metrics) >= {"train/loss", "val/loss"}
    sample = (run.path / "artifacts/sample.txt").read_text()
    assert sample.startswith("The ") and len(sample) > 300
    samples = [text.read_text() for text in sorted((run.path / "artifacts/samples").iterdir())]
    assert len(samples) == 4 and len(set(samples)) > 1 and all(s[:4] == "The " for s in samples)
    assert (run.path / "artifacts/curves.png").read_bytes().startswith(b"\x89PNG")
    (data,) = run.info["inputs"]
    assert data["name"] == "pydoc_data.topics" and len(data["sha256"]) == 64
    assert data["size_bytes"] > 300_000
    log = (run.path / "training.log").read_text()
    assert "settings that differ from the defaults: max_steps=60 (command line)" in log
    assert "saved step 59" in log and "val/loss" in log
    assert re.search(r"60 steps in [\d.]+ s, [\d,]+ tokens/s: waiting for data \d", log)


@pytest.mark.parametrize(
    "changes",
    [
        {"eval_interval": 7},
        pytest.param({"eval_batches": 0}, marks=pytest.mark.tables),
        pytest.param({"log_interval": 9}, marks=pytest.mark.tables),
        pytest.param({"max_checkpoints": 2, "sample_tokens": 0}, marks=pytest.mark.tables),
        {"max_checkpoints": 0, "save_every_steps": 25, "keep_best": 1, "keep_milestones": "false"},
    ],
    ids=str,
)
def test_looking_at_the_training_does_not_change_it(changes, whole):
    assert main(flags(**changes)) == 0
    assert weights(only_run()) == whole[0]


def test_tracking_does_not_change_the_training(whole, monkeypatch):
    """With the backend off nothing is written; the loss at the end is the same."""
    from train import loop

    seen = []
    step = loop._step
    monkeypatch.setattr(loop, "_step", lambda *a: seen.append(step(*a)) or seen[-1])
    monkeypatch.setenv("MLFLOW_TRACK_BACKEND", "off")
    assert main(flags()) == 0
    assert [repr(loss) for loss, _ in seen] == whole[1]
    assert not Path("runs").exists()


def test_another_seed_is_another_run(whole):
    assert main(flags(seed=7)) == 0
    assert weights(only_run()) != whole[0]


@pytest.mark.faults
@pytest.mark.parametrize("seed", sampled(1, 3))
def test_killed_at_any_moment_and_resumed_is_the_uninterrupted_run(seed, whole):
    generator = random.Random(seed)
    for attempt in range(generator.choice((1, 2))):
        process = job(*flags(run_name="k", resume="auto"))
        kill_after(process, "k", generator.randrange(0, 55) + attempt, generator.uniform(0, 0.05))
    process = job(*flags(run_name="k", resume="auto"))
    _, said = process.communicate()
    assert process.returncode == 0, said
    finished = [r for r in mt.load_runs("runs") if r.status == "FINISHED"]
    assert (weights(finished[-1]), losses(finished[-1])) == whole
    if len(mt.load_runs("runs")) == 1 and finished[0].info["restores"]:
        assert finished[0].info["restores"][-1]["is_exact"], said


GUARDS = {
    "the optimizer": """
        import train.loop as loop
        make = loop.make_optimizer
        def forgetful(*a, **k):
            optimizer = make(*a, **k)
            optimizer.register_state_dict_post_hook(lambda o, s: {**s, "state": {}})
            return optimizer
        loop.make_optimizer = forgetful
    """,
    "the generators": """
        from mlflow_track.checkpoint import randomness
        randomness.restore = lambda *a, **k: []
    """,
}


@pytest.mark.parametrize("guard", GUARDS)
def test_without_a_part_of_the_state_the_resumed_run_is_another(guard, whole):
    """The negative controls of the test above: what is left out is left out of both attempts."""
    process = job(*flags(run_name="k"), prelude=GUARDS[guard] + KILLED_AT_30)
    process.communicate()
    process = job(*flags(run_name="k", resume="must"), prelude=GUARDS[guard])
    _, said = process.communicate()
    assert process.returncode == 0, said
    assert only_run().info["restores"][0]["step"] == 27
    assert losses(only_run()) != whole[1]


def test_a_loss_that_is_not_finite_ends_the_run_before_the_optimizer_step():
    with pytest.raises(FloatingPointError, match=r"step \d+: loss is .* nan"):
        main(flags(learning_rate=1e30, grad_clip=0, warmup_steps=0, max_checkpoints=60))
    run = only_run()
    assert run.status == "FAILED"
    assert "FloatingPointError" in run.info["attempts"][-1]["error"]
    assert run.checkpoints
    assert all(c.manifest.is_finite for c in run.checkpoints)
    for checkpoint in run.checkpoints:
        checkpoint.verify()


def test_other_data_is_refused_on_resume(tmp_path: Path):
    (tmp_path / "a.txt").write_text("The quick brown fox jumps over the lazy dog. " * 50)
    process = job(*flags(run_name="k", data="a.txt", max_steps=100_000))
    kill_after(process, "k", 30, 0)
    (tmp_path / "a.txt").write_text("Something else altogether, and no less words. " * 50)
    process = job(*flags(run_name="k", data="a.txt", max_steps=100_000, resume="must"))
    _, said = process.communicate()
    assert process.returncode != 0
    assert "use the same data or start a new run" in said


def test_ctrl_c_saves_stops_and_the_rest_comes_later(whole):
    process = job(*flags(run_name="k", resume="auto"), prelude=SLOW)
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        found = [r.path / "metrics.csv" for r in mt.load_runs("runs")]
        if found and found[0].exists() and found[0].read_bytes().count(b"\n") > 10:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    run = only_run()
    assert run.status == "KILLED", said
    newest = run.checkpoints[-1].step
    assert newest == run.metrics().index[-1] < 59
    assert "asked to stop" in json.dumps(run.checkpoints[-1].manifest.policies)
    assert main(flags(run_name="k", resume="must")) == 0
    assert (weights(only_run()), losses(only_run())) == whole


KILLED_AT_30 = """
        import os, train.loop as loop
        step_of = loop._step
        loop._step = lambda *a: os.kill(os.getpid(), 9) if a[-1] == 30 else step_of(*a)
"""

SLOW = """
    import time, train.loop as loop
    step = loop._step
    loop._step = lambda *a: (time.sleep(0.05), step(*a))[1]
"""


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"data": "absent.txt"}, "no such file"),
        ({"resume": "must"}, "no unfinished run"),
        ({"device": "cuda:99"}, "--device"),
        ({"context_length": 100_000}, "--context-length"),
        ({"plan": "true", "data": "absent.txt"}, "no such file"),
        ({"deadline": "soon"}, "--deadline must be Unix seconds"),
    ],
)
def test_what_cannot_begin_ends_with_status_2_and_one_line(changes, part, capsys):
    assert main(flags(**changes)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert part in line


def test_early_stopping_saves_and_stops():
    assert main(flags(early_stopping_patience=1, learning_rate=0, max_steps=200)) == 0
    run = only_run()
    last = int(run.metrics().index[-1])
    assert last == 29  # the second evaluation was no better than the first
    assert run.checkpoints[-1].step == last


def test_a_plan_is_printed_and_nothing_is_left(capsys, whole, tmp_path):
    arguments = flags(keep_last=1, keep_milestones="false", save_on_improvement=0.01)
    assert main([*arguments, "--plan"]) == 0
    said = capsys.readouterr()
    assert said.err == "" and list(tmp_path.iterdir()) == []
    assert "6 saves in steps 0 to 59: 6, 17, 27, 38, 48, 59" in said.out
    assert "OnImprovement" in said.out and "keep: the last 1" in said.out
    # Planning draws numbers, and the job after it in this process is the same.
    assert main(flags()) == 0
    assert weights(only_run()) == whole[0]
    size = sum(f.stat().st_size for f in only_run().checkpoints[-1].path.iterdir())
    (planned,) = re.findall(r"one checkpoint: ([\d.]+) kB", said.out)
    assert 1000 * float(planned) == pytest.approx(size, rel=0.01)


def test_every_policy_is_within_reach_of_the_flags():
    assert (
        main(
            flags(
                max_checkpoints=2,
                save_at_steps="3,40",
                save_every_steps=20,
                save_every_minutes=60,
                save_on_improvement=0.01,
                save_budget=0.5,
                keep_last=1,
                deadline="90m",
            )
        )
        == 0
    )
    run = only_run()
    assert [c.step for c in run.checkpoints] == [3, 6, 40, 59]
    asked = {name for c in run.checkpoints for name in c.manifest.policies}
    asked |= set(re.findall(r"(\w+): ", (run.path / "training.log").read_text()))
    assert asked >= {"EvenlySpaced", "AtSteps", "EverySteps", "OnImprovement", "Budget"}
    assert "MLFLOW_TRACK_DEADLINE" not in os.environ


def test_keep_best_evaluates_at_each_save():
    changes = {"eval_interval": 50, "max_checkpoints": 0, "keep_milestones": "false"}
    assert main(flags(save_every_steps=7, keep_best=1, **changes)) == 0
    run = only_run()
    losses = run.metrics()["val/loss"].dropna()
    assert losses.index.tolist() == [7, 14, 21, 28, 35, 42, 49, 56, 59]
    assert {c.step for c in run.checkpoints} == {int(losses.idxmin()), 59}


def test_a_deadline_that_is_near_saves_and_stops_and_other_policies_continue_exactly():
    assert main(flags(deadline="1s", max_steps=30)) == 0
    run = only_run()
    assert run.status == "KILLED" and "the deadline" in (run.path / "training.log").read_text()
    assert run.checkpoints[-1].step == run.metrics().index[-1] == 0
    changes = {"save_every_steps": 10, "keep_last": 2, "save_on_improvement": 0.1}
    assert main(flags(deadline="90m", resume="must", max_steps=30, **changes)) == 0
    (restore,) = only_run().info["restores"]
    assert restore["is_exact"] is True, restore


def test_a_sample_and_bits_per_byte_need_text(tmp_path: Path):
    np.save(tmp_path / "t.npy", np.random.default_rng(0).integers(0, 50, 4000).astype(np.uint16))
    assert main(flags(data="t.npy", max_steps=20)) == 0
    run = only_run()
    assert "val/bits_per_byte" not in run.metrics()
    sample = (run.path / "artifacts/sample.txt").read_text()
    assert all(word.isdigit() for word in sample.split())
