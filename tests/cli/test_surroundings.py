"""Commands in poor surroundings: a full disk, a console in Latin-1, no working folder."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import mlflow_track as mt

Script = Callable[..., subprocess.CompletedProcess[str]]
SNOWMAN = "\u2603"
LINES = [
    *("ls", "ls --json", "ls --csv", "show @last", "show @last --json", "compare @last"),
    *("compare @last --csv", "tail @last --no-follow", "export @last", "ckpt ls", "doctor"),
    *("completion bash", "ls nowhere", "ls nowhere --json", "ckpt verify"),
]
# Each in a process of its own, forked from one that has loaded the commands.
COMMANDS = """
import io, os, sys
from mlflow_track.cli import main
{guard}
for words in {lines}:
    if (child := os.fork()) == 0:
        {before}
        main(words, prog_name="mlflow-track")
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), *words, flush=True)
"""
FULL = 'os.dup2(os.open("/dev/full", os.O_WRONLY), 1)'
LATIN = """
        out = os.open("out.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        sys.stdout = io.TextIOWrapper(os.fdopen(out, "wb"), encoding="latin-1")
        sys.argv, sys.__stdout__ = ["mlflow-track"], sys.stdout
"""


@pytest.fixture
def run() -> mt.Run:
    with mt.start_run(experiment=f"caf\u00e9 {SNOWMAN}", run_name=f"r {SNOWMAN}") as run:
        run.log_metrics({f"a {SNOWMAN}": 1.0}, step=0)
    return run


def commands(run_script: Script, before: str, lines: list[str], guard: str = "") -> list[int]:
    split = [shlex.split(line) for line in lines]
    done = run_script(COMMANDS.format(before=before.strip(), lines=split, guard=guard))
    assert "Traceback" not in done.stderr, done.stderr
    return [int(line.split()[0]) for line in done.stdout.splitlines()]


def test_a_command_whose_output_does_not_fit_fails_in_one_line(
    run: mt.Run, run_script: Script
) -> None:
    codes = commands(run_script, FULL, LINES)
    assert dict(zip(LINES, codes, strict=True)) == {
        line: 3 if "nowhere" in line or "verify" in line else 1 for line in LINES
    }


def test_a_console_in_latin_1_shows_the_rest_as_escapes(run: mt.Run, run_script: Script) -> None:
    codes = commands(run_script, LATIN, LINES[:-3])
    assert set(codes) == {0}
    text = Path("out.txt").read_bytes().decode("latin-1")
    assert "caf\u00e9 \\u2603" in text and SNOWMAN not in text
    ((listed,), _) = json.JSONDecoder().raw_decode(text, text.index("["))
    assert listed["name"] == f"r {SNOWMAN}"


GONE = """
import os, sys, mlflow_track as mt
os.mkdir("gone"); os.chdir("gone"); os.rmdir("../gone")
with mt.start_run() as run:
    run.log_metrics({"a": 1.0}, step=0)
print(run.path)
"""
WHY = "the working folder was deleted; change to one that exists, or use an absolute path: 'runs'"


def test_a_run_without_a_working_folder_says_so_or_trains(
    run_script: Script, tmp_path: Path
) -> None:
    done = run_script(GONE)
    assert done.returncode == 1 and WHY in done.stderr
    away = {"MLFLOW_TRACK_FINISH_TIMEOUT": "0", "MLFLOW_TRACK_MIRROR_LINGER": "0"}
    for more in ({}, {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", **away}):
        done = run_script(GONE, MLFLOW_TRACK_DIR=str(tmp_path / "runs"), **more)
        assert done.returncode == 0, done.stderr
        assert mt.load_run(done.stdout.strip()).status == "FINISHED"


def test_commands_without_a_working_folder_say_so(run: mt.Run, run_script: Script) -> None:
    gone = 'os.mkdir("gone"); os.chdir("gone"); os.rmdir("../gone")'
    lines = [line for line in LINES if "nowhere" not in line and "completion" not in line]
    done = run_script(
        COMMANDS.format(before=gone, lines=[shlex.split(line) for line in lines], guard="")
    )
    assert {line.split()[0] for line in done.stdout.splitlines() if line[0].isdigit()} == {"1"}
    said = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(said) == len(lines) and all("the working folder was deleted" in s for s in said)
