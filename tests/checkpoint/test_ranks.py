"""What ranks must agree on: clocks and metrics of rank 0 decide, and none waits for ever."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import mlflow_track as mt
from mlflow_track.checkpoint.ranks import Ranks, rank_and_size
from tests import forked

# Processes that import torch on a busy machine take their time.
pytestmark = pytest.mark.timeout(300)
ROOT = Path(__file__).resolve().parents[2]


def on_two_ranks(code: str) -> list[list[object]]:
    """Run `code` in two processes that form a job; what each of them printed as JSON lines."""
    base = {**os.environ, "PYTHONPATH": str(ROOT), "WORLD_SIZE": "2"}
    begin = """
        import json, os, random, torch, torch.distributed as dist, mlflow_track as mt
        rank = int(os.environ["RANK"])
        dist.init_process_group(
            "gloo", init_method="file://" + os.path.abspath("meet"), rank=rank, world_size=2)
        def say(*values): print(json.dumps(values), flush=True)
    """
    text = textwrap.dedent(begin) + textwrap.dedent(code) + "\ndist.destroy_process_group()\n"
    processes = [
        forked.Popen(
            [sys.executable, "-c", text],
            env={**base, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = []
    for process in processes:
        out, err = process.communicate(timeout=250)
        assert process.returncode == 0, err
        said.append([json.loads(line) for line in out.splitlines()])
    return said


def test_time_and_metrics_of_rank_0_decide_and_each_rank_gets_its_generators_back() -> None:
    first, second = on_two_ranks("""
        import time
        # The other rank's clock is a day ahead, and its metric is another one.
        true_time, ahead = time.monotonic, 86400.0 * rank
        time.monotonic = lambda: true_time() + ahead
        model, draws = torch.nn.Linear(2, 2), []
        state = {"model": model}
        torch.manual_seed(rank), random.seed(rank)
        with mt.start_run(resume="auto") as run:
            checkpoints = run.checkpoints(
                save=mt.EveryMinutes(60) | mt.OnImprovement("loss"), max_steps=20,
                stop=mt.EarlyStopping("loss", patience=3))
            checkpoints.restore(state)
            for step in range(20):
                loss = [5.0, 4.0, 6.0, 6.0, 6.0, 6.0][step] if rank == 0 else -float(step)
                run.log_metrics({"loss": loss}, step=step)
                due = checkpoints.due(step)
                saved = checkpoints.step(step, state)
                say(step, saved, run.should_stop, due)
                if run.should_stop:
                    break
            say(run.stop_reason)
            say(torch.rand(3).tolist(), random.random())
            run.finish("FAILED")
        with mt.start_run(resume="must") as run:
            torch.manual_seed(99), random.seed(99)
            with torch.no_grad(): model.weight.add_(rank + 1)
            next_step = run.checkpoints().restore(state)
            say(torch.rand(3).tolist(), random.random())
            say(next_step, model.weight.tolist())
    """)
    why = "no improvement in loss for 3 values (the best is 4 at step 1)"
    assert (
        first[:6]
        == second[:6]
        == [
            [0, True, False, "the first loss: 5"],
            [1, True, False, "loss improved by 1 from 5 to 4"],
            [2, False, False, None],
            [3, False, False, None],
            [4, True, True, f"early stopping: {why}"],
            [f"early stopping: {why}"],
        ]
    )
    # The draws after the save come again after the restore, and each rank has its own.
    assert first[6] == first[7] and second[6] == second[7] and first[6] != second[6]
    assert first[8] == second[8] and first[8][0] == 5


def test_ranks_exchange_values_of_every_kind_and_receive_an_error_of_rank_0() -> None:
    with mt.start_run() as run:
        run.checkpoints().save(3, {"w": 1})
        run.finish("FAILED")
    (run.path / "checkpoints/step-000000003/state.json").write_text("{}")
    first, second = on_two_ranks("""
        from mlflow_track.checkpoint.ranks import Ranks, rank_and_size
        ranks = Ranks.here()
        tensors = {"a": torch.arange(6.).reshape(2, 3).t(), "b": torch.tensor(True),
                   "c": torch.zeros(0, 3), "d": torch.tensor(1.5, dtype=torch.bfloat16)}
        value = {"t": tensors, "x": (1, None, float("nan")), "s": "ä"} if rank == 0 else None
        got = ranks.same(value)
        say({k: [str(v.dtype), v.tolist()] for k, v in got["t"].items()}, repr(got["x"]), got["s"])
        say(ranks.gather({"rank": rank, "pad": "x" * 100 * rank}), ranks.largest([rank, -rank]))
        with mt.start_run(resume="must") as run:
            try:
                run.checkpoints().restore({"w": 0})
            except ValueError as error:
                say(str(error))
    """)
    assert first[:2] == second[:2]
    assert first[1][1] == [1, 0]  # type: ignore[index]
    assert "all checkpoints are corrupt" in str(first[2]) and "all checkpoints are corrupt" in str(
        second[2]
    )


def test_a_process_without_a_job_is_alone_and_decides_for_itself() -> None:
    ranks = Ranks.here()
    assert ranks.is_alone and ranks.is_first
    assert ranks.same({"a": 1}) == {"a": 1}
    assert ranks.gather(3) == [3]
    assert ranks.largest((1, 2)) == [1, 2]


def test_a_job_whose_ranks_all_write_nothing_stops_together() -> None:
    first, second = on_two_ranks("""
        import signal
        with mt.start_run(backend="off") as run:
            checkpoints = run.checkpoints()
            step = checkpoints.restore({"w": 1})
            while not run.should_stop:
                if step == 3 and rank == 1:
                    os.kill(os.getpid(), signal.SIGUSR1)
                checkpoints.step(step, {"w": 1})
                step += 1
            say(step)
    """)
    assert first == second == [[4]]


# --- which process this is ---

LAUNCHERS = {
    "torchrun": [
        {"RANK": r, "WORLD_SIZE": "2", "LOCAL_RANK": r, "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}
        for r in "01"
    ],
    "Lightning": [{"NODE_RANK": "0", "LOCAL_RANK": r, "WORLD_SIZE": "2"} for r in "01"],
    "Lightning, two nodes": [{"NODE_RANK": r, "LOCAL_RANK": "0", "WORLD_SIZE": "2"} for r in "01"],
    "srun": [
        {"SLURM_PROCID": r, "SLURM_LOCALID": r, "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0"}
        for r in "01"
    ],
    "mpirun": [
        {"OMPI_COMM_WORLD_RANK": r, "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": r}
        for r in "01"
    ],
    "mpirun in a batch script": [
        {
            **{"SLURM_PROCID": "0", "SLURM_NTASKS": "2"},
            **{"OMPI_COMM_WORLD_RANK": r, "OMPI_COMM_WORLD_SIZE": "2"},
        }
        for r in "01"
    ],
    "mpiexec": [{"PMI_RANK": r, "PMI_SIZE": "2"} for r in "01"],
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_ranks_are_those_of_the_launcher(launcher: str) -> None:
    assert [rank_and_size(variables) for variables in LAUNCHERS[launcher]] == [(0, 2), (1, 2)]


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({}, (0, 1)),
        # Left by a job script: a rank without a size, a size without a rank, nonsense.
        ({"RANK": "1"}, (0, 1)),
        ({"RANK": "1", "WORLD_SIZE": "1"}, (0, 1)),
        ({"RANK": "1", "WORLD_SIZE": ""}, (0, 1)),
        ({"WORLD_SIZE": "4"}, (0, 1)),
        ({"RANK": "first", "WORLD_SIZE": "4"}, (0, 1)),
        ({"RANK": "-1", "WORLD_SIZE": "4"}, (0, 1)),
        ({"RANK": "4", "WORLD_SIZE": "4"}, (0, 1)),
        ({"RANK": "9" * 9999, "WORLD_SIZE": "9" * 9999}, (0, 1)),
        ({"LOCAL_RANK": "1", "WORLD_SIZE": "2"}, (0, 1)),
        ({"LOCAL_RANK": "1", "NODE_RANK": "0"}, (0, 1)),
        # Slurm: a batch script, a job step of one task in it, a shell in an allocation (salloc).
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, (0, 8)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_STEP_ID": "2"}, (0, 1)),
        ({"SLURM_NTASKS": "8", "SLURM_JOB_ID": "5"}, (0, 1)),
        # The inner launcher counts.
        ({"RANK": "3", "WORLD_SIZE": "4", "SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, (3, 4)),
        ({"RANK": "0", "WORLD_SIZE": "1", "SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, (0, 1)),
        ({"RANK": "1", "SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, (1, 2)),
        (
            {
                **{"NODE_RANK": "0", "LOCAL_RANK": "1", "WORLD_SIZE": "2"},
                **{"SLURM_PROCID": "0", "SLURM_NTASKS": "2"},
            },
            (1, 2),
        ),
        (
            {"NODE_RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"},
            (5, 8),
        ),
    ],
)
def test_rank_and_size_of_other_variables(
    variables: dict[str, str], found: tuple[int, int]
) -> None:
    assert rank_and_size(variables) == found


def test_a_rank_that_is_said_beats_the_joined_job_which_beats_the_launcher() -> None:
    variables = {"RANK": "1", "WORLD_SIZE": "2"}
    assert rank_and_size(variables, (2, 4)) == (2, 4)
    assert rank_and_size(variables, (2, 4), 0) == (0, 4)
    assert rank_and_size(variables, None, 5) == (5, 6)
    assert rank_and_size({}, None, 0) == (0, 1)


STARTS_A_RUN = """
import mlflow_track as mt
with mt.start_run(experiment="e", backend="local") as run:
    run.log_metrics({"a": 1.0}, step=0)
"""


def runs_of(processes: list[dict[str, str]], code: str = STARTS_A_RUN) -> int:
    """How many runs are there when a process with each of the variables has ended."""
    base = {**os.environ, "PYTHONPATH": str(ROOT)}
    started = [subprocess.Popen([sys.executable, "-c", code], env={**base, **v}) for v in processes]
    assert [process.wait(100) for process in started] == [0] * len(started)
    return len(mt.load_runs("runs"))


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_job_of_two_processes_is_one_run(launcher: str) -> None:
    assert runs_of(LAUNCHERS[launcher]) == 1


def test_without_the_rule_each_process_of_a_job_would_be_a_run() -> None:
    """The negative control."""
    unguard = "import mlflow_track.start as s; s.rank_and_size = lambda *a: (0, 1)"
    assert runs_of(LAUNCHERS["srun"], unguard + STARTS_A_RUN) == 2


def test_processes_without_a_job_are_a_run_each_also_where_a_rank_was_left() -> None:
    assert runs_of([{}, {"RANK": "1"}]) == 2


def test_a_job_that_no_variable_tells_of_is_known_once_it_is_joined() -> None:
    first, second = on_two_ranks("""
        del os.environ["RANK"], os.environ["WORLD_SIZE"]
        with mt.start_run() as run:
            run.log_metrics({"a": 1.0}, step=0)
        dist.barrier()
        say(len(mt.load_runs("runs")))
    """)
    assert first == second == [[1]]


def test_the_rank_that_start_run_is_given_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    with mt.start_run(rank=1):
        pass
    assert not Path("runs").exists()
    for name, value in LAUNCHERS["srun"][1].items():
        monkeypatch.setenv(name, value)
    with mt.start_run(rank=0):
        pass
    assert len(mt.load_runs("runs")) == 1
    for wrong, error in ((-1, ValueError), ("0", TypeError), (True, TypeError)):
        with pytest.raises(error, match="rank"):
            mt.start_run(rank=wrong)  # type: ignore[arg-type]


def test_an_optimizer_that_is_split_over_the_ranks_resumes_exactly() -> None:
    said = on_two_ranks("""
        import os.path
        from torch.distributed.optim import ZeroRedundancyOptimizer

        def trained(name, stop):
            torch.manual_seed(0)
            model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
            optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.AdamW, lr=0.1)
            state = {"model": model, "optimizer": optimizer}
            with mt.start_run(run_name=name, resume="auto") as run:
                checkpoints = run.checkpoints(save=mt.AtSteps(2))
                for step in range(checkpoints.restore(state), stop):
                    torch.manual_seed(step)
                    optimizer.zero_grad()
                    model(torch.randn(4, 3)).square().mean().backward()
                    optimizer.step()
                    checkpoints.step(step, state)
                if stop == 3:
                    run.finish("KILLED")
                return [p.tolist() for p in model.parameters()], checkpoints.report

        whole, _ = trained("whole", 6)
        trained("halves", 3)
        halves, report = trained("halves", 6)
        say(whole == halves, rank or report.verdict, len(mt.load_runs("runs")) if rank == 0 else 0)
    """)
    assert said == [[[True, "exact: yes", 2]], [[True, 1, 0]]]
