"""The page about backends shows the one that the tests install."""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).resolve().parent


def test_the_page_shows_the_backend_that_is_tested() -> None:
    page = (HERE.parents[1] / "docs" / "backends.md").read_text()
    assert f"module of its own\n{(HERE / 'jsonl' / 'mlflow_track_jsonl.py').read_text()}```" in page
