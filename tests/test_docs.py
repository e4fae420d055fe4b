"""Do the commands and code blocks of README.md and docs/ run as they stand there?

A file's blocks run in order, in one copy of this checkout whose `.venv` is this environment, with
`.venv/bin` on the PATH. Which blocks run is said by the word after the three backticks:

    python          a program of its own
    bash            a script; the first command that fails ends it
    console         the lines that begin with "$ "; what stands below them must come, in this
                    order, but for numbers, ids, durations, the width of columns and the hardware;
                    … stands for anything
    console server  one command that serves until it is ended; it must answer at the URL it prints
    … no-run WHY    shown only; the reason is part of the line

The interpreters of `make demo` and of what serves start as anywhere, the others are forked.

`ARGS` in the environment shortens `make demo` to a few steps, and `PORT` is a free one.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from mlflow_track.cli import ckpt, main
from tests import forked

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
PACKAGES = ("mlflow_track", "train")
FENCE = re.compile(r"^( *)```(.*)$")
RUNNABLE = ("python", "bash", "console", "console server")
SHOWN = ("", "text", "json", "csv", "yaml", "ini", "toml")


class Block(NamedTuple):
    """One fenced block: where it begins, what follows its backticks, what it holds."""

    line: int
    kind: str
    text: str


def blocks(document: Path) -> Iterator[Block]:
    lines = iter(enumerate(document.read_text().splitlines(), 1))
    for number, line in lines:
        opened = FENCE.match(line)
        if opened:
            indent, kind = len(opened[1]), opened[2].strip()
            held = []
            for _, inner in lines:
                if inner.strip() == "```":
                    break
                held.append(inner[indent:])
            else:
                raise AssertionError(f"{document.name}:{number}: this block has no end")
            yield Block(number, kind, "\n".join(held) + "\n")


def commands(text: str) -> str:
    """The commands of a console block as one script."""
    kept, is_open = [], False
    for line in text.splitlines():
        if line.startswith("$ "):
            kept.append(line[2:])
        elif is_open:
            kept.append(line.removeprefix("> "))
        else:
            continue
        is_open = kept[-1].endswith("\\")
    return "\n".join(kept) + "\n"


def shown(text: str) -> list[str]:
    """What a console block shows of the output of its commands."""
    script = iter(commands(text).splitlines())
    command, kept = next(script, None), []
    for line in text.splitlines():
        if line.removeprefix("$ ").removeprefix("> ") == command:
            command = next(script, None)
        else:
            kept.append(line)
    return kept


def pattern_of(line: str) -> str:
    """Other numbers, ids, widths of columns and hardware are the same line."""
    parts = {
        r"\d{8}-\d{6}-[0-9a-f]{6}": r"\d{8}-\d{6}-[0-9a-f]{6}",
        r"[0-9a-f]{12,}": r"[0-9a-f]+",
        # What the job runs on.
        r"(cpu|cuda), (bf16|fp32)": r"(cpu|cuda), (bf16|fp32)",
        # How long it took, in the units that fit.
        r"\d+ (h \d+ min|min \d+ s|s)\b": r"\d+ (h \d+ min|min \d+ s|s)",
        r"-?\d[\d.,]*(e[+-]?\d+)?": r"-?\d[\d.,]*(e[+-]?\d+)?",
        r"\s+": r"\s+",
        "…": ".*",
    }
    pieces = re.split("(" + "|".join(re.sub(r"\((?!\?)", "(?:", p) for p in parts) + ")", line)
    found = []
    for piece in pieces:
        kind = next((p for p in parts if re.fullmatch(p, piece)), None)
        found.append(parts[kind] if kind else re.escape(piece))
    return "".join(found) + r"\s*"


def missing(wanted: list[str], output: str) -> str | None:
    """The first of the lines that the output does not have after the one before it."""
    lines = iter(output.splitlines())
    for line in wanted:
        pattern = re.compile(pattern_of(line))
        if line.strip() != "…" and not any(pattern.fullmatch(came) for came in lines):
            return line
    return None


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of this checkout, with this environment as `.venv`.

    The packages are links, so that a forked program need not import them from there.
    """
    folder = tmp_path_factory.mktemp("checkout")
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    ).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file() and not name.startswith(tuple(f"{p}/" for p in PACKAGES)):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    for package in PACKAGES:
        (folder / package).symlink_to(ROOT / package)
    lend_environment(folder / ".venv")
    return folder


def lend_environment(folder: Path) -> None:
    """This environment under another path, with stamps that say that nothing is to be installed."""
    programs = folder / "bin"
    programs.mkdir(parents=True)
    for home, target in ((Path(sys.prefix), folder), (Path(sys.prefix) / "bin", programs)):
        for entry in home.iterdir():
            if entry.name not in ("bin", "activate") and not entry.name.startswith(".installed"):
                (target / entry.name).symlink_to(entry)
    activate = (Path(sys.prefix) / "bin" / "activate").read_text()
    (programs / "activate").write_text(activate.replace(sys.prefix, str(folder)))
    modules = {"torchrun": "torch.distributed.run", "mlflow-track": "mlflow_track.cli"}
    for name, options in {"python": (), **{k: ("-m", m) for k, m in modules.items()}}.items():
        (programs / name).unlink()
        forked.write_stand_in(programs / name, *options)
    for stamp in (".installed", ".installed-dev"):
        (folder / stamp).touch()


def environment(checkout: Path) -> dict[str, str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    return {
        **os.environ,
        "PORT": str(port),
        "PATH": f"{checkout / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(checkout),
        # As the copy is none, the packages are in no repository.
        "GIT_CEILING_DIRECTORIES": f"{os.environ['GIT_CEILING_DIRECTORIES']}{os.pathsep}{ROOT}",
        # What is shown is said by a run that MLflow has taken, however busy the machine is.
        "MLFLOW_TRACK_FINISH_TIMEOUT": "120",
        "MLFLOW_TRACK_MIRROR_NICE": "0",
        "ARGS": "-P max_steps=30 -P warmup_steps=5 -P eval_interval=10 -P eval_batches=2",
    }


def run(program: list[str], checkout: Path, where: str, *, forks: bool = False) -> str:
    """What it printed.

    Args:
        program: The command.
        checkout: Where it runs.
        where: Where it stands in the documents.
        forks: Whether interpreters need not start by themselves.
    """
    done = forked.run(
        program,
        cwd=checkout,
        env={**environment(checkout), **({forked.FORKING: "1"} if forks else {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{where}\n{done.stdout[-6000:]}"
    return done.stdout


def serve(command: str, checkout: Path, where: str) -> None:
    """Start it, wait for an answer at the URL that it prints, end it."""
    log = checkout / ".server.log"
    with open(log, "wb") as file:
        process = subprocess.Popen(
            ["bash", "-c", f"exec {command}"],
            cwd=checkout,
            env=environment(checkout),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            address = re.search(r"http://127\.0\.0\.1:\d+", log.read_text())
            try:
                if address and urllib.request.urlopen(address[0], timeout=5).status == 200:
                    return
            except OSError:
                pass
            time.sleep(0.3)
        raise AssertionError(f"{where}: it did not answer\n{log.read_text()[-3000:]}")
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_blocks_of_a_document_run(document, checkout):
    for block in blocks(document):
        where = f"{document.name}:{block.line}"
        if block.kind == "python":
            run([sys.executable, "-c", block.text], checkout, where)
        elif block.kind == "bash":
            run(["bash", "-euo", "pipefail", "-c", block.text], checkout, where, forks=True)
        elif block.kind == "console":
            script = ["bash", "-euo", "pipefail", "-c", commands(block.text)]
            output = run(script, checkout, where, forks="$ make demo" not in block.text)
            line = missing(shown(block.text), output)
            assert line is None, f"{where}: not in the output: {line}\n{output[-6000:]}"
        elif block.kind == "console server":
            serve(commands(block.text).strip(), checkout, where)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_block_runs_or_says_why_not(document):
    for block in blocks(document):
        reason = block.kind.partition("no-run")[2].strip()
        assert block.kind in (*RUNNABLE, *SHOWN) or reason, f"{document.name}:{block.line}"


def test_every_command_is_in_a_block_that_runs():
    text = "".join(b.text for d in DOCUMENTS for b in blocks(d) if b.kind in RUNNABLE)
    names = [*main.list_commands(None), *(f"ckpt {name}" for name in ckpt.list_commands(None))]
    assert [name for name in names if not re.search(rf"mlflow-track {name}\b", text)] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_the_documents_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text()):
        if not target.startswith(("http:", "https:", "mailto:")):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_a_block_that_fails_fails_the_test(checkout):
    """The negative control."""
    with pytest.raises(AssertionError, match="here"):
        run(
            ["bash", "-euo", "pipefail", "-c", commands("$ false\nout\n$ true\n")], checkout, "here"
        )
    assert commands("$ a \\\n>   b\nout\n$ c\n") == "a \\\n  b\nc\n"


def test_a_shown_output_that_does_not_come_is_found():
    """The negative control."""
    came = "ID                      SECONDS\n20261124-075653-8d5a4c  1 min 5 s\nrest\n"
    text = "$ a\nID  SECONDS\n20251111-111111-abcdef  12 s\n$ b\n…\nre…\n"
    assert missing(shown(text), came) is None
    for wanted, line in (("ID  MINUTES", 0), ("ID  SECONDS\n20251111-111111-abcdef  12 min", 1)):
        assert missing(wanted.splitlines(), came) == wanted.splitlines()[line]
    assert missing(["rest", "ID  SECONDS"], came) == "ID  SECONDS"
    assert missing(["9 tokens of a, cpu, bf16"], "12 tokens of a, cuda, fp32\n") is None
    for other in ("9 tokens of b, cpu, bf16", "9 tokens of a, cpu", "9 tokens of a, cpu, fp8"):
        assert missing(["9 tokens of a, cpu, bf16"], other) is not None
    assert shown("$ a \\\n>   b\nout\n") == ["out"]


RESUMED = """
import torch, mlflow_track as mt

model = torch.nn.Linear(1, 1)
for is_resumed in (False, True):
    with mt.start_run(experiment="regression", run_name="night", resume="auto") as run:
        state = {
            "model": model,
            "optimizer": torch.optim.AdamW(model.parameters()),
            "data_sha256": "",
        }
        checkpoints = run.checkpoints(save=mt.EverySteps(1))
        checkpoints.restore(state)
        checkpoints.save(0, state)
        if not is_resumed:
            run.finish("FAILED")
"""


def test_the_line_about_a_resume_is_what_a_resume_says(checkout):
    (line,) = re.findall(r"^restored .*", (ROOT / "README.md").read_text(), re.MULTILINE)
    output = run([sys.executable, "-c", RESUMED], checkout, "resume")
    assert missing([line], output) is None, output
    assert missing([line.replace("yes", "no")], output) is not None
