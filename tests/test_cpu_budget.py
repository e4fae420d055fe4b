"""Does the end of the suite say what each folder cost, with what its tests started?"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.cpu_budget import folder_of, lines_of
from tests.forked import ROOT

SPENDS = """
import subprocess, sys
SPIN = "import time\\nwhile time.process_time() < 0.5: pass"
def test_it():
    subprocess.run([sys.executable, "-c", SPIN], check=True)
"""


def test_a_test_belongs_to_its_folder_or_to_its_file() -> None:
    assert folder_of("tests/run/test_run.py::test_x[a/b::c]") == "run"
    assert folder_of("tests/test_docs.py::test_x") == "test_docs.py"


def test_lines_are_of_the_dearest_first_and_name_what_is_over_its_budget() -> None:
    costs = Counter({"a": 1.0, "b": 30.0, "c": 3.0})
    lines = lines_of(costs, {"b": 20.0, "c": 20.0}, whole=40.0)
    words = [line.split() for line in lines]
    assert words[:3] == [["30.0", "of", "20", "b", "OVER"], ["3.0", "of", "20", "c"], ["1.0", "a"]]
    assert words[3][0] == "6.0" and words[4] == ["40.0", "in", "all"]


@pytest.mark.parametrize("options", [(), ("-n", "1")])
def test_the_end_of_a_suite_says_what_its_processes_cost(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "tests/spending").mkdir(parents=True)
    (tmp_path / "tests/spending/test_it.py").write_text(SPENDS)
    plugins = ("-p", "tests.leftovers", "-p", "tests.cpu_budget", "--import-mode=importlib")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *plugins, *options],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    said = re.search(r"^ *([\d.]+) +spending$", done.stdout, re.MULTILINE)
    assert said and float(said[1]) >= 0.5, done.stdout
