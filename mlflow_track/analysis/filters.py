"""Filters of runs: the part of MLflow's filter language that needs no server.

    params.lr < 0.01 and metrics.`val/loss` <= 1.5 and tags.stage = 'pretrain' and status = 'FAILED'

`metrics.` is the last value; `min.` and `max.` are the extremes. A comparison with a number is one
of numbers, also of params; a run that lacks the value does not match. There is `and`, no `or`.
"""

from __future__ import annotations

import fnmatch
import operator
import re
from collections.abc import Callable
from typing import Any

from mlflow_track.analysis.summary import Summary
from mlflow_track.record.params import param_text
from mlflow_track.wording import expected

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_FIELDS = ("id", "name", "experiment", "status", "seconds", "rows", "last_step", "created")
_KINDS = {"metrics": "last", "min": "min", "max": "max", "params": "", "tags": ""}
_CONDITION = re.compile(
    r"""\s*(?P<field>[A-Za-z_]+)
        (?:\.(?:`(?P<quoted>[^`]+)`|"(?P<double>[^"]+)"|(?P<bare>[^\s=!<>'"`]+)))?
        \s*(?P<operator><=|>=|!=|==|=|<|>|\bi?like\b)
        \s*(?:'(?P<text>[^']*)'|"(?P<other>[^"]*)"|(?P<number>[^\s'"]+))\s*""",
    re.VERBOSE | re.IGNORECASE,
)
_AND = re.compile(r"and\b", re.IGNORECASE)
_FORM = (
    "conditions joined by 'and', like \"params.lr < 0.01 and status = 'FINISHED'\", with params.…, "
    f"metrics.… (the last value), min.…, max.…, tags.…, {', '.join(_FIELDS)} on the left and "
    "= != < <= > >= or like between"
)


def parse_filter(text: str) -> Callable[[Summary], bool]:
    """The filter as a function of a run's summary.

    Raises:
        ValueError: It is not a filter; the message says where it is invalid, and what is valid.
    """
    conditions: list[Callable[[Summary], bool]] = []
    at = 0
    while True:
        match = _CONDITION.match(text, at)
        if match is None:
            raise ValueError(expected("filter", _FORM, f"{text!r}, invalid at {text[at:]!r}"))
        conditions.append(_condition(match, text))
        at = match.end()
        if at == len(text):
            return lambda summary: all(holds(summary) for holds in conditions)
        joined = _AND.match(text, at)
        if joined is None:
            raise ValueError(expected("filter", _FORM, f"{text!r}, invalid at {text[at:]!r}"))
        at = joined.end()


def _condition(match: re.Match[str], text: str) -> Callable[[Summary], bool]:
    field = match["field"].lower()
    key = match["quoted"] or match["double"] or match["bare"]
    if field in ("attributes", "attribute", "run") and key:
        field, key = key.lower(), None
    field = {"param": "params", "metric": "metrics", "tag": "tags", "run_name": "name"}.get(
        field, field
    )
    if (key is None) == (field in _KINDS) or field not in (*_KINDS, *_FIELDS):
        raise ValueError(
            expected("filter", _FORM, f"{text!r} with the unknown field {match['field']!r}")
        )
    word = match["operator"].lower()
    wanted: Any = match["text"] if match["text"] is not None else match["other"]
    if wanted is None:
        wanted = _number(match["number"])
    if word in ("like", "ilike"):
        pattern = str(wanted).replace("%", "*")
        return lambda run: _is_like(_value(run, field, key), pattern, word == "ilike")
    compare = _OPERATORS[word]
    return lambda run: _compares(compare, _value(run, field, key), wanted)


def _value(run: Summary, field: str, key: str | None) -> Any:
    if key is None:
        return getattr(run, field)
    if field == "params":
        return run.params.get(key)
    if field == "tags":
        return run.tags.get(key)
    metric = run.metrics.get(key)
    return getattr(metric, _KINDS[field]) if metric is not None and metric.count else None


def _compares(compare: Callable[[Any, Any], bool], value: Any, wanted: Any) -> bool:
    if value is None:
        return False
    if isinstance(wanted, float):
        if isinstance(value, bool):
            return False
        try:
            # An integer is compared as it is: one of 400 digits is larger than any float.
            return compare(value if isinstance(value, int) else float(value), wanted)
        except (TypeError, ValueError):
            return compare is operator.ne
    return compare(_text(value), wanted)


def _is_like(value: Any, pattern: str, ignores_case: bool) -> bool:
    if value is None:
        return False
    text = _text(value)
    if ignores_case:
        text, pattern = text.lower(), pattern.lower()
    return fnmatch.fnmatchcase(text, pattern)


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else param_text(value)


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text.lower() if text.lower() in ("true", "false") else text
