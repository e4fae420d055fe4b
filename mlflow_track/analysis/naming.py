"""A name for each of some runs that no other has: for tables, legends and frames."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol


class Named(Protocol):
    """What a run is named by."""

    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def experiment(self) -> str: ...
    @property
    def path(self) -> Path: ...


def keys(runs: Sequence[Named]) -> list[str]:
    """The id of each run; of runs that share one, as copied folders do, with the folder."""
    folders = ["" if run.path.name == run.id else f" ({run.path.name})" for run in runs]
    found = _longer([run.id for run in runs], folders)
    paths = [f"{run.id} ({run.path})" for run in runs]
    counts = Counter(found)
    return _numbered([k if counts[k] == 1 else p for k, p in zip(found, paths, strict=True)])


def labels(runs: Sequence[Named]) -> list[str]:
    """A name for each run that no other has, as short as that allows."""
    names = [run.name for run in runs]
    if len({run.experiment for run in runs}) > 1:
        names = [f"{run.experiment}/{run.name}" for run in runs]
    names = _longer(names, ["" if run.name == run.id else f" {run.id[-6:]}" for run in runs])
    return _numbered(_longer(names, [f" ({run.path.name})" for run in runs]))


def copies(runs: Sequence[Named]) -> list[str]:
    """A line for each id that several folders have."""
    folders: dict[str, list[Path]] = {}
    for run in runs:
        folders.setdefault(run.id, []).append(run.path)
    return [
        f"{' and '.join(map(str, paths))} have the same id, {run_id}: all but one are copies; "
        "their folders tell them apart"
        for run_id, paths in folders.items()
        if len(set(paths)) > 1
    ]


def _longer(names: Sequence[str], ends: Sequence[str]) -> list[str]:
    """The names, those that are there more than once with their ends."""
    counts = Counter(names)
    return [n if counts[n] == 1 else n + end for n, end in zip(names, ends, strict=True)]


def _numbered(names: Sequence[str]) -> list[str]:
    """The names, numbered where the same run is there twice."""
    seen: Counter[str] = Counter()
    taken = {*names}
    found = []
    for name in names:
        seen[name] += 1
        unique = name
        while seen[name] > 1 and unique in taken:
            unique = f"{name} #{seen[name]}"
            seen[name] += unique in taken
        taken.add(unique)
        found.append(unique)
    return found
