"""Filters of runs: the part of MLflow's filter language that needs no server.

    params.lr < 0.01 and metrics.`val/loss` <= 1.5 and tags.stage = 'pretrain' and status = 'FAILED'

`metrics.` is the last value; `min.`, `max.` and `mean.` are those of all. A comparison with a
number is one of numbers, also of params; a run that lacks the value does not match, but a name that
no run has is an error. There is `and`, no `or`.
"""

from __future__ import annotations

import fnmatch
import operator
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from mlflow_track.analysis.compare import metric_of
from mlflow_track.analysis.summary import Summary
from mlflow_track.checks import did_you_mean
from mlflow_track.record.params import param_text
from mlflow_track.record.schema import STATUSES
from mlflow_track.wording import value_error

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_NUMBERS = ("seconds", "wall_seconds", "rows", "last_step", "created")
_FIELDS = ("id", "name", "experiment", "status", *_NUMBERS)
_OF_METRICS = {"metrics": "last", "min": "min", "max": "max", "mean": "mean"}
_KINDS = (*_OF_METRICS, "params", "tags")
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
    f"metrics.… (the last value), min.…, max.…, mean.…, tags.…, {', '.join(_FIELDS)} on the left "
    "and = != < <= > >= or like between"
)
_ALIASES = {"param": "params", "metric": "metrics", "tag": "tags", "run_name": "name"}


class UnknownName(ValueError):
    """A filter asks for a param, metric or tag that no run has."""


class Filter(NamedTuple):
    """Conditions that a run must meet.

    Attributes:
        conditions: Each as a function of a run.
        names: The kind and the name of each param, metric and tag that they ask for.
    """

    conditions: tuple[Callable[[Summary], bool], ...] = ()
    names: tuple[tuple[str, str], ...] = ()

    def __call__(self, run: Summary) -> bool:
        return all(holds(run) for holds in self.conditions)

    def require_names(self, runs: Sequence[Summary]) -> None:
        """Raise `UnknownName` where there are runs, and none of them has one of the names."""
        for kind, name in self.names if runs else ():
            of_metrics = kind in _OF_METRICS
            kinds = ("metrics", "system_metrics") if of_metrics else (kind,)
            known = {key for run in runs for each in kinds for key in getattr(run, each)}
            if name not in known:
                what = "metric" if of_metrics else kind.removesuffix("s")
                raise UnknownName(
                    f"filter: none of these runs has the {what} {name!r}"
                    + did_you_mean(name, known)
                )


def parse_filter(text: str) -> Filter:
    """The filter that a text describes.

    Raises:
        ValueError: It is not a filter; the message says where it is invalid, and what is valid.
    """
    conditions: list[Callable[[Summary], bool]] = []
    names: list[tuple[str, str]] = []
    at = 0
    while True:
        match = _CONDITION.match(text, at)
        if match is None:
            raise value_error("filter", _FORM, f"{text!r}, invalid at {text[at:]!r}")
        field, key = _left_side(match, text)
        if key is not None:
            names.append((field, key))
        conditions.append(_condition(match, field, key))
        at = match.end()
        if at == len(text):
            return Filter(tuple(conditions), tuple(names))
        joined = _AND.match(text, at)
        if joined is None:
            raise value_error("filter", _FORM, f"{text!r}, invalid at {text[at:]!r}")
        at = joined.end()


def _left_side(match: re.Match[str], text: str) -> tuple[str, str | None]:
    """The field, and the name of the param, metric or tag where it is one."""
    field = match["field"].lower()
    key = match["quoted"] or match["double"] or match["bare"]
    if field in ("attributes", "attribute", "run") and key:
        field, key = key.lower(), None
    field = _ALIASES.get(field, field)
    if (key is None) == (field in _KINDS) or field not in (*_KINDS, *_FIELDS):
        word = match["field"]
        raise value_error(
            "filter",
            _FORM,
            f"{text!r} with the unknown field {word!r}",
            did_you_mean(word, {*_KINDS, *_FIELDS} - {word}),
        )
    return field, key


def _condition(match: re.Match[str], field: str, key: str | None) -> Callable[[Summary], bool]:
    word = match["operator"].lower()
    is_quoted = match["number"] is None
    wanted: Any = match["text"] if match["text"] is not None else match["other"]
    if wanted is None:
        wanted = _number(match["number"])
    _check(match[0].strip(), field, word, wanted, is_quoted)
    if word in ("like", "ilike"):
        pattern = str(wanted).replace("%", "*")
        return lambda run: _is_like(_value(run, field, key), pattern, word == "ilike")
    compare = _OPERATORS[word]
    return lambda run: _compares(compare, _value(run, field, key), wanted)


def _check(condition: str, field: str, word: str, wanted: Any, is_quoted: bool) -> None:
    """Raise ValueError where no run could ever match, or by chance only."""
    is_like = word in ("like", "ilike")
    if field in _OF_METRICS or field in _NUMBERS:
        if is_like or not isinstance(wanted, float):
            what = "a comparison with a number, as < 0.5"
            raise value_error("a filter of numbers", what, repr(condition))
    elif word in ("<", "<=", ">", ">=") and not isinstance(wanted, float) and not is_quoted:
        what = "with a number or a text in quotes on the right"
        raise value_error("a filter", what, repr(condition))
    elif field == "status" and not is_like and wanted not in STATUSES:
        raise value_error(
            "a filter's status",
            f"one of {', '.join(STATUSES)}",
            repr(wanted),
            did_you_mean(str(wanted), STATUSES),
        )


def _value(run: Summary, field: str, key: str | None) -> Any:
    if key is None:
        return getattr(run, field)
    if field in ("params", "tags"):
        return getattr(run, field).get(key)
    return getattr(metric_of(run, key), _OF_METRICS[field], None)


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
