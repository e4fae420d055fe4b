"""Files of Lightning's CSVLogger, and exported ones, come in whatever state they are in."""

from __future__ import annotations

import io
import json
import math
import os
import shlex
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_track.analysis.load import LoadedRun, load_runs
from mlflow_track.cli import main
from mlflow_track.cli.exchange.importing import _with_progress
from mlflow_track.importers.formats import open_source
from tests.importers.sources import lightning

ROWS = "epoch,step,val_loss,train_loss\n0,9,,0.5\n0,9,0.75,\n1,19,nan,inf\n"
HPARAMS = """
lr: 0.001
betas: !!python/tuple
- 0.9
- 0.95
model: {dim: 8}
act: !!python/name:torch.nn.GELU ''
config: !!python/object:app.Config
  depth: 2
"""


def run_import(*words: str) -> Result:
    result = CliRunner().invoke(main, ["import", *words], prog_name="mlflow-track")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result


def imported(*words: str) -> tuple[list[dict[str, Any]], list[LoadedRun]]:
    return json.loads(run_import(*words, "--json").stdout)["runs"], load_runs("runs")


def test_a_folder_of_the_logger_is_imported_with_its_params() -> None:
    for version in (0, 1):
        lightning(Path(f"logs/lightning_logs/version_{version}"), ROWS, HPARAMS)
    result = run_import("logs")
    assert result.exit_code == 0 and "2 runs: 2 imported" in result.stdout
    first, second = load_runs("runs")
    assert {first.name, second.name} == {"version_0", "version_1"}
    assert first.experiment == "lightning_logs" and first.status == "FINISHED"
    assert first.params == {
        "lr": 0.001,
        "betas": [0.9, 0.95],
        "model": {"dim": 8},
        "act": "torch.nn.GELU",
        "config": {"depth": 2},
    }
    frame = first.metrics()
    assert frame.index.tolist() == [9, 19] and frame.train_loss.tolist() == [0.5, math.inf]
    assert frame.val_loss.tolist()[0] == 0.75 and math.isnan(frame.val_loss[19])
    assert set(frame.time) == {os.stat("logs/lightning_logs/version_0/metrics.csv").st_mtime}


def test_importing_again_changes_nothing_and_a_longer_file_updates() -> None:
    lightning(Path("logs/demo/version_0"), ROWS)
    assert imported("logs")[0][0]["state"] == "imported"
    assert imported("logs")[0][0]["state"] == "unchanged"
    lightning(Path("logs/demo/version_0"), ROWS + "2,29,0.25,0.125\n")
    rows, (run,) = imported("logs")
    assert rows[0]["state"] == "updated" and run.summary.last_step == 29


def test_an_exported_file_has_its_own_names_for_steps_and_times() -> None:
    Path("chart.csv").write_text('Wall time,Step,"a, b"\n1700000000.5,0,1\n1700000001,1,2')
    rows, (run,) = imported("chart.csv", "--experiment", "old")
    assert rows[0]["problems"] == [] and (run.experiment, run.name) == ("old", "chart")
    assert run.metrics()["a, b"].tolist() == [1, 2]
    assert run.metrics().time.tolist() == [1700000000.5, 1700000001]
    Path("dates.csv").write_text("step,timestamp,loss\n0,2023-11-14T22:13:20Z,1\n")
    run_import("dates.csv", "--to", "other")
    assert load_runs("other")[0].metrics().time.tolist() == [1700000000]


def test_single_files_beside_runs_are_named_with_the_command_that_imports_them() -> None:
    lightning(Path("logs/demo/version_0"), ROWS)
    for name in ("my chart.csv", "b.csv", "c.csv", "d.csv"):
        Path("logs", name).write_text("step,loss\n0,1\n")
    Path("logs/words.csv").write_text("word,count\n")
    result = run_import("logs")
    lines = [line for line in result.stderr.splitlines() if "mlflow-track import" in line]
    assert len(lines) == 3 and "words.csv" not in result.stderr and "1 more file" in result.stderr
    *_, command = lines[2].partition("mlflow-track import ")
    assert run_import(*shlex.split(command)).exit_code == 0 and len(load_runs("runs")) == 2
    Path("logs/demo/version_0/metrics.csv").unlink()
    assert run_import("logs").stderr.count("mlflow-track import") == 3


def test_damage_is_named_and_the_rest_imported() -> None:
    lightning(Path("logs/demo/version_0"), ROWS + "x,y\n2,29,oops,0.25\n3,3.5,1,1\n4,39,0.1,0.2")
    lightning(Path("logs/demo/version_1"), ROWS, "lr: [1")
    lightning(Path("logs/demo/version_2"), ROWS)
    Path("logs/demo/version_2/metrics.csv").write_bytes(b"step,a\n1,\xff\n1_0,2\n2,3\n")
    result = run_import("logs")
    assert result.exit_code == 1 and "3 runs: 3 imported" in result.stdout
    for words in ("'oops'", "3.5", "and 1 more", "hparams.yaml is damaged", "line 2", "'1_0'"):
        assert words in result.stderr, words
    by_name = {run.name: run.summary.metrics for run in load_runs("runs")}
    assert by_name["version_0"]["train_loss"].last == 0.25
    assert by_name["version_2"]["a"].last == 3


def test_columns_of_one_name_are_named() -> None:
    Path("a.csv").write_text("step,loss,,loss,\n1,2,3,4,5\n")
    result = run_import("a.csv")
    assert "column 'loss' is there 2 times: the first one is imported" in result.stderr
    assert load_runs("runs")[0].summary.metrics["loss"].last == 2


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    secret = lightning(tmp_path / "secret", ROWS)
    for number in range(3):
        (tmp_path / f"logs/demo/version_{number}").mkdir(parents=True)
    os.mkfifo("logs/demo/version_0/metrics.csv")
    os.symlink(secret / "metrics.csv", "logs/demo/version_1/metrics.csv")
    os.symlink(secret, "logs/demo/version_3")
    lightning(Path("logs/demo/version_2"), ROWS)
    os.symlink("/etc/passwd", "logs/demo/version_2/hparams.yaml")
    rows, (run,) = imported("logs")
    assert run.name == "version_2" and "is a link" in rows[0]["problems"][0]
    # A link that the user names is another thing.
    os.symlink(tmp_path / "logs", "link")
    assert imported("link")[0][0]["state"] == "unchanged"


def test_a_line_without_an_end_is_not_read_into_memory() -> None:
    folder = lightning(Path("logs/demo/version_0"), "step,a\n1,2\n")
    with open(folder / "metrics.csv", "ab") as file:
        file.truncate(1 << 33)
    rows, (run,) = imported("logs")
    assert "longer than" in rows[0]["problems"][0] and run.summary.metrics["a"].last == 2


def test_a_header_that_is_too_long_is_named() -> None:
    lightning(Path("logs/demo/version_0"), ROWS)
    lightning(Path("logs/demo/version_1"), "step," + "x" * (1 << 22) + "\n1,2\n")
    rows, runs = imported("logs")
    assert len(runs) == 1 and "the first line is longer" in rows[1]["problems"][0]


def test_records_and_other_files_are_passed_over() -> None:
    lightning(Path("logs/demo/version_0"), ROWS)
    run_import("logs")
    Path("runs/metrics.csv").write_text("name,value\n")
    (record,) = Path("runs").glob("*/2*")
    lightning(record / "artifacts/deep", ROWS)
    (record / "system_metrics.csv").write_text("step,time,loss\n0,1,1\n")
    for folder in ("runs", str(record)):
        result = run_import(folder)
        assert result.exit_code == 3 and "looked for" in result.stderr
        assert "note" not in result.stderr


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_is_drawn_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    lightning(Path("logs/demo/version_0"), ROWS)
    found = list(open_source("logs")[0].find())
    for stream, is_hidden in ((io.StringIO(), False), (Terminal(), True), (Terminal(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        assert list(_with_progress(found, hidden=is_hidden)) == found
        is_drawn = isinstance(stream, Terminal) and not is_hidden
        assert ("importing" in stream.getvalue()) == is_drawn


@settings(max_examples=20)
@given(data=st.data())
def test_no_damage_ends_in_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("case")
    whole = (ROWS.replace("\n", "\r\n") * 2).encode()
    at = data.draw(st.integers(0, len(whole)))
    noise = data.draw(st.binary(max_size=20))
    lightning(folder / "demo/version_0", "")
    (folder / "demo/version_0/metrics.csv").write_bytes(whole[:at] + noise)
    cut = data.draw(st.integers(0, len(HPARAMS)))
    (folder / "demo/version_0/hparams.yaml").write_bytes(HPARAMS.encode()[:cut] + noise)
    lightning(folder / "demo/version_1", ROWS)
    to = str(folder / "runs")
    result = run_import(str(folder), "--to", to)
    assert result.exit_code in (0, 1), result.output
    named = [line for line in result.stderr.splitlines() if not line.startswith("note: ")]
    assert (result.exit_code == 1) == bool(named)
    assert "version_1" in {run.name for run in load_runs(to)}


def test_a_given_format_is_the_only_one_that_an_error_names() -> None:
    Path("a.csv").write_text("step,loss\n1,2\n")
    result = run_import("a.csv", "--format", "trackio")
    assert result.exit_code == 3 and "Trackio" in result.stderr and "Lightning" not in result.stderr


def test_a_server_that_does_not_answer_is_named_with_its_address() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # Not listening: a connection is refused.
        uri = f"http://me:secret@127.0.0.1:{taken.getsockname()[1]}"
        result = run_import(uri)
    shown = uri.replace("me:secret", "me:***")
    assert result.exit_code == 1 and f"{shown} cannot be read: " in result.stderr, result.stderr
