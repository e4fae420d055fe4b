"""Params in config.json: a param has one value, however its name is written, and none is lost."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mlflow_track.record import params as record_params
from mlflow_track.record.params import change_params, flatten, merged, named_leaves
from mlflow_track.wording import shown

Merge = Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]

NAMES = st.text("ab.", min_size=1, max_size=4)
NESTED = st.recursive(
    st.integers(0, 3) | st.just([1]),
    lambda inner: st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
PARAMS = st.dictionaries(NAMES, NESTED, max_size=4).filter(lambda p: not repeated(p))


def repeated(nested: dict[str, Any]) -> bool:
    names = [name for name, _ in named_leaves(nested)]
    return len(names) != len(set(names))


def by_keys_alone(target: dict[str, Any], update: dict[str, Any]) -> dict[str, Any]:
    """A merge that does not know that a name can be written in two ways."""
    target = copy.deepcopy(target)
    for key, value in update.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            target[key] = by_keys_alone(target[key], value)
        else:
            target[key] = value
    return target


def check(merge: Merge, params: dict[str, Any], update: dict[str, Any]) -> None:
    """Every param of the update is there once; another one stays, or another took its place."""
    before = copy.deepcopy(params)
    result = merge(params, update)
    assert params == before
    assert not repeated(result)
    given_now, then, now = flatten(update), flatten(params), flatten(result)
    for name, value in given_now.items():
        # An empty mapping has no param in it: it takes no place.
        assert now.get(name) == value or value == {}
    for name, value in then.items():
        if name not in given_now:
            is_displaced = any(
                name.startswith(f"{other}.") or other.startswith(f"{name}.") for other in given_now
            )
            assert now.get(name) == value or is_displaced
    assert set(now) <= {*given_now, *then}


@given(params=PARAMS, update=PARAMS)
@example(params={"x": {"y": 1}}, update={"x.y": 2, "x": 3})
@example(params={"x": {"y": 9}}, update={"x": {"y": {"z": 1}}, "x.y": 5})
@example(params={"x.y": 1}, update={"x": {"y": {"z": 1}}})
@example(params={"a": {}}, update={"a": {"b": 1}})
@example(params={"a": {"b": 1}}, update={"a": {}})
def test_merged_params_have_one_value_each(params: dict[str, Any], update: dict[str, Any]) -> None:
    check(merged, params, update)


def test_merged_params_by_keys_alone_would_have_two_values() -> None:
    """The negative control."""
    with pytest.raises(AssertionError):
        check(by_keys_alone, {"model": {"depth": 3}}, {"model.depth": 4})


@pytest.mark.parametrize(
    ("params", "update", "result"),
    [
        ({"a": 1}, {"b": 2}, {"a": 1, "b": 2}),
        ({"m": {"a": 1, "b": 2}}, {"m": {"a": 3}}, {"m": {"a": 3, "b": 2}}),
        ({"m": {"a": 1}}, {"m.a": 2}, {"m": {"a": 2}}),
        ({"m.a": 1}, {"m": {"a": 2, "b": 3}}, {"m.a": 2, "m": {"b": 3}}),
        ({"m": {"a": {"b": 1}}}, {"m": {"a.b": 2}}, {"m": {"a": {"b": 2}}}),
        ({"m": 1}, {"m": {"a": 2}}, {"m": {"a": 2}}),
        ({"m": {"a": 1}, "b": 0}, {"m": 2}, {"b": 0, "m": 2}),
        ({"m": "adam"}, {"m.lr": 1}, {"m": "adam", "m.lr": 1}),
        ({"m": {"a": 1}}, {"m": {}}, {"m": {"a": 1}}),
        ({"m": {"a": 1}}, {"m.a": 2, "m": 3}, {"m": 3, "m.a": 2}),
        ({"l": [1, 2]}, {"l": [3]}, {"l": [3]}),
        # An older version wrote both.
        ({"a.b": 1, "a": {"b": 2}}, {"c": 3}, {"a": {"b": 2}, "c": 3}),
    ],
)
def test_merged_params_keep_the_form_in_which_they_came(
    params: dict[str, Any], update: dict[str, Any], result: dict[str, Any]
) -> None:
    assert merged(params, update) == result


def changes(
    params: dict[str, Any], update: dict[str, Any], *, attempt: int = 2, is_start: bool = True
) -> dict[str, list[Any]]:
    config = {"params": params, "changes": [], "later field": 1}
    changed = change_params(config, update, attempt=attempt, is_start=is_start)
    assert config["later field"] == 1
    assert [change["params"] for change in config["changes"]] == ([changed] if changed else [])
    return changed


def test_change_params_notes_what_changed_came_and_went() -> None:
    assert changes({"a": 1, "m": {"b": 2}}, {"a": 1, "m": {"b": 2}}) == {}
    assert changes({"a": 1}, {"a": 2, "n": 3}) == {"a": [1, 2], "n": [None, 3]}
    assert changes({"a": 1}, {"a": 2, "n": 3}, is_start=False) == {"a": [1, 2]}
    assert changes({"a": 1}, {"n": 3}, attempt=1) == {}
    assert changes({"m": {"b": 2}}, {"m": 3}) == {"m.b": [2, None], "m": [None, 3]}
    assert changes({"m": 3}, {"m": {"b": 2}}, is_start=False) == {"m": [3, None]}
    assert changes({"m": {}}, {"m": {"b": 2}}, is_start=False) == {}
    assert changes({"m": {"b": 2}}, {"m.b": 3}) == {"m.b": [2, 3]}


def test_change_params_refuses_more_than_would_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_params, "MOST_JSON_BYTES", 1000)
    config: dict[str, Any] = {"params": {"a": 1}, "changes": []}
    before = copy.deepcopy(config)
    with pytest.raises(ValueError, match=r"config\.json must be at most 1,000 bytes, got 3,"):
        change_params(config, {"a": 2, "b": ["x"] * 100}, attempt=2, is_start=True)
    assert config == before
    change_params(config, {"a": 2, "b": ["x"] * 10}, attempt=2, is_start=True)
    assert config["params"] == {"a": 2, "b": ["x"] * 10}


def test_shown_params_have_a_bounded_length() -> None:
    assert shown("adam") == "'adam'"
    assert shown([0] * 1000) == "[" + "0, " * 66 + "0… (3,000 characters)"
