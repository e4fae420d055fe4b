"""What changed the numbers is never called exact, and what is harmless always is."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.checkpoint.exact_rows import DELIBERATE, HARMLESS, REPLACED, SCRIPT, Edits

Run = Callable[..., subprocess.CompletedProcess[str]]
# What runs with each change of the package; `make tables` runs all.
_SAMPLE = {
    *("dropout", "params in another order", "load_state_dict that does nothing"),
    *("configuration of a model", "generator of a model"),
    *("no training mode", "buffer that counts", "DataLoader"),
    *("nothing", "variable of a script", "evaluation now and then", "lambda as activation"),
    *("evaluation around the save", "param of a log interval"),
    *("learning rate", "param of the learning rate"),
}
# Three runs in one process: the whole one, the one that ends early, and its continuation.
_DRIVER = """
import json, pathlib, sys

def go(name, resume, last):
    space = {"RESUME": resume, "LAST": last, "__name__": "__main__"}
    exec(compile(pathlib.Path(name).read_text(), name, "exec"), space)
    return space["run"]

def weights(run):
    newest = sorted((run.path / "checkpoints").glob("step-*"))[-1]
    return newest.name, (newest / "state.safetensors").read_bytes()

whole, cut = go("before.py", "never", 7), go("before.py", "never", 3)
log = cut.path / "training.log"
begin = len(log.read_text())
error = ""
try:
    go("after.py", cut.id, 7)
except Exception as failure:
    error = f"{type(failure).__name__}: {failure}"
print(json.dumps([weights(whole) == weights(cut), log.read_text()[begin:], error]))
"""


class Outcome(NamedTuple):
    """A continuation.

    Attributes:
        is_same: Whether its last checkpoint is that of the run without an interruption.
        verdict: The last one that was said: "yes", "no" or "unknown"; "refused" for an error.
        log: What the log says since the resume.
    """

    is_same: bool
    verdict: str
    log: str


def continued(run: Run, folder: Path, before: Edits, after: Edits) -> Outcome:
    text = edited(SCRIPT, before)
    (folder / "before.py").write_text(text)
    (folder / "after.py").write_text(edited(text, after))
    done = run(_DRIVER)
    assert done.returncode == 0, done.stderr
    is_same, log, error = json.loads(done.stdout.splitlines()[-1])
    if error:
        return Outcome(is_same, "refused", error)
    return Outcome(is_same, re.findall("exact: (yes|no|unknown)", log)[-1], log)


def edited(text: str, edits: Edits) -> str:
    for old, new in edits:
        assert old in text, old
        text = text.replace(old, new)
    return text


def rows(names: dict[str, object]) -> list[object]:
    return [
        pytest.param(name, marks=() if name in _SAMPLE else pytest.mark.tables) for name in names
    ]


@pytest.mark.parametrize("name", rows({**DELIBERATE}))
def test_continuation_that_changed_is_not_called_exact(
    name: str, run_script: Run, tmp_path: Path
) -> None:
    found = continued(run_script, tmp_path, *DELIBERATE[name])
    assert found.verdict != "yes", found.log


@pytest.mark.parametrize("name", rows({**HARMLESS}))
def test_continuation_that_is_the_same_is_called_exact(
    name: str, run_script: Run, tmp_path: Path
) -> None:
    found = continued(run_script, tmp_path, *HARMLESS[name])
    assert found.verdict == "yes", found.log
    assert found.is_same, found.log


@pytest.mark.parametrize("name", rows({**REPLACED}))
def test_setting_that_the_checkpoint_replaces_is_named_and_exact(
    name: str, run_script: Run, tmp_path: Path
) -> None:
    before, after, words = REPLACED[name]
    found = continued(run_script, tmp_path, before, after)
    assert found.verdict == "yes" and found.is_same, found.log
    assert re.search(words, found.log), found.log


def test_tables_are_as_long_as_they_should_be() -> None:
    assert len(DELIBERATE) >= 40 and len(HARMLESS) >= 40
