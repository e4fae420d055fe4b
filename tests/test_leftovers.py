"""Does the suite fail, and say so, where a test leaves a process behind?"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.forked import ROOT

LEAVES = """
import subprocess
# Detached, as a mirror is, and started by a process that has ended.
PROGRAM = '''
import subprocess
sleep = subprocess.Popen(["sleep", "{seconds}"], start_new_session=True, stdout=2)
print(sleep.pid)
'''
def test_it():
    pid = subprocess.check_output([{python!r}, "-c", PROGRAM], text=True)
    open("pid", "w").write(pid)
"""


def suite(tmp_path: Path, seconds: float, *options: str) -> tuple[int, str, int]:
    """A suite of one test: exit status, output, and the process that its test left."""
    (tmp_path / "test_it.py").write_text(LEAVES.format(seconds=seconds, python=sys.executable))
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.leftovers", *options],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout, int((tmp_path / "pid").read_text())


@pytest.mark.parametrize("options", [(), ("-n", "1")])
def test_a_process_that_outlives_the_suite_fails_it_and_is_ended(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    status, output, pid = suite(tmp_path, 600, *options)
    assert status == 1 and "1 passed" in output
    assert f"{pid}: sleep 600" in output
    assert not Path(f"/proc/{pid}").exists() or not Path(f"/proc/{pid}/cmdline").read_bytes()


def test_a_process_that_is_about_to_end_is_waited_for(tmp_path: Path) -> None:
    status, output, _ = suite(tmp_path, 1)
    assert status == 0 and "outlived" not in output
