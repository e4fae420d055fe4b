"""The language of messages, comments and documentation: phrases that plain English avoids."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

PHRASES = re.compile(
    r"(?<!there )\b(is|are|names|fits) no (?!longer)\b"
    r"|\bit takes (?!(place|care|part|effect|about|seconds|minutes|long|time|up))"
    r"|\bin words\b|\bgoes on\b|\bwent on\b|\bformer\b|\bthe begin\b|\bmay come repeatedly\b"
    r"|\bis none of\b|\bnot (it|them) yet\b|\banew\b|\bcannot be had\b|, too,",
    re.IGNORECASE,
)
# Documents that a reader of this repository does not have.
ELSEWHERE = re.compile(r"\bDESIGN\b(?!_)|\bFACTS\b|\bfirst (edition|design)\b|\bSTYLE\.md\b")
# Of a line of text, of a comment, and of a string that goes over several lines.
_END, _START = re.compile(r"""\s*["']?$"""), re.compile(r"""^\s*(# |f?["'])?""")
SUFFIXES = (".py", ".md", ".yaml", ".toml", ".cfg")


def lines() -> Iterator[tuple[str, str]]:
    """Each line of the package, the training job and the documentation, with its place."""
    for base in ("mlflow_track", "train", "docs", "README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        path = ROOT / base
        files = sorted(path.rglob("*")) if path.is_dir() else [path] * path.exists()
        for file in files:
            if file.suffix not in SUFFIXES:
                continue
            place, content = file.relative_to(ROOT), file.read_text(encoding="utf-8").splitlines()
            for number, (line, after) in enumerate(
                zip_longest(content, content[1:], fillvalue=""), 1
            ):
                yield f"{place}:{number}", joined(line, after)


def joined(line: str, after: str) -> str:
    """A line and the next as one text: a phrase may stand across their end."""
    return f"{_END.sub('', line)} {_START.sub('', after)}"


def names_of_tests() -> Iterator[tuple[str, str]]:
    """Each function in the tests, its name written as a sentence."""
    for file in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                yield f"{file.relative_to(ROOT)}:{node.lineno}", node.name.replace("_", " ")


def found(pattern: re.Pattern[str], texts: Iterator[tuple[str, str]]) -> list[str]:
    return [f"{place}: {text.strip()}" for place, text in texts if pattern.search(text)]


def test_text_avoids_unidiomatic_phrases() -> None:
    assert found(PHRASES, lines()) == []


def test_names_of_tests_avoid_unidiomatic_phrases() -> None:
    assert found(PHRASES, names_of_tests()) == []


def test_text_refers_to_no_document_elsewhere() -> None:
    assert found(ELSEWHERE, lines()) == []


@pytest.mark.parametrize(
    "text",
    [
        "a value is no number",
        "these are no checkpoints",
        "a path that names no folder",
        "a pattern that fits no param",
        "lr is 'x'; it takes a number",
        "the reason, in words",
        "training goes on",
        "training went on",
        "a former process",
        "from the begin of the file",
        "--metric may come repeatedly",
        "resume='x' is none of never, auto",
        "the server has not it yet",
        "the server has not them yet",
        "sent anew",
        "port 5000 cannot be had",
        "this, too, is kept",
        "IN WORDS",
    ],
)
def test_phrases_are_found(text: str) -> None:
    assert found(PHRASES, iter([("here", text)]))


@pytest.mark.parametrize(
    "text",
    [
        "there is no checkpoint",
        "there are no runs",
        "the process is no longer there",
        "it takes seconds",
        "it takes place at once",
        "it takes about 26 µs",
        "the words in a name",
        "it is not yet there",
        "the beginning of the file",
    ],
)
def test_good_english_is_not_found(text: str) -> None:
    assert not found(PHRASES, iter([("here", text)]))


@pytest.mark.parametrize(
    ("line", "after"),
    [
        ("Training goes", "on, whatever the server does."),
        ("    # of a file from the", "    # begin to its end"),
        ('            f"{name} is {got}; it "', '            f"takes {what}"'),
    ],
)
def test_phrases_across_two_lines_are_found(line: str, after: str) -> None:
    assert found(PHRASES, iter([("here", joined(line, after))]))


def test_documents_elsewhere_are_found() -> None:
    texts = ["as DESIGN asks", "(FACTS: 246 s)", "the first design", "see STYLE.md"]
    assert len(found(ELSEWHERE, iter(("here", text) for text in texts))) == len(texts)
