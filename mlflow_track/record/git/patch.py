"""Masks the secrets in a patch so that the patch still applies.

A masked line that is new is written as such. A line that was there before must be found again by
whoever applies the patch, and cannot be masked: context is cut off before it, and where that is not
possible the hunk is written as a comment, which `git apply` passes over.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from mlflow_track.record.git.literals import mask_lines
from mlflow_track.record.masking import may_hold_secret

_HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")
_SECTION = re.compile(rb"^diff --git ", re.MULTILINE)
_BINARY = re.compile(rb"^Binary files ", re.MULTILINE)
_COMMENT = "# "
_WHY = "a secret in lines that are not new; that part is a comment in code.patch"


class _Line(NamedTuple):
    """A line of a hunk: ' ', '+' or '-', its text, and the text without secrets."""

    tag: str
    text: str
    masked: str
    # A line "\ No newline at end of file" belongs to the one before it.
    note: str = ""

    @property
    def is_hidden(self) -> bool:
        """Whether it cannot be written so that the patch applies."""
        return self.tag != "+" and self.text != self.masked


class _Hunk(NamedTuple):
    old: int
    new: int
    lines: list[_Line]

    def written(self, moved: int) -> list[str]:
        """The hunk; `moved` is by how many lines the hunks before it make the file longer."""
        before = sum(line.tag != "+" for line in self.lines)
        after = sum(line.tag != "-" for line in self.lines)
        # A range without lines is named by the line before it.
        start = self.old + moved + (before == 0) - (after == 0)
        head = f"@@ -{self.old},{before} +{start},{after} @@"
        return [head, *(part for line in self.lines for part in _parts(line))]

    @property
    def growth(self) -> int:
        return sum({"+": 1, "-": -1}.get(line.tag, 0) for line in self.lines)


def sections(patch: bytes) -> Iterator[tuple[str, bytes]]:
    """The parts of a patch of git, one for each file: its path, and the part."""
    starts = [found.start() for found in _SECTION.finditer(patch)]
    for start, end in zip(starts, [*starts[1:], len(patch)], strict=False):
        section = patch[start:end]
        head = section[: section.index(b"\n")].decode(errors="surrogateescape")
        # The path is given twice: `diff --git a/x b/x`.
        names = head.removeprefix("diff --git ")
        yield unquoted(names[: (len(names) - 1) // 2]).removeprefix("a/"), section


def unquoted(name: str) -> str:
    """A path as git writes it, which puts one with special characters into quotes."""
    if not name.startswith('"'):
        return name
    raw = name[1:-1].encode(errors="surrogateescape").decode("unicode_escape")
    return raw.encode("latin-1").decode(errors="surrogateescape")


def masked(path: str, section: bytes) -> tuple[bytes, str]:
    """The part of one file without secrets, and why it is not wholly there; empty where it is."""
    if _BINARY.search(section):
        return b"", "binary"
    text = section.decode(errors="surrogateescape")
    if not may_hold_secret(text):
        return section, ""
    lines = text.removesuffix("\n").split("\n")
    at = next((n for n, line in enumerate(lines) if _HUNK.match(line)), len(lines))
    head = lines[:at]
    kept: list[str] = []
    hidden: list[str] = []
    moved = 0
    for hunk in _hunks(lines[at:], path):
        shown = _without_hidden_context(hunk)
        if shown is not None:
            kept += shown.written(moved)
            moved += hunk.growth
        else:
            as_comment = [line._replace(text=line.masked) for line in hunk.lines]
            hidden += hunk._replace(lines=as_comment).written(hunk.new - hunk.old)
    comment = [_COMMENT + line for line in head + hidden] if hidden else []
    written = [*(head + kept if kept or not hidden else ()), *comment]
    content = "".join(f"{line}\n" for line in written).encode(errors="surrogateescape")
    return content, _WHY if hidden else ""


def _hunks(lines: list[str], path: str) -> list[_Hunk]:
    hunks: list[_Hunk] = []
    at = 0
    while at < len(lines):
        found = _HUNK.match(lines[at])
        at += 1
        if not found:
            continue
        left = [int(found[2] or 1), int(found[4] or 1)]
        tags, texts, notes = [], [], {}
        while at < len(lines) and (any(left) or lines[at].startswith("\\")):
            tag, text = lines[at][:1], lines[at][1:]
            at += 1
            if tag == "\\":
                notes[len(tags) - 1] = lines[at - 1]
                continue
            left[0] -= tag != "+"
            left[1] -= tag != "-"
            tags.append(tag)
            texts.append(text)
        masked = _masked(tags, texts, path)
        parts = enumerate(zip(tags, texts, masked, strict=True))
        found_lines = [_Line(*part, note=notes.get(n, "")) for n, part in parts]
        hunks.append(_Hunk(int(found[1]), int(found[3]), found_lines))
    return hunks


def _masked(tags: list[str], texts: list[str], path: str) -> list[str]:
    """The lines without secrets, each version of the file read as a whole."""
    masked = list(texts)
    for other in ("+", "-"):
        own = [n for n, tag in enumerate(tags) if tag != other]
        for n, text in zip(own, mask_lines([texts[n] for n in own], path), strict=True):
            # Context that is a secret in one of the versions is one.
            if text != texts[n]:
                masked[n] = text
    return masked


def _without_hidden_context(hunk: _Hunk) -> _Hunk | None:
    """The hunk with less context, so that no hidden line is in it; None where that cannot be."""
    changed = [n for n, line in enumerate(hunk.lines) if line.tag != " "]
    first, last = changed[0], changed[-1]
    start = max((n + 1 for n in range(first) if hunk.lines[n].is_hidden), default=0)
    after = range(last + 1, len(hunk.lines))
    end = next((n for n in after if hunk.lines[n].is_hidden), len(hunk.lines))
    lines = hunk.lines[start:end]
    # Without a line after it a hunk counts as one of the end of the file.
    is_cut_short = end < len(hunk.lines) and end == last + 1
    is_insertion = all(line.tag == "+" for line in lines) and len(lines) < len(hunk.lines)
    if is_cut_short or is_insertion or any(line.is_hidden for line in lines):
        return None
    shown = [line._replace(text=line.masked) for line in lines]
    return _Hunk(hunk.old + start, hunk.new + start, shown)


def _parts(line: _Line) -> tuple[str, ...]:
    return (line.tag + line.text, line.note) if line.note else (line.tag + line.text,)
