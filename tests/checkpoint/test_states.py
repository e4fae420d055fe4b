"""docs/states.md says what became of each state: uninterrupted and resumed, byte for byte.

A quarter of its rows are played here, `STATES_SEED=1` tries others; `make tables` plays all.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SEED = int(os.environ.get("STATES_SEED", "0"))
Script = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def states() -> Any:
    spec = importlib.util.spec_from_file_location("make_states", ROOT / "docs/make_states.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def played(states: Any, run_script: Script, names: list[str], spoil: str = "") -> dict[str, str]:
    """The cells of the rows, each part played by a process of its own."""
    parts = {}
    for part in states.PARTS:
        code = f"""
            import json, sys
            sys.path.insert(0, {str(ROOT / "docs")!r})
            import make_states
            if {part!r} == "rest":
                {spoil or "pass"}
            print(json.dumps(make_states.play({part!r}, sys.argv[1:])))
        """
        done = run_script(code, *names)
        assert done.returncode == 0, done.stderr
        parts[part] = json.loads(done.stdout.splitlines()[-1])
    return states.outcomes_of(parts)


def rows_of_the_page(states: Any) -> list[str]:
    lines = states.PAGE.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.startswith("| ")][1:]


def test_states_of_a_quarter_of_the_rows_are_as_the_page_says(
    states: Any, run_script: Script
) -> None:
    names = random.Random(SEED).sample([*states.STATES], len(states.STATES) // 4)
    found = states.page(played(states, run_script, names)).splitlines()
    assert [line for line in found if line.startswith("| ")][1:] == [
        row for name in names for row in rows_of_the_page(states) if row.startswith(f"| {name} |")
    ]


@pytest.mark.tables
@pytest.mark.timeout(600)
def test_states_page_is_current(states: Any, run_script: Script) -> None:
    found = states.page(played(states, run_script, [*states.STATES]))
    assert states.PAGE.read_text(encoding="utf-8") == found, "run: python docs/make_states.py"


def test_states_that_lose_their_generators_differ(states: Any, run_script: Script) -> None:
    """The negative control: a resumed process that draws other numbers ends with other bytes."""
    spoil = "make_states.nn.functional.dropout = lambda x, p: x"
    assert played(states, run_script, ["AdamW"], spoil) == {"AdamW": "DIFFERS"}


def test_states_page_names_every_row_once_and_none_differs(states: Any) -> None:
    rows = rows_of_the_page(states)
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == [*states.STATES]
    assert not [row for row in rows if "DIFFERS" in row]
