"""A run with many metrics, logged one by one, at an MLflow store and back from there."""

from __future__ import annotations

import json
import shutil

import mlflow_track as mt
from mlflow_track.analysis.frames import read_frame
from mlflow_track.backends.protocol import Backend, Found, MetricPoint
from mlflow_track.mirror.fetch import write_history
from mlflow_track.mirror.status import read_status
from mlflow_track.record.info import read_info
from mlflow_track.record.row_format import LONG_HEADER
from tests.mirror.conftest import client_of, files_under, history, only_run

JOB = """
import sys, time, torch, mlflow_track as mt
last = int(sys.argv[1])
names = [f"layer{number}/norm" for number in range(80)]
with mt.start_run(experiment="e", run_name="r", resume="auto") as run:
    checkpoints = run.checkpoints(save=mt.EverySteps(4))
    state = {"w": torch.zeros(3)}
    for step in range(checkpoints.restore(state), 10):
        for number, name in enumerate(names):
            run.log_metric(name, number + step / 10, step=step)
            time.sleep(0.0003)  # The values of a step are of several milliseconds.
        run.log_metrics({"loss": step, "odd*": step}, step=step)
        checkpoints.step(step, state)
        if step == last:
            raise SystemExit(3)
"""


def test_each_value_arrives_once_and_the_run_continues_from_there_elsewhere(
    run_script, store, tmp_path
):
    assert run_script(JOB, "6", MLFLOW_TRACKING_URI=store).returncode == 3
    (former,) = mt.load_runs("runs")
    status = read_status(former.path, "mlflow")
    lines = [(former.path / f).read_text().count("\n") for f in ("metrics.csv", "metrics.long.csv")]
    assert status.is_complete and status.rows == sum(lines) - 2
    manifest = json.loads((former.checkpoints[-1].path / "manifest.json").read_text())
    assert manifest["metrics_position"] and manifest["metrics_long_position"]
    run = only_run(store, "e")
    assert {"record/metrics.csv", "record/metrics.long.csv"} <= files_under(store, run.info.run_id)

    shutil.move("runs", tmp_path / "another-machine")
    done = run_script(JOB, "-1", MLFLOW_TRACKING_URI=store)
    assert done.returncode == 0, done.stderr
    (record,) = mt.load_runs("runs")
    assert record.id == former.id and record.status == "FINISHED"
    frame = record.metrics()
    assert frame.index.tolist() == list(range(10)) and frame.notna().all(axis=None)
    assert frame["layer79/norm"].tolist() == [79 + step / 10 for step in range(10)]
    # Steps 5 and 6 came again here, and not to the server.
    (rewind,) = read_info(record.path).rewinds
    assert rewind.step == 4
    run = only_run(store, "e")
    for name in ("layer0/norm", "layer79/norm", "loss", "odd_"):
        wanted = [(step, frame[name.replace("_", "*")][step]) for step in range(10)]
        assert history(store, run.info.run_id, name) == wanted
    told = json.loads(run.data.tags["mlflow_track.rewinds"])
    assert told["rewinds"][0]["rows"] == rewind.rows + (rewind.long.rows if rewind.long else 0)
    assert {*told["largest_difference"].values()} == {0.0}
    assert client_of(store).get_run(run.info.run_id).info.status == "FINISHED"


def test_a_kill_between_the_files_of_a_rewind_sends_no_value_twice(run_script, store):
    # The trainer is killed when the first of the two files was rewound, and continued.
    killed = """
import os, signal
from mlflow_track.record import append_file
rewind, seen = append_file.AppendFile.rewind, []
def die(self, *arguments):
    if seen:
        os.kill(os.getpid(), signal.SIGKILL)
    seen.append(1)
    return rewind(self, *arguments)
append_file.AppendFile.rewind = die
"""
    assert run_script(JOB, "6", MLFLOW_TRACKING_URI=store).returncode == 3
    assert run_script(killed + JOB, "-1", MLFLOW_TRACKING_URI=store).returncode == -9
    (record,) = mt.load_runs("runs")
    assert read_info(record.path).rewinding is not None
    done = run_script(JOB, "-1", MLFLOW_TRACKING_URI=store)
    assert done.returncode == 0, done.stderr
    frame = record.metrics()
    assert frame.index.tolist() == list(range(10)) and frame.notna().all(axis=None)
    run = only_run(store, "e")
    for name in ("layer0/norm", "layer79/norm", "loss"):
        assert [step for step, _ in history(store, run.info.run_id, name)] == list(range(10))


def test_a_history_is_rebuilt_with_a_line_a_value_where_few_of_many_have_one(tmp_path):
    class Server(Backend):
        """A store whose values came one by one."""

        def history(self, run_id: str, key: str) -> list[MetricPoint]:
            number = 1 if key == "m*" else int(key.removeprefix("m"))
            return [MetricPoint(key, float(number), 1000 * (80 * s + number), s) for s in range(5)]

    names = ["m0", "m*", *(f"m{number}" for number in range(2, 80))]
    found = Found("run", "record", "FINISHED", None, dict.fromkeys(names, 4))
    positions = write_history(tmp_path, found, Server())
    lines = (tmp_path / "metrics.long.csv").read_bytes()
    assert positions["metrics.long.csv"].acknowledged == len(lines) - len(LONG_HEADER)
    assert (tmp_path / "metrics.csv").read_bytes() == b"step,time\n"
    frame = read_frame(tmp_path / "metrics.csv")
    assert frame["m3"].tolist() == [3.0] * 5 and frame["m*"].tolist() == [1.0] * 5
    assert len(frame.columns) == 81
