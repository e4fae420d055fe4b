"""docs/reference.md is what the docstrings say now."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

import mlflow_track as mt

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def reference() -> Any:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs/make_reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_current(reference: Any) -> None:
    assert reference.PAGE.read_text(encoding="utf-8") == reference.page(), (
        "run: python docs/make_reference.py"
    )


def test_the_page_has_every_public_name_once(reference: Any) -> None:
    named = [name for names in reference.SECTIONS.values() for name in names]
    assert sorted(named) == sorted(mt.__all__)


def test_a_docstring_that_changes_makes_the_page_old(
    reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control."""
    before = reference.page()
    monkeypatch.setattr(mt.Run.log_metric, "__doc__", "Something else.")
    assert reference.page() != before and "Something else." in reference.page()
    monkeypatch.setattr(mt.Run.log_metric, "__doc__", None)
    with pytest.raises(ValueError, match="docstring"):
        reference.page()


def test_sections_become_lists(reference: Any) -> None:
    text = """Do it.

        Well.

        Args:
            first: One thing,
                also: on two lines.
            second: Another.

        Returns:
            What: it is.

        Raises:
            ValueError: It is wrong.
        """
    assert reference.words(text).splitlines() == [
        *("Do it.", "", "Well.", ""),
        *("**Args**", "", "- `first`: One thing,", "  also: on two lines.", "- `second`: Another."),
        *("", "**Returns**", "", "What: it is."),
        *("", "**Raises**", "", "- `ValueError`: It is wrong."),
    ]
