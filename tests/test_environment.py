"""Do tests see the same on every machine, and does a person learn what did not run?"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# A dict of names that no test must see; the values would send it elsewhere.
FOREIGN = {
    "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
    "MLFLOW_TRACK_BACKEND": "off",
    "EXPERIMENT_NAME": "elsewhere",
    "RANK": "1",
    "SLURM_PROCID": "1",
    "OMPI_COMM_WORLD_RANK": "1",
    "PMI_RANK": "1",
    "GIT_DIR": "/absent",
    "http_proxy": "http://127.0.0.1:9",
    "MPLBACKEND": "absent",
    "COLUMNS": "10",
    "FORCE_COLOR": "1",
    "PYTHONSTARTUP": "/absent",
}
LOOK = f"""
import os, signal, subprocess, sys
FOREIGN = {sorted(FOREIGN)}
SIGNALS = "import signal; print([n for n in (1, 2, 15) if signal.getsignal(n) == signal.SIG_IGN])"

def test_the_environment():
    assert [name for name in FOREIGN if name in os.environ] == []
    assert os.environ["HOME"] != {os.environ.get("HOME")!r} and os.path.isdir(os.environ["HOME"])

def test_the_signals():
    child = subprocess.run([sys.executable, "-c", SIGNALS], capture_output=True, text=True)
    assert child.stdout == "[]\\n"

def test_this_process_ignores_what_it_should():
    for number in (1, 2, 15):
        os.kill(os.getpid(), number)
"""
SKIP = """
from tests.environment import lack

def test_a():
    lack("PostgreSQL is not installed (apt-get install postgresql)")

def test_b():
    lack("PostgreSQL is not installed (apt-get install postgresql)")

def test_c():
    lack("Chromium is not installed")
"""


def suite(
    text: str,
    folder: Path,
    *words: str,
    plugin: str = "tests.environment",
    shell: str = "",
    **variables: str,
) -> str:
    """Run pytest on a file with this text, started after the lines of `shell`; what it printed."""
    (folder / "test_it.py").write_text(text)
    pytest_words = ["-p", plugin, "-p", "no:cacheprovider", "--color=no"]
    # Otherwise it looks at all that lies in the folders above.
    place = ["-c", os.devnull, f"--confcutdir={folder}"]
    program = [sys.executable, "-m", "pytest", *place, *pytest_words, *words, str(folder)]
    return subprocess.run(
        ["sh", "-c", f'{shell}\nexec "$@"', "sh", *program],
        env={**os.environ, "CI": "", "PYTHONPATH": str(ROOT), **variables},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=100,
        check=False,
    ).stdout


@pytest.mark.parametrize("workers", ["0", "1"])
def test_tests_see_neither_foreign_variables_nor_ignored_signals(
    workers: str, tmp_path: Path
) -> None:
    said = suite(LOOK, tmp_path, "-n", workers, shell="trap '' HUP INT TERM", **FOREIGN)
    assert "3 passed" in said, said


def test_without_the_clean_up_tests_would_see_them(tmp_path: Path) -> None:
    shell = "trap '' HUP INT TERM"
    said = suite(LOOK, tmp_path, plugin="no:tests.environment", shell=shell, **FOREIGN)
    assert "2 failed, 1 passed" in said, said


@pytest.mark.parametrize("workers", ["0", "2"])
def test_the_closing_line_says_how_many_were_skipped_and_why(workers: str, tmp_path: Path) -> None:
    said = suite(SKIP, tmp_path, "-n", workers).splitlines()
    assert said[-2] == (
        "skipped 3 tests (2: PostgreSQL is not installed (apt-get install postgresql); "
        "1: Chromium is not installed)"
    )
    assert "3 skipped" in said[-1]


def test_in_ci_what_is_lacking_fails(tmp_path: Path) -> None:
    said = suite(SKIP, tmp_path, CI="true")
    assert "3 failed" in said and "PostgreSQL is not installed" in said


def test_a_suite_that_skips_nothing_says_nothing_of_it(tmp_path: Path) -> None:
    assert "skipped" not in suite("def test_a(): pass", tmp_path)
