"""Is each row of the table of faults in docs/mirror.md a test?"""

from __future__ import annotations

import ast
import re
from collections import Counter

from tests.mirror.conftest import ROOT


def test_each_row_of_the_table_of_faults_names_a_test_of_its_own() -> None:
    text = (ROOT / "docs/mirror.md").read_text()
    rows = [line for line in text.splitlines() if re.search(r"\| `test_\w+` \|$", line)]
    named = [re.search(r"`(test_\w+)` \|$", row)[1] for row in rows]  # type: ignore[index]
    assert len(named) > 20 and set(Counter(named).values()) == {1}
    table = text[text.index("| fault |") :].partition("\n\n")[0].splitlines()
    assert len(table) - 2 == len(named)
    there = {
        node.name
        for file in (ROOT / "tests/mirror").glob("test_*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    assert set(named) <= there, set(named) - there
