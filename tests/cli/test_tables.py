"""What people look at in a terminal: tables that fit, comparisons, pictures, sizes, exports."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
from click.testing import CliRunner, Result

import mlflow_track as mt
from mlflow_track.cli import main, output, plot, tables
from mlflow_track.wording import size_text
from tests.analysis.records import write
from tests.analysis.test_comparing import runs_of

NAN, INF = math.nan, math.inf


def call(*words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, list(words), prog_name="mlflow-track")
    assert result.exit_code == code, (words, result.output, result.exception)
    return result


# --- tables ---


def printed(monkeypatch, capsys, columns: int, header, rows, **options) -> tuple[list[str], str]:
    monkeypatch.setattr(output, "is_terminal", lambda: True)
    size = lambda fallback=None: SimpleNamespace(columns=columns)  # noqa: E731
    monkeypatch.setattr(shutil, "get_terminal_size", size)
    output.print_rows(header, rows, **options)
    said = capsys.readouterr()
    return [click.unstyle(line).rstrip() for line in said.out.splitlines()], said.err


@pytest.mark.parametrize("columns", [30, 40, 60, 80, 120, 500])
def test_no_number_is_cut_and_no_line_is_wider_than_the_terminal(
    columns: int, monkeypatch, capsys
) -> None:
    header = ["NAME", "STARTED", "a text", *(f"metric/{n}" for n in range(9))]
    values = [[1.2345 + n + row * 10 for n in range(9)] for row in range(3)]
    rows = [
        [f"a-longer-name-of-a-trial-{row}", "2026-01-02 03:04", "some words here", *values[row]]
        for row in range(3)
    ]
    lines, _ = printed(monkeypatch, capsys, columns, header, rows, spare=["STARTED"])
    assert max(map(len, lines)) <= columns
    words = " ".join(lines).split()
    for row in values:
        assert all(f"{value:.6g}" in words for value in row)
    # The name is in each piece, and its end tells it from the others.
    firsts = [line.split()[0] for line in lines if line]
    assert all(any(first.endswith(f"-{row}") for first in firsts) for row in range(3))


def test_columns_that_are_left_out_are_named(monkeypatch, capsys) -> None:
    header, row = ["NAME", "STARTED", "loss"], ["r", "2026-01-02 03:04", 0.123456]
    lines, err = printed(monkeypatch, capsys, 20, header, [row], spare=["STARTED"])
    assert "0.123456" in lines[1] and "2026" not in "".join(lines)
    assert "columns that do not fit: STARTED" in " ".join(err.split())
    lines, err = printed(monkeypatch, capsys, 60, header, [row], spare=["STARTED"])
    assert "2026-01-02 03:04" in lines[1] and err == ""


def test_a_table_without_rows_and_wide_letters_fit(monkeypatch, capsys) -> None:
    assert printed(monkeypatch, capsys, 10, ["NAME", "loss"], [])[0] == ["NAME  loss"]
    rows = [["名" * 30, 1.5]]
    lines, _ = printed(monkeypatch, capsys, 30, ["NAME", "loss"], rows)
    assert max(map(tables.text_width, lines)) <= 30 and "1.5" in lines[1]


def test_a_table_for_a_paper_has_names_as_text() -> None:
    write(Path("runs/e/a"), [(0, {"val_loss": 1.0, "a|b": 2.0})], name="$x_1$ & 50%")
    write(Path("runs/e/b"), [(0, {"val_loss": 2.0, "a|b": 2.0})], name="b")
    text = call("compare", "--format", "md").stdout
    header, line, *rows = text.splitlines()
    assert r"val\_loss best" in header and set(line) <= set("|-: ") and len(rows) == 2
    assert r"\$x\_1\$ & 50%" in rows[0] and "**1**" in rows[0]
    assert all(len(re.findall(r"(?<!\\)\|", row)) == header.count(" | ") + 2 for row in rows)
    text = call("compare", "--format", "latex").stdout
    assert r"\$x\_1\$ \& 50\%" in text and r"\textbf{1}" in text and r"a\textbar{}b" in text
    assert call("compare", "--format", "csv").stdout == call("compare", "--csv").stdout


# --- comparing ---


def test_compare_sorts_and_groups_and_says_what_is_noise() -> None:
    runs_of(Path("runs"), (1, 1.0), (1, 1.1), (2, 2.0), (2, 2.2), (3, NAN))
    text = call("compare", "--sort", "-loss:best").stdout
    assert text.splitlines()[0].split() == ["n3", "n2", "n1", "n0", "n4"]
    text = call("compare", "--group-by", "params.lr").stdout
    assert "lr=1       2     1.05 ± 0.071 (n=2) *" in text and "lr=3       1     no value" in text
    assert "9.4 standard errors of that difference, more than noise" in text
    (row,) = json.loads(call("compare", "--group-by", "params.lr", "--json").stdout)
    assert row["groups"]["lr=2"]["mean"] == pytest.approx(2.1) and "more than" in row["verdict"]
    table = list(
        csv.reader(io.StringIO(call("compare", "--group-by", "params.lr", "--csv").stdout))
    )
    assert table[0] == ["group", "loss mean", "loss deviation", "loss count"]
    assert "loss not finite at" in call("compare", "n0", "n4").stdout


def test_a_copied_folder_is_told_and_served_under_two_names() -> None:
    write(Path("runs/e/one"), [(0, {"loss": 1.0})], {"lr": 1}, id="one", name="n")
    shutil.copytree("runs/e/one", "runs/e/backup")
    for words in (["ls"], ["compare"], ["plot"], ["export"], ["report"]):
        result = call(*words)
        assert "have the same id, one: all but one are copies" in result.stderr, words
    runs = {row["run"] for row in csv.DictReader(io.StringIO(call("export").stdout))}
    assert runs == {"one", "one (backup)"}
    assert "name one by its path" in call("show", "one", code=2).stderr


def test_a_folder_that_is_not_there_is_said_so() -> None:
    for words in (["ls", "nope"], ["compare", "-d", "nope"], ["show", "x", "-d", "nope"]):
        assert "folder does not exist" in call(*words, code=3).stderr


# --- pictures ---


def test_plot_watches_until_no_run_is_running(monkeypatch) -> None:
    runs_of(Path("runs"), (1, 1.0))
    statuses = iter(["RUNNING", "RUNNING", "FINISHED"])
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    sorted_runs = plot.sorted_runs

    def seen(*arguments, **options):
        (run,) = sorted_runs(*arguments, **options)
        return [SimpleNamespace(**{"status": next(statuses)}, **_fields(run))]

    def _fields(run):
        names = [*(n for n in run.__slots__ if n != "status"), "id", "name", "experiment"]
        return {name: getattr(run, name) for name in names}

    monkeypatch.setattr(plot, "sorted_runs", seen)
    assert call("plot", "--watch").stdout.count("loss\n") == 3


def test_plot_json_has_bands_and_what_is_not_finite() -> None:
    runs_of(Path("runs"), (1, 1.0), (1, 3.0), (2, INF))
    data = json.loads(call("plot", "--json", "--group-by", "params.lr").stdout)
    first, second = data["plots"][0]["curves"]
    assert first["runs"] == ["r0", "r1"] and first["ys"] == [3.0, 2.0]
    assert first["low"][0] == pytest.approx(3 - 2**0.5)
    assert second["not_finite"] == [{"x": 0, "y": "Infinity"}, {"x": 1, "y": "Infinity"}]


@pytest.mark.parametrize("kind", ["importance", "parallel"])
def test_plot_draws_params_as_a_file(kind: str) -> None:
    runs_of(Path("runs"), *((n + 1, float(n)) for n in range(6)))
    call("plot", "--kind", kind, "-o", "a.svg")
    assert "lr" in Path("a.svg").read_text()
    data = json.loads(call("plot", "--kind", kind, "-o", "a.png", "--json").stdout)
    assert data["params"][0]["param"] == "lr" and data["params"][0]["value"] == pytest.approx(1)


def test_metrics_of_the_machine_are_drawn_sorted_and_named() -> None:
    runs_of(Path("runs"), (1, 1.0), (2, 2.0))
    for number, used in enumerate((90, 10)):
        text = f"step,time,system/gpu_0_utilization_percentage\n0,1,{used}\n"
        Path(f"runs/e/r{number}/system_metrics.csv").write_text(text)
    assert "GPU 90 % (peak 90 %)" in call("show", "n0").stdout
    names = [line.split()[2] for line in call("ls", "--sort", "gpu").stdout.splitlines()[1:]]
    assert names == ["n1", "n0"]
    assert "system.gpu_percentage" in call("compare").stdout
    name = "system/gpu_0_utilization_percentage"
    assert name in call("plot", "--metric", name).stdout
    assert f"did you mean '{name}'" in call("plot", "--metric", f"{name}s", code=3).stderr
    call("report")
    assert "<h2>Machine</h2>" in Path("report.html").read_text()


def test_a_report_of_many_runs_is_small_and_shows_the_curves_early() -> None:
    runs_of(Path("runs"), *((n, float(n)) for n in range(120)))
    call("report", "--color-by", "params.lr")
    html = Path("report.html").read_text()
    assert len(html) < 600_000 and "100 runs more" in html and "linear-gradient" in html
    assert "The first 20 of 120 runs." in html


# --- sizes and exports ---


@pytest.fixture
def saved() -> Path:
    """A run with three checkpoints, each evaluated after its save; the second one is the best."""
    keep = mt.Keep(last=3, metric="val/loss")
    with mt.start_run(experiment="e", run_name="a") as run:
        checkpoints = run.checkpoints(save=mt.EverySteps(1), keep=keep)
        for step in range(1, 4):
            checkpoints.step(step, {"step": step}, metrics={"given": 7.0})
            run.log_metric("val/loss", abs(step - 2) + 0.25, step=step)
    return run.path


def test_du_counts_what_the_own_rules_would_free(saved: Path) -> None:
    data = json.loads(call("du", "--json").stdout)
    assert data["prunable"] == 0 and data["trash"] == 0
    info = json.loads((saved / "run.json").read_text())
    info["checkpoints"]["keep"] |= {"last": 1, "milestones": False}
    (saved / "run.json").write_text(json.dumps(info))
    Path("runs/.trash/old").mkdir(parents=True)
    Path("runs/.trash/old/file").write_bytes(b"x" * 50)
    data = json.loads(call("du", "--json").stdout)
    (run,) = data["runs"]
    sizes = [row["bytes"] for row in json.loads(call("ckpt", "ls", "a", "--json").stdout)]
    assert run["prunable"] == sum(sizes[:2]) == data["prunable"] and data["trash"] == 50
    assert run["total"] == run["record"] + run["checkpoints"] >= sum(sizes)
    text = call("du").stdout
    assert size_text(sum(sizes[:2])) in text and "which `gc` removes" in text
    assert json.loads(call("ls", "--json").stdout)[0]["bytes"] == run["total"]
    # It is what `ckpt prune` removes.
    call("ckpt", "prune", "a")
    assert len(json.loads(call("ckpt", "ls", "a", "--json").stdout)) == 1


def test_checkpoints_show_what_was_logged_after_the_save_and_the_best(saved: Path) -> None:
    rows = json.loads(call("ckpt", "ls", "a", "--json").stdout)
    late = [{"given": 7.0, "val/loss": value} for value in (1.25, 0.25, 1.25)]
    assert [row["metrics"] for row in rows] == late
    assert [row["is_best"] for row in rows] == [False, True, False]
    header, *lines = call("ckpt", "ls", "a").stdout.splitlines()
    assert header.split()[3:5] == ["given", "val/loss"]
    assert [("0.25" in line, "best" in line) for line in lines][1] == (True, True)
    shown = json.loads(call("ckpt", "show", "a", "2", "--json").stdout)
    assert (shown["logged"], shown["is_best"]) == ({"val/loss": 0.25}, True)


def test_an_export_tells_nan_from_what_was_not_logged_in_every_form() -> None:
    pytest.importorskip("pyarrow")
    import pyarrow.parquet

    rows = [(n, {"a": v, "run": 1.0}) for n, v in enumerate((1.0, NAN, INF, -INF))]
    write(Path("runs/e/r"), [*rows, (4, {"run": 1.0})], name="n")
    table = list(csv.DictReader(io.StringIO(call("export").stdout)))
    assert [row["a"] for row in table] == ["1.0", "NaN", "inf", "-inf", ""]
    assert {row["run"] for row in table} == {"r"} and {row["metrics.run"] for row in table} == {
        "1.0"
    }
    call("export", "-o", "a.json")
    cells = [row["a"] for row in json.loads(Path("a.json").read_text())]
    assert cells == [1.0, "NaN", "Infinity", "-Infinity", None]
    call("export", "-o", "a.parquet")
    column = pyarrow.parquet.read_table("a.parquet").column("a").to_pylist()
    assert repr(column) == "[1.0, nan, inf, -inf, None]"
    call("export", "-o", "a.csv")
    assert Path("a.csv").read_text() == call("export").stdout
