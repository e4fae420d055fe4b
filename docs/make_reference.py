"""Write docs/reference.md from the docstrings of the package: `python docs/make_reference.py`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import mlflow_track as mt

PAGE = Path(__file__).with_name("reference.md")
# Every public name, in the order of a newcomer.
SECTIONS = {
    "Runs": ("start_run", "active_run", "Run", "SyncStatus", "RunHeldError"),
    "Checkpoints": (
        *("Checkpoints", "Checkpoint", "resumable", "load_weights", "CorruptCheckpointError"),
    ),
    "When to save": (
        *("EvenlySpaced", "EverySteps", "AtSteps", "EveryMinutes", "Continuous", "OnImprovement"),
        *("Budget", "SavePolicy"),
    ),
    "What to keep, when to stop": ("Keep", "EarlyStopping"),
    "Reading runs": (
        *("load_run", "load_runs", "load_metrics", "compare", "LoadedRun", "Comparison"),
    ),
    "The version": ("__version__",),
}
# What nobody constructs: another call returns or raises it.
RETURNED = {
    *("Run", "Checkpoints", "Checkpoint", "SyncStatus", "Comparison", "SavePolicy"),
    *("CorruptCheckpointError", "RunHeldError"),
}
# Of these the members are listed; None lists all of them.
MEMBERS: dict[str, tuple[str, ...] | None] = {
    "Run": None,
    "Checkpoints": None,
    "Checkpoint": None,
    "SyncStatus": None,
    "LoadedRun": None,
    "SavePolicy": ("due", "watched", "__or__"),
}
HEAD = """# API reference

Every public name of `mlflow_track`, from its docstring. `python docs/make_reference.py` writes this
page; a test compares it with the code.

    import mlflow_track as mt
"""


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for title, names in SECTIONS.items():
        parts.append(f"## {title}\n")
        for name in names:
            parts += entry(name)
    return "\n".join(parts)


def entry(name: str) -> Iterator[str]:
    """What the page says of one public name."""
    thing = getattr(mt, name)
    if isinstance(thing, str):
        yield f"### `{name}`\n\nThe version of the package, a string.\n"
        return
    call = "" if name in RETURNED else signature(thing)
    yield f"### `{name}{call}`\n\n{words(thing.__doc__)}"
    for member in members(name, thing):
        yield from member_entry(name, member, inspect.getattr_static(thing, member))


def members(name: str, thing: Any) -> list[str]:
    """The public members of a class, in the order of their definitions."""
    if name not in MEMBERS or MEMBERS[name] is not None:
        return [*(MEMBERS.get(name) or ())]
    return [
        member
        for kind in thing.__mro__
        if kind.__module__.startswith("mlflow_track")
        for member, value in vars(kind).items()
        if not member.startswith("_")
        and (inspect.isfunction(value) or isinstance(value, property | cached_property))
    ]


def member_entry(name: str, member: str, value: Any) -> Iterator[str]:
    owner = name[0].lower() + name[1:] if name in ("Run", "Checkpoints", "Checkpoint") else name
    call = signature(value) if inspect.isfunction(value) else ""
    title = f"{owner}.{member}{call}" if member != "__or__" else "policy | policy"
    yield f"#### `{title}`\n\n{words(value.__doc__)}"


def signature(function: Any) -> str:
    """Names and defaults; types stand in the text."""
    parameters = inspect.signature(function).parameters.values()
    shown = [p.replace(annotation=p.empty) for p in parameters if p.name != "self"]
    text = str(inspect.Signature(shown))
    return re.sub(r"=0\.0\b", "=0", text)


def words(docstring: str | None) -> str:
    """A docstring as Markdown: its sections become lists.

    Raises:
        ValueError: There is none.
    """
    if not docstring:
        raise ValueError("every public name must have a docstring")
    result: list[str] = []
    section = ""
    for line in inspect.cleandoc(docstring).splitlines():
        title = re.fullmatch(r"(Args|Attributes|Returns|Raises):", line)
        text = line.strip()
        indent = len(line) - len(line.lstrip())
        if title:
            section = title[1]
            result += [f"**{section}**", ""]
        elif not text or not section or not indent:
            section = section if not text else section * bool(indent)
            result.append(line)
        elif section == "Returns":
            result.append(text)
        elif indent == 4:
            name, _, meaning = text.partition(": ")
            result.append(f"- `{name}`: {meaning}")
        else:
            result.append(f"  {text}")
    return "\n".join(result) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
