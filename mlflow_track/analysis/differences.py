"""Compares what two runs were started with: their code and their packages."""

from __future__ import annotations

import difflib
import subprocess
from pathlib import Path

from mlflow_track.analysis.summary import Summary
from mlflow_track.record import layout
from mlflow_track.record.files import open_regular
from mlflow_track.record.schema import Git

_SECONDS = 20
_MOST_PATCH_BYTES = 2 << 20


def code_difference(old: Summary, new: Summary, *, is_full: bool) -> list[str]:
    """Lines that say how the code of two runs differs; none where it does not.

    Args:
        old, new: The runs.
        is_full: Whether to show every changed line, or only which files changed by how much. That
            of commits needs their repository; it is looked for in the working folder.
    """
    was, now = _git(old), _git(new)
    lines = []
    if was.commit != now.commit:
        lines.append(f"commit {_short(was)} -> {_short(now)}")
        if was.commit and now.commit:
            lines += _git_diff(was.commit, now.commit, is_full)
    before, after = (_read(run.path / layout.PATCH) for run in (old, new))
    if before != after:
        lines.append("the uncommitted changes (code.patch) differ")
        if is_full:
            lines += difflib.unified_diff(before, after, old.name, new.name, n=1, lineterm="")
    return lines


def package_difference(old: Summary, new: Summary) -> list[str]:
    """Packages whose versions differ, as `name: old -> new`."""
    was, now = (_packages(run.path / layout.REQUIREMENTS) for run in (old, new))
    return [
        f"{name}: {was.get(name, 'none')} -> {now.get(name, 'none')}"
        for name in sorted({*was, *now})
        if was.get(name) != now.get(name)
    ]


def _git(run: Summary) -> Git:
    return run.info.provenance.git or Git()


def _short(git: Git) -> str:
    return git.commit[:12] if git.commit else "none"


def _git_diff(old: str, new: str, is_full: bool) -> list[str]:
    form = [] if is_full else ["--stat"]
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "diff", "--no-color", "--no-ext-diff", *form, old, new],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    if done.returncode:
        return ["  (both commits must be in the repository of the working folder to compare them)"]
    return done.stdout.decode(errors="replace").splitlines()


def _read(path: Path) -> list[str]:
    try:
        with open_regular(path) as file:
            return file.read(_MOST_PATCH_BYTES).decode(errors="replace").splitlines()
    except OSError:
        return []


def _packages(path: Path) -> dict[str, str]:
    pairs = (line.partition("==") for line in _read(path))
    return {name: version for name, separator, version in pairs if separator}
