"""Compares what surrounded the state at a save with what surrounds it here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from mlflow_track.checkpoint.exact.changed_params import is_harmless
from mlflow_track.checkpoint.exact.fingerprint import Facts
from mlflow_track.checkpoint.exact.objects import LAZY, module_names, parameter_names
from mlflow_track.checkpoint.exact.report import Findings

_RUN, _MOST_FLAGS = re.compile("([0-9]{1,9})([TF])"), 1 << 20


def differences(then: Facts, now: Facts, state: Mapping[str, Any]) -> Findings:
    """Compare the facts of a save with those of the live objects of `state` here."""
    found: list[str] = []
    unknown: list[str] = []
    may_matter: list[str] = []
    for path, old, new in _changed(then.static, now.static):
        if LAZY in (old, new):
            continue  # Its first batch makes it what it is, and a first step compares again.
        if path.endswith(".params"):
            found += _order(path, old, new)
        elif path.startswith("compilation of "):
            words = [text or "not compiled" for text in (old, new)]
            found.append(f"{path} {words[0]} -> {words[1]}")
        else:
            found.append(f"{path} {old or 'nothing'} -> {new or 'nothing'}")
    for path, old, new in _changed(then.attributes, now.attributes):
        owner = path.rpartition(".")[0]
        if then.static.get(owner) != now.static.get(owner) or not (old and new):
            continue  # Said by its line, or an attribute that comes and goes.
        words = f"{path} {old} -> {new}"
        if path in then.changing:
            unknown.append(f"{words}: it changes in training and is not in the state")
        else:
            found.append(words)
    for path, old, new in _changed(then.buffers, now.buffers):
        if old.rpartition(" ")[0] == new.rpartition(" ")[0]:
            found.append(f"{path} is not in the state and has another value here")
        else:
            forms = [text.rpartition(" ")[0] or "nothing" for text in (old, new)]
            may_matter.append(f"{path}, not in the state, {forms[0]} -> {forms[1]}")
    for path, _, _ in _changed(then.metrics, now.metrics):
        found.append(f"{path} of a metric is not in the state and has another value")
    found += _flags("requires_grad", then.grads, now.grads, parameter_names(state))
    return Findings(found, unknown, may_matter)


def differences_of_given(then: Facts | None, now: Facts, used: Mapping[str, str]) -> Findings:
    """Compare what the code gave to objects beside their state at the save with what it gives here.

    Args:
        then, now: The facts of the save and of here.
        used: What is there after the load: a `load_state_dict` may have put the saved one back.
    """
    unknown: list[str] = []
    may_matter: list[str] = []
    if then is None:
        return Findings()
    for path, here in now.given.items():
        before, (owner, _, key) = then.given.get(path, here), path.rpartition(".")
        is_said = any(p in then.attributes and p in now.attributes for p in (path, owner))
        if before == here or used.get(path) != here or is_said:
            continue
        words = f"{path}, not in the state, {before} -> {here}"
        (may_matter if is_harmless(key) else unknown).append(words)
    return Findings([], unknown, may_matter)


def differences_of_place(then: Facts, now: Facts, state: Mapping[str, Any]) -> list[str]:
    """The modules whose training flag is not what it was at the same place of the loop."""
    found = _flags("training", then.training, now.training, module_names(state))
    if then.autocast != now.autocast:
        found.append(f"autocast {then.autocast or 'off'} -> {now.autocast or 'off'}")
    return found


def is_of_another_kind(then: Facts, now: Facts) -> bool:
    """Whether the models are as they were at other steps than that of the save.

    Some loops leave them in eval mode where they evaluate, until the top of the next step: only
    two steps of one kind can be compared.
    """
    return now.mode != then.mode and now.mode in then.modes and then.autocast == now.autocast


def _changed(then: Mapping[str, str], now: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Path, text then and text now, empty where there is none, of all that differ."""
    for path in [*then, *(path for path in now if path not in then)]:
        old, new = then.get(path, ""), now.get(path, "")
        if old != new:
            yield path, old, new


def _order(path: str, old: str, new: str) -> list[str]:
    before, after = old.split(", "), new.split(", ")
    if sorted(before) == sorted(after):
        at = next(
            i for i, (one, other) in enumerate(zip(before, after, strict=True)) if one != other
        )
        return [f"{path} in another order: number {at} {before[at]} -> {after[at]}"]
    gone = [name for name in before if name not in after]
    came = [name for name in after if name not in before]
    return [f"{path} {', '.join(gone[:3]) or 'nothing'} -> {', '.join(came[:3]) or 'nothing'}"]


def _flags(
    what: str, then: Mapping[str, str], now: Mapping[str, str], names: Mapping[str, list[str]]
) -> list[str]:
    found: dict[str, str] = {}
    for entry, old, new in _changed(then, now):
        flags = [_unpacked(text) for text in (old, new)]
        if len(flags[0]) != len(flags[1]) or len(names.get(entry, ())) != len(flags[1]):
            continue  # Another structure: named as such.
        differing = [i for i, (one, other) in enumerate(zip(*flags, strict=True)) if one != other]
        first, more = differing[0], len(differing) - 1
        others = f" and of {more} more" if more else ""
        words = f"{names[entry][first]}{others} {flags[0][first]} -> {flags[1][first]}"
        found.setdefault(names[entry][first], f"{what} of {words}")
    return list(found.values())


def _unpacked(text: str) -> list[bool]:
    return [
        kind == "T" for size, kind in _RUN.findall(text) for _ in range(min(int(size), _MOST_FLAGS))
    ]
