"""What scripts rely on: the JSON of every command, its exit codes, and text safe for a terminal."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from jsonschema import Draft202012Validator, ValidationError

import mlflow_track as mt
from mlflow_track.cli import ckpt, exit_codes, main, output
from mlflow_track.record import layout, trash
from mlflow_track.record.lock import take_lock
from mlflow_track.wording import count_text, size_text
from tests import forked
from tests.analysis.records import write
from tests.cli.schemas import SCHEMAS, check, strict

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = [*(n for n in main.list_commands(None) if n != "ckpt")]  # type: ignore[arg-type]
COMMANDS += [f"ckpt {name}" for name in ckpt.list_commands(None)]  # type: ignore[arg-type]

# Two checkpoints whose metrics are not finite, and a command that replays to the same ones.
TRAINER = """
import math, torch, mlflow_track as mt
model = torch.nn.Linear(2, 2)
torch.nn.init.zeros_(model.weight)
torch.nn.init.zeros_(model.bias)
with mt.start_run(experiment="demo", run_name="good", params={"lr": 0.1}, resume="auto") as run:
    checkpoints = run.checkpoints(save=mt.EverySteps(1))
    for step in range(checkpoints.restore({"model": model}), 3):
        torch.nn.init.constant_(model.weight, float(step))
        run.log_metrics({"loss": math.nan if step else 1.0, "gain": math.inf}, step=step)
        checkpoints.step(step, {"model": model}, metrics={"odd": math.nan, "low": -math.inf})
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of every kind but one that runs."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "trainer.py").write_text(TRAINER)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    forked.run([sys.executable, folder / "trainer.py"], cwd=folder, env=environment, check=True)
    runs = folder / "runs"
    ended = [{"attempt": 1, "status": "FAILED", "error": "ValueError: the loss is NaN"}]
    row, old = (0, {"loss": 2.0}), {"created": 1.0}
    failed = {"name": "failed", "status": "FAILED", "attempts": ended}
    write(runs / "demo/failed", [row], {"lr": 1}, **failed, **old)
    for number in range(2):
        write(runs / f"other/{number}", [row], name="same", **old)
    never = "step,time,loss,never\n0,1.5,1.0,\n"
    (write(runs / "other/never", [], name="never", **old) / "metrics.csv").write_text(never)
    for name, uri in (("hidden", "http://u:***@h/"), ("stuck", f"sqlite:///{folder}/none.db")):
        write(runs / "server" / name, [row], name=name, mirror={"tracking_uri": uri}, **old)
    shutil.copytree(next(runs.glob("demo/2*")), folder / "cut/demo/cut")
    for file in folder.glob("cut/demo/cut/checkpoints/step-000000002/state.json"):
        file.write_bytes(b"")
    (write(folder / "torn/demo/torn", []) / "run.json").write_text("{")
    (folder / "logs/version_0").mkdir(parents=True)
    (folder / "logs/empty").mkdir()
    (folder / "logs/version_0/metrics.csv").write_text("step,loss\n1,0.5\n")
    (folder / "logs/broken.csv").write_text("step,loss\n1,half\n")
    return folder


@pytest.fixture
def world(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the runs, in the current folder."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


@pytest.fixture
def live(world: Path) -> Iterator[mt.Run]:
    """A run that runs."""
    with mt.start_run(experiment="demo", run_name="live") as run:
        run.log_metrics({"loss": float("nan")}, step=0)
        yield run


def call(line: str) -> Result:
    result = CliRunner().invoke(main, shlex.split(line), prog_name="mlflow-track")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result


# --- JSON ---

# Each command on runs with all that there is, and with as little as there may be.
ANSWERS = """
plan --max-steps 1000 --warmup-steps 100 --max-checkpoints 5
plan --max-steps 90 --every 20 --at 3,5 --keep-best 1 --metric loss
plan --max-steps 9 --checkpoint cut/demo/cut/checkpoints/step-000000001
plan --every-minutes 5 --save-on-improvement loss --state-bytes 9999999999999999
ls
ls cut/demo
show good
show never
show cut/demo/cut
compare
compare good never --max gain
plot good never --metric loss
plot good --metric loss -o p.svg
plot same --group-by name --metric loss --x seconds
plot good never --kind parallel --metric loss -o p.svg
compare same --group-by name
du
du good
report
tail good
tail failed
export
export good -o m.csv
export good -o m.json
import logs
wait good failed never
rm good --dry-run
rm good
rm same --yes
gc runs
gc runs --dry-run
completion bash
sync
sync runs/demo
doctor
doctor runs/demo
ckpt ls good
ckpt ls cut/demo/cut
ckpt ls never
ckpt verify
ckpt verify good
ckpt verify cut/demo/cut last
ckpt show good
ckpt diff good 1 last
ckpt diff good 1 last --values
ckpt diff good 1 cut/demo/cut:1
ckpt prune good --last 1 --dry-run
ckpt prune good --last 1
ckpt export good -o m.safetensors
ckpt pin good
ckpt unpin good
ckpt replay good
""".strip().splitlines()


def command_of(line: str) -> str:
    words = line.split()
    return " ".join(words[: 1 + (words[0] == "ckpt")])


def documents(line: str, result: Result) -> list[Any]:
    """What the command printed: one document, or one on each line."""
    texts = result.stdout.splitlines() if command_of(line) == "tail" else [result.stdout]
    return [strict(text) for text in texts]


def test_every_command_but_ui_has_an_answer_and_a_schema() -> None:
    assert {command_of(line) for line in ANSWERS} == set(COMMANDS) - {"ui"}
    names = {f"{name.replace(' ', '-')}.json" for name in (*COMMANDS, "error", "common")}
    assert {path.name for path in SCHEMAS.iterdir()} == names
    for path in SCHEMAS.iterdir():
        Draft202012Validator.check_schema(json.loads(path.read_text()))


@pytest.mark.parametrize("line", ANSWERS)
def test_json_is_one_document_that_its_schema_describes(line: str, world: Path) -> None:
    result = call(f"{line} --json")
    assert result.exit_code in (0, 1), result.output
    for document in documents(line, result):
        check(document, command_of(line))
        assert "error" not in document, document


@pytest.mark.parametrize(
    "line",
    "shwo|show nobody|show --nope|show torn/demo/torn|ckpt show good 9|rm|tail nobody".split("|"),
)
def test_json_of_an_error_is_a_document_too(line: str, world: Path) -> None:
    result = call(f"{line} --json")
    (document,) = documents(line, result)
    check(document, "error")
    assert document["exit_code"] == result.exit_code
    assert document["error"] in result.stderr and call(line).stdout == ""


def test_a_document_that_breaks_its_schema_is_found(world: Path) -> None:
    """The negative control."""
    (row, *_) = strict(call("ls --json").stdout)
    check([row], "ls")
    shown = strict(call("show good --json").stdout)
    check(shown, "show")
    metric = {**row["metrics"]["loss"], "last": None, "min": "nan"}
    for broken in (
        [{**row, "more": 1}],
        [{name: value for name, value in row.items() if name != "id"}],
        [{**row, "status": "DONE"}],
        [{**row, "metrics": {"loss": metric}}],
        [{**row, "metrics": {"loss": {**row["metrics"]["loss"], "more": 1}}}],
    ):
        with pytest.raises(ValidationError):
            check(broken, "ls")
    with pytest.raises(ValidationError):
        check({**shown, "more": 1}, "show")
    with pytest.raises(ValidationError):
        check({**shown, "checkpoints": [{**shown["checkpoints"][0], "more": 1}]}, "show")
    for text in ("[NaN]", "words\n[]", "[]\n[]", '["\x1b"]'):
        with pytest.raises((AssertionError, ValueError)):
            strict(text)


def test_nan_and_infinity_are_not_never_logged(world: Path) -> None:
    metrics = strict(call("show good --json").stdout)["metrics"]
    assert (metrics["loss"]["last"], metrics["loss"]["min"]) == ("NaN", 1.0)
    assert metrics["gain"]["last"] == metrics["gain"]["max"] == "Infinity"
    never = strict(call("show never --json").stdout)["metrics"]["never"]
    assert (never.pop("count"), never.pop("finite")) == (0, 0) and set(never.values()) == {None}
    rows = strict(call("export good never --json").stdout)
    assert [row["metrics"] for row in rows[-2:]] == [
        {"loss": "NaN", "gain": "Infinity"},
        {"loss": 1.0},
    ]
    call("export good never -o m.json")
    cells = strict(Path("m.json").read_text())
    assert [(row["loss"], row["gain"]) for row in cells[-2:]] == [("NaN", "Infinity"), (1.0, None)]
    checkpoint = strict(call("ckpt show good --json").stdout)
    assert checkpoint["metrics"]["odd"] == "NaN" and checkpoint["metrics"]["low"] == "-Infinity"
    both = {**checkpoint["metrics"], **checkpoint["logged"]}
    assert strict(call("ckpt ls good --json").stdout)[-1]["metrics"] == both
    lines = [strict(line) for line in call("tail good --json").stdout.splitlines()]
    assert lines[-2]["metrics"] == {"loss": "NaN", "gain": "Infinity"}


def test_export_json_has_the_values_of_the_table(world: Path) -> None:
    """Also where a step was logged twice, and to both files."""
    run = write(Path("runs/other/twice"), [(0, {"a": 1.0}), (1, {"a": 2.0}), (0, {"a": 3.0})])
    (run / "metrics.long.csv").write_text("step,time,metric,value\n1,9e9,b,5.0\n1,9e9,a,6.0\n")
    rows = strict(call("export twice --json").stdout)
    table = list(csv.DictReader(io.StringIO(call("export twice").stdout)))
    assert [row["metrics"] for row in rows] == [{"a": 3.0}, {"a": 6.0, "b": 5.0}]
    for row, cells in zip(rows, table, strict=True):
        found = {name: float(cells[name]) for name in ("a", "b") if cells[name]}
        assert (row["step"], row["metrics"]) == (int(cells["step"]), found)
        assert row["time"] == float(cells["time"])


# --- exit codes ---

# By command each exit code that it has, and how it comes to it.
ENDINGS = """
0 ls
0 ls --status killed
1 ls torn
2 ls --limit x
2 ls --watch --csv
3 ls nowhere
3 ls --experiment nothing
3 ls --sort nothing
0 show good
1 show torn/demo/torn
2 show same
2 show @nothing
3 show nobody
3 show @best:nothing
0 compare
1 compare torn/demo/torn
2 compare --max loss --min loss
3 compare --metric nothing
3 compare nobody
0 plot good
1 plot torn/demo/torn
2 plot -o p.gif
3 plot --metric nothing
1 plot --group-by name --best-so-far --metric gain --max gain --x tokens
3 plot --group-by params.nothing
3 plot --color-by params.nothing
3 plot --sort nothing
3 plot never --kind importance
2 plot --kind parallel
0 compare --group-by experiment
3 compare --group-by params.nothing
3 compare --sort -nothing:best
3 ls --filter "params.nothing > 1"
2 ls --filter "metrics.loss < 1e"
0 du
1 du torn/demo/torn
2 du --nothing
3 du nobody
0 report
3 report --group-by params.nothing
1 report torn/demo/torn
1 report -o nowhere/report.html
2 report --x nothing
3 report --metric nothing
0 tail good
1 tail failed
2 tail --lines x
3 tail nobody
4 tail live --no-follow
0 wait good
0 wait good never --timeout 0
1 wait good failed
2 wait --timeout nan
2 wait --timeout -1
3 wait nobody
4 wait good failed live --timeout 0
0 export good
1 export torn/demo/torn
2 export -o m.xls
3 export good --file nothing.csv
0 import logs
1 import logs/broken.csv
2 import logs --format nothing
3 import nowhere
3 import logs/empty
0 rm good
0 rm same --dry-run
0 rm same --yes
0 rm runs/other/0 runs/other/1
1 rm live
2 rm
2 rm same
3 rm nobody
0 gc
2 gc --nothing
3 gc nowhere
0 completion bash
2 completion tcsh
1 sync good
2 sync --nothing
2 sync good --backend mlfow
3 sync nobody
0 doctor good
1 doctor stuck
2 doctor --nothing
3 doctor nobody
4 doctor hidden
1 ui torn
2 ui --port x
3 ui nowhere
0 plan --max-steps 9
1 plan --max-steps 9 --state-bytes 9999999999999999
2 plan
2 plan --max-steps 0
2 plan --max-steps 9 --keep-best 1
2 plan --at 1,x
3 plan --max-steps 9 --checkpoint good
0 ckpt ls good
2 ckpt ls --nothing
3 ckpt ls nobody
0 ckpt verify good
1 ckpt verify cut/demo/cut
1 ckpt verify cut/demo/cut last
0 ckpt verify cut/demo/cut 1
2 ckpt verify --nothing
3 ckpt verify never
3 ckpt verify good 9
0 ckpt show good
2 ckpt show --nothing
3 ckpt show good 9
3 ckpt show good best
0 ckpt diff good 1 2
1 ckpt diff good 1 cut/demo/cut:last --values
2 ckpt diff good
3 ckpt diff good 1 9
0 ckpt prune good --last 1
1 ckpt prune live --last 1
2 ckpt prune good
3 ckpt prune nobody --last 1
0 ckpt export good -o m.safetensors
1 ckpt export cut/demo/cut -o m.safetensors
2 ckpt export good --format pickle
3 ckpt export good --entry nothing
0 ckpt pin good
2 ckpt pin --nothing
3 ckpt pin good 9
0 ckpt unpin good
2 ckpt unpin --nothing
3 ckpt unpin never
0 ckpt replay good
1 ckpt replay failed
2 ckpt replay --from x
3 ckpt replay good --from 9
2 nothing
2 ckpt nothing
""".strip().splitlines()


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_exit_code_is_that_of_the_table(
    ending: str, world: Path, request: pytest.FixtureRequest
) -> None:
    code, line = ending.split(maxsplit=1)
    if "live" in line.split():
        request.getfixturevalue("live")
    before = {path for path in Path("runs").rglob("*")}
    result = call(line)
    assert result.exit_code == int(code), result.output
    # A program gets the same code, and words for people only where they belong.
    if "--json" not in line and result.exit_code:
        assert call(f"{line} --json").exit_code == int(code)
        assert result.stderr or result.stdout
    if int(code) in (exit_codes.USAGE, exit_codes.NOT_FOUND):
        assert result.stdout == "" and before == {path for path in Path("runs").rglob("*")}


def test_the_table_of_exit_codes_has_every_command() -> None:
    assert {command_of(ending.split(maxsplit=1)[1]) for ending in ENDINGS} >= set(COMMANDS)


def test_the_documentation_has_every_exit_code() -> None:
    text = (ROOT / "docs/scripting.md").read_text()
    names = ("YES", "NO", "USAGE", "NOT_FOUND", "PENDING")
    words = {getattr(exit_codes, name): name.replace("_", " ").lower() for name in names}
    assert {int(c): w for c, w in re.findall(r"^\| (\d) +\| ([a-z ]+):", text, re.M)} == words
    assert len(text.splitlines()) < 60


def test_sync_of_a_run_that_its_mirror_sends_is_pending(world: Path) -> None:
    path = layout.mirror_lock(Path("runs/server/stuck"), "mlflow")
    path.parent.mkdir(exist_ok=True)
    lock = take_lock(path)
    result = call("sync stuck --as-recorded --json")
    os.close(lock)
    assert result.exit_code == 4, result.output
    check(strict(result.stdout), "sync")


def test_ui_on_a_port_that_is_taken_ends_with_no(world: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        result = call(f"ui runs --no-browser --port {listener.getsockname()[1]} --json")
    assert result.exit_code == 1 and "port" in strict(result.stdout)["error"]


def test_gc_names_what_it_cannot_remove(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call("rm good")

    def refuse(path: Path) -> None:
        raise PermissionError(13, "not permitted", str(path))

    monkeypatch.setattr(trash, "remove", refuse)
    result = call("gc --json")
    document = strict(result.stdout)
    assert result.exit_code == 1 and document["bytes"] == 0
    assert "not permitted" in document["removed"][0]["problem"]


def test_ctrl_c_is_not_an_answer(live: mt.Run) -> None:
    process = forked.Popen(
        [sys.executable, "-m", "mlflow_track.cli", "wait", "good", "live"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with process:
        assert process.stdout.readline().startswith("run good FINISHED")
        process.send_signal(signal.SIGINT)
    assert process.returncode == 130


def test_version_is_that_of_the_package() -> None:
    from importlib.metadata import version

    result = call("--version")
    assert (result.exit_code, result.stdout) == (0, f"mlflow-track {version('mlflow-track')}\n")


# --- wait ---


@pytest.mark.parametrize(("end", "code"), [("finish", 0), ("kill", 1)])
def test_wait_ends_when_the_runs_do(end: str, code: int, world: Path) -> None:
    program = (
        "import sys, mlflow_track as mt\n"
        "with mt.start_run(experiment='demo', run_name='long'):\n"
        "    print('started', flush=True)\n"
        "    sys.stdin.readline()\n"
    )
    trainer = forked.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert trainer.stdin is not None and trainer.stdout is not None
    with trainer:
        assert trainer.stdout.readline() == "started\n"
        waiting = forked.Popen(
            [sys.executable, "-m", "mlflow_track.cli", "wait", "good", "long", "--json"],
            stdout=subprocess.PIPE,
            text=True,
        )
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(1)
        if end == "kill":
            trainer.kill()
        else:
            trainer.stdin.write("\n")
            trainer.stdin.flush()
        said, _ = waiting.communicate(timeout=60)
    rows = strict(said)
    check(rows, "wait")
    assert [row["status"] for row in rows] == ["FINISHED", "KILLED" if code else "FINISHED"]
    assert waiting.returncode == code


def test_wait_gives_up_after_its_timeout(live: mt.Run) -> None:
    began = time.monotonic()
    result = call("wait live good --timeout 0.7")
    assert result.exit_code == 4 and time.monotonic() - began > 0.7
    assert result.stdout.splitlines() == [
        "run good FINISHED: loss is nan since step 1",
        "run live RUNNING",
    ]


def test_wait_says_why_a_run_failed(world: Path) -> None:
    assert call("wait failed").stdout == "run failed FAILED: ValueError: the loss is NaN\n"
    assert strict(call("wait failed --json").stdout)[0]["error"] == "ValueError: the loss is NaN"


def test_wait_of_a_run_that_is_moved_away_does_not_hang(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write(Path("runs/demo/gone"), [], name="gone", status="RUNNING")
    lock = take_lock(run / layout.RUN_LOCK)
    monkeypatch.setattr(time, "sleep", lambda _: run.rename("elsewhere"))
    result = call("wait gone --timeout 60")
    os.close(lock)
    assert result.exit_code == 3 and "was moved or removed" in result.stderr


# --- rm asks ---


def runs_left() -> list[str]:
    return sorted(run.name for run in mt.load_runs("runs/other"))


def test_rm_of_a_name_of_several_runs_lists_them_and_deletes_nothing_unasked(world: Path) -> None:
    for line in ("rm same", "rm good same --json", "rm other", "rm runs/other", "rm runs"):
        result = call(line)
        assert result.exit_code == 2 and "--yes" in result.stderr, line
        assert "runs/other/0" in result.stderr and "runs/other/1" in result.stderr, line
        assert runs_left() == ["never", "same", "same"] and list(Path("runs/demo").glob("2*"))
    # Each is named by a word of its own: nothing is left to ask.
    assert call("rm runs/other/0 never").exit_code == 0 and runs_left() == ["same"]


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("n", 1), ("\x04", 1)])
def test_rm_asks_at_a_terminal(answer: str, code: int, world: Path) -> None:
    theirs, ours = os.openpty()
    process = forked.Popen(
        [sys.executable, "-m", "mlflow_track.cli", "rm", "same"],
        stdin=ours,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(ours)
    os.write(theirs, f"{answer}\n".encode())
    said, asked = process.communicate(timeout=60)
    os.close(theirs)
    assert process.returncode == code and "Delete them?" in asked and "runs/other/0" in asked
    assert runs_left() == (["never"] if answer == "y" else ["never", "same", "same"])
    assert said.count(" -> ") == (2 if answer == "y" else 0)


# --- what a terminal obeys ---

OBEYED = "\x1b[31m\x1b]0;t\x07\r\x9b1m\x7f\u202e\u2066\u2028"
HOSTILE = """
ls
ls --tree
show RUN
compare
compare RUN plain
plot
tail RUN
wait RUN
export nothing
rm RUN --dry-run
show nobody
show runs/e
ckpt ls RUN
ckpt verify
doctor RUN
""".strip().splitlines()


@pytest.mark.parametrize("line", HOSTILE)
def test_nothing_of_a_run_is_obeyed_by_the_terminal(
    line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"a{OBEYED}b"
    attempts = [{"attempt": 1, "status": "FAILED", "error": name, "command": [name]}]
    run = write(
        Path("runs/e/hostile"),
        [(0, {"loss": 1.0})],
        {name: name, "list": [name]},
        name=name,
        experiment=f"e{OBEYED}",
        tags={name: f"{name}\n{name}"},
        attempts=attempts,
    )
    write(Path("runs/e/plain"), [(0, {"loss": 2.0})], name="plain")
    (run / "training.log").write_text(f"{name}\n")
    (run / "artifacts").mkdir()
    (run / "artifacts" / "b\x1b[31m.txt").write_text("")
    words = [str(run) if word == "RUN" else word for word in line.split()]

    def said() -> str:
        result = CliRunner().invoke(main, words)
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result.output

    assert documents(line, CliRunner().invoke(main, [*words, "--json"]))
    # Where there is no terminal, click removes some of the sequences.
    monkeypatch.setattr("click.utils.should_strip_ansi", lambda *_: False)
    text = said()
    assert output.escaped(text) == text
    if line not in ("ckpt ls RUN", "ckpt verify", "doctor RUN", "export nothing"):
        assert "\\x1b[31m" in text or "hostile" in text
    if words[0] == "show" and len(words) == 2 and words[1] == str(run):
        assert len([line for line in text.splitlines() if line.startswith("  a\\x1b")]) == 2
    # The negative control: without the guard it arrives.
    if words[0] in ("ls", "tail", "wait"):
        monkeypatch.setattr(output, "escaped", lambda text: text)
        assert said() != text


def at_terminal(*words: str) -> str:
    """What a command writes to a terminal."""
    theirs, ours = os.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color"}
    process = forked.Popen(
        [sys.executable, "-m", "mlflow_track.cli", *words], stdout=ours, env=environment
    )
    os.close(ours)
    said = b""
    with process, os.fdopen(theirs, "rb", buffering=0) as terminal:
        while True:
            try:
                piece = terminal.read(1 << 16)
            except OSError:
                # This is how a terminal ends that nobody writes to.
                break
            if not piece:
                break
            said += piece
    return said.decode()


def test_a_terminal_gets_our_colours_but_not_those_of_a_name() -> None:
    for number, name in enumerate(("red\x1b]0;t\x07", "plain")):
        values = [(0, {"loss": float(number)})]
        write(Path(f"runs/e/{number}"), values, {"a": number}, name=name, status="FAILED")
    for words in (["ls"], ["compare"], ["show"], ["plot"]):
        said = at_terminal(*words)
        assert "\x1b[" in said and "\x1b]0;" not in said and "\x07" not in said, words
        assert r"red\x1b]0;t" in said or words == ["show"], said


# --- counts and sizes ---


def test_counts_and_sizes_are_as_people_say_them() -> None:
    assert [count_text(n, "run") for n in (0, 1, 2, 1000)] == [
        "0 runs",
        "1 run",
        "2 runs",
        "1,000 runs",
    ]
    sizes = {0: "0 B", 1: "1 B", 999: "999 B", 1000: "1.0 kB", 21_231: "21.2 kB"}
    sizes |= {999_949: "999.9 kB", 999_950: "1.0 MB", 3_000_000: "3.0 MB", 10**12: "1.0 TB"}
    sizes |= {10**18: "1,000.0 PB"}
    assert {size: size_text(size) for size in sizes} == sizes


def test_no_command_says_1_runs_or_0_megabytes(world: Path) -> None:
    said = ""
    for line in ("report good", "export never", "export never -o m.csv", "rm never", "gc"):
        said += call(line).output
    said += call("ckpt ls good").output + call("ckpt verify good").output
    assert "1 run," in said and "1 row of 1 run\n" in said and re.search(r"[\d.]+ (k?)B\b", said)
    assert not re.search(r"\b1 (runs|rows|tensors)|\b0\.0+ [kMG]?B", said), said
