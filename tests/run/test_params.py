"""Params on their way into the record: how many and how large, under which names, and resumed."""

from __future__ import annotations

import datetime
import decimal
import enum
import json
import pathlib
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mlflow_track as mt
from mlflow_track import param_kinds, param_values
from mlflow_track.param_values import plain_params
from mlflow_track.record.files import read_json, write_json
from mlflow_track.record.info import UnreadableRun
from mlflow_track.record.params import named_leaves

Script = Callable[..., subprocess.CompletedProcess[str]]


class Mode(enum.Enum):
    FAST = "fast"
    SLOW = "slow"


def nested(levels: int) -> dict[str, Any]:
    """A mapping of so many levels, itself included."""
    content: dict[str, Any] = {"a": 1}
    for _ in range(levels - 1):
        content = {"a": content}
    return content


def lists(levels: int) -> dict[str, Any]:
    """The same, of lists in a mapping."""
    content: Any = 1
    for _ in range(levels - 1):
        content = [content]
    return {"a": content}


# --- properties ---

NAMES = st.text("ab./-é", min_size=1, max_size=4)
KEYS = st.one_of(
    NAMES, st.integers(), st.floats(), st.booleans(), st.none(), st.sampled_from(Mode), st.dates()
)
ALONE = st.one_of(
    KEYS,
    st.text(),
    st.binary(),
    st.complex_numbers(),
    st.decimals(),
    st.datetimes(timezones=st.just(datetime.timezone.utc) | st.none()),
    st.timedeltas(),
    st.uuids(),
    st.builds(pathlib.PurePosixPath, NAMES),
    st.sampled_from([torch.bfloat16, torch.device("cpu"), torch.relu, torch.optim.Adam, str]),
    st.builds(np.float32, st.floats(width=32)),
    st.builds(np.array, st.lists(st.floats() | st.integers(-5, 5), max_size=3)),
    st.builds(torch.tensor, st.lists(st.integers(-5, 5), max_size=3)),
    st.sets(st.integers() | NAMES, max_size=4),
)
VALUES = st.recursive(
    ALONE,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


@given(params=st.dictionaries(KEYS, VALUES, max_size=4))
def test_params_of_any_kind_are_json_that_reads_back_or_are_refused(params: dict[Any, Any]) -> None:
    try:
        content = plain_params(params)
    except ValueError as error:
        assert " must be different as text" in str(error) or " must be given once" in str(error)
        return
    write_json(Path("config.json"), content)
    assert read_json(Path("config.json")) == content
    assert plain_params(content) == content
    assert len(content) == len(params)
    names = [name for name, _ in named_leaves(content)]
    assert len(names) == len(set(names))


@given(items=st.lists(st.one_of(st.integers(), st.text(max_size=3), st.booleans()), unique=True))
def test_params_that_are_sets_are_stored_in_one_order(items: list[Any]) -> None:
    assert plain_params({"s": set(items)}) == plain_params({"s": set(reversed(items))})


SETS = """
import sys
import mlflow_track as mt
given = {"names": {"adam", "sgd", "lion", "muon"}, "pairs": {("a", 1), ("b", 2), ("c", None)}}
with mt.start_run(backend="local", params=given) as run:
    run.log_text("".join(given["names"]), "order.txt")
"""


def test_params_that_are_sets_do_not_depend_on_the_hash_seed(run_interpreter: Script) -> None:
    for seed in range(4):
        done = run_interpreter(SETS, PYTHONHASHSEED=str(seed))
        assert done.returncode == 0, done.stderr
    runs = mt.load_runs("runs")
    assert len({json.dumps(run.params) for run in runs}) == 1
    # The negative control: the sets themselves were in another order.
    assert len({(run.path / "artifacts/order.txt").read_text() for run in runs}) > 1


# --- bounds ---


def test_params_may_be_nested_so_deep_and_no_deeper() -> None:
    most = param_values.MOST_DEPTH
    for make in (nested, lists):
        with mt.start_run(params=make(most)) as run:
            run.log_params({"late": make(most - 1)})
        with mt.start_run(params=make(most), resume=run.id) as run:
            run.log_params({"a": 3})
        assert mt.load_run(run.path).params["a"] == 3
        with pytest.raises(ValueError, match=f"must be nested at most {most} levels deep"):
            mt.start_run(params=make(most + 1))


def test_params_nested_deeper_would_not_read_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control."""
    monkeypatch.setattr(param_values, "MOST_DEPTH", 200)
    with mt.start_run(params=lists(120)) as run:
        pass
    with pytest.raises(UnreadableRun, match="nested deeper"):
        _ = mt.load_run(run.path).params


def circle_of_mappings() -> Any:
    circle: dict[str, Any] = {}
    circle["b"] = {"c": circle}
    return circle


def circle_of_lists() -> Any:
    circle: list[Any] = [1]
    circle.append(circle)
    return circle


def circle_of_arrays() -> Any:
    circle = np.empty(1, dtype=object)
    circle[0] = [circle]
    return circle


@pytest.mark.parametrize(
    ("make", "path"),
    [
        (circle_of_mappings, r"a\.b\.c"),
        (circle_of_lists, r"a\.1"),
        (circle_of_arrays, r"a\.0\.0"),
    ],
)
def test_params_that_contain_themselves_are_refused(make: Callable[[], Any], path: str) -> None:
    with pytest.raises(ValueError, match=f"param '{path}' must be free of cycles, got .* itself"):
        plain_params({"a": make()})
    itself: dict[str, Any] = {}
    itself["a"] = itself
    with pytest.raises(ValueError, match=r"'a' must be free of cycles, got builtins\.dict"):
        plain_params(itself)


def test_params_may_hold_one_object_twice() -> None:
    shared = {"b": [1]}
    assert plain_params({"x": shared, "y": [shared, shared]}) == {
        "x": {"b": [1]},
        "y": [{"b": [1]}, {"b": [1]}],
    }


def test_params_of_few_objects_and_countless_values_are_refused() -> None:
    many: list[Any] = [1]
    for _ in range(40):
        many = [many, many]
    with pytest.raises(ValueError, match="at most 100,000, got more, with 'it"):
        plain_params({"it": many})


BOUNDS: dict[str, tuple[Callable[[int], Any], int, str]] = {
    "values": (lambda n: [0] * n, param_values.MOST_VALUES - 2, "at most 100,000, got more"),
    "characters": (lambda n: "x" * n, param_values.MOST_CHARACTERS - 2, "at most 4,000,000 char"),
    "bytes": (lambda n: b"x" * n, param_values.MOST_CHARACTERS - 5, "at most 4,000,000 char"),
    "elements": (np.zeros, 1_000, r"at most 1,000 elements, got numpy.ndarray of shape \(1001,\)"),
    "elements of a tensor": (torch.zeros, 1_000, "got torch.Tensor of shape"),
    "bits": (lambda n: (1 << n) - 1, param_values.MOST_BITS, "at most 13,000 bits"),
}


@pytest.mark.parametrize("kind", BOUNDS)
def test_params_up_to_a_bound_are_stored_and_larger_ones_refused(kind: str) -> None:
    make, most, words = BOUNDS[kind]
    write_json(Path("config.json"), plain_params({"it": make(most)}))
    read_json(Path("config.json"))
    with pytest.raises(ValueError, match=words) as caught:
        plain_params({"it": make(most + 1)})
    assert "'it" in str(caught.value) and len(str(caught.value)) < 400


def test_params_as_integers_of_more_digits_would_not_be_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The negative control."""
    monkeypatch.setattr(param_values, "MOST_BITS", 20_000)
    with pytest.raises(ValueError, match="integer string conversion"):
        write_json(Path("config.json"), plain_params({"it": 1 << 19_000}))


# --- names ---


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({1: "a", "1": "b"}, "names in 'params' must be different as text, got int and str .* '1'"),
        (
            {"m": {None: 1, "None": 2}},
            "in 'm' must be different as text, got NoneType and str",
        ),
        ({Mode.FAST: 1, "fast": 2}, "got Mode and str that both read 'fast'"),
        ({"a": [{1.0: 1, "1.0": 2}]}, "names in 'a.0' must be different"),
        (
            {"redis://:canary1@h": 1, "redis://:canary2@h": 2},
            "got str and str that both read 'redis://:\\*\\*\\*@h'",
        ),
        ({"a.b": 1, "a": {"b": 2}}, r"param 'a\.b' must be given once, got 2"),
        ({"m": {"a": {"b.c": 1}, "a.b": {"c": 2}}}, r"param 'm\.a\.b\.c' must be given once"),
    ],
)
def test_params_of_one_name_are_refused(params: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        plain_params(params)
    assert "canary" not in str(caught.value)


def test_params_of_one_name_would_lose_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control."""
    monkeypatch.setattr(param_values, "named_leaves", lambda nested: ())
    with mt.start_run(params={"a.b": 1, "a": {"b": 2}}) as run:
        pass
    flat = dict(named_leaves(mt.load_run(run.path).params))
    assert flat == {"a.b": 2}


def test_params_with_dots_that_differ_are_kept_apart() -> None:
    params = {"optimizer": "adam", "optimizer.lr": 0.1, "a": {"b.c": 1, "b": {"d": 2}}}
    with mt.start_run(params=params) as run:
        run.log_params({"optimizer.lr": 0.2, "a.b.d": 3})
    loaded = mt.load_run(run.path)
    assert loaded.params == {
        "optimizer": "adam",
        "optimizer.lr": 0.2,
        "a": {"b.c": 1, "b": {"d": 3}},
    }
    changes = json.loads((run.path / "config.json").read_text())["changes"]
    assert [change["params"] for change in changes] == [
        {"optimizer.lr": [0.1, 0.2], "a.b.d": [2, 3]}
    ]


def test_params_under_secret_names_are_masked_whatever_their_kind() -> None:
    given = {
        "api_key": uuid.UUID(int=5),
        "hf_token": b"canary",
        "password": np.array([1, 2]),
        "secrets": {"canary"},
        "model": {"encryption_key": decimal.Decimal(3)},
        "store": pathlib.PurePosixPath("s3://user:canary@host/x"),
        "hosts": {"redis://:canary@h": 1},
        "late": pydantic.SecretStr("canary"),
        "max_tokens": np.int64(5),
        "tokens": range(3),
    }
    assert plain_params(given) == {
        "api_key": "***",
        "hf_token": "***",
        "password": "***",
        "secrets": "***",
        "model": {"encryption_key": "***"},
        "store": "s3://user:***@host/x",
        "hosts": {"redis://:***@h": 1},
        "late": "***",
        "max_tokens": 5,
        "tokens": "range(0, 3)",
    }


# --- resumed ---


def of_one_name(factor: int) -> Any:
    """Functions with one name that do not do the same."""

    def scaled(x: int) -> int:
        return factor * x

    return scaled


def resumed(first: Any, second: Any, **options: Any) -> tuple[dict[str, Any], str]:
    """The report of a resume whose param is another one, and the log."""
    with mt.start_run(params={"it": first}) as run:
        run.checkpoints().save(0, {"w": torch.ones(1)})
        run.finish("FAILED")
    with mt.start_run(params={"it": second}, resume=run.id) as run:
        run.checkpoints(**options).restore({"w": torch.zeros(1)})
    report = json.loads((run.path / "run.json").read_text())["restores"][-1]
    return report, (run.path / "training.log").read_text()


SAME: dict[str, Callable[[], tuple[Any, Any]]] = {
    "functions": lambda: (of_one_name(2), of_one_name(3)),
    "lambdas": lambda: (lambda: 1, lambda: 2),
    "classes": lambda: (type("Own", (), {"a": 1}), type("Own", (), {"a": 2})),
    "functions in a set": lambda: ({of_one_name(2)}, {of_one_name(3)}),
    "nan": lambda: (float("nan"), float("nan")),
    "sets": lambda: ({"a", "b", "c"}, {"c", "b", "a"}),
    "arrays": lambda: (np.array([1.0, np.nan]), torch.tensor([1.0, float("nan")])),
}


@pytest.mark.parametrize("kind", SAME)
def test_params_that_read_the_same_are_unchanged_on_a_resume(kind: str) -> None:
    report, log = resumed(*SAME[kind](), require_same=["it"])
    assert report["is_exact"] and "exact: yes" in log
    assert "changed" not in log


def test_params_that_are_functions_of_another_name_are_a_change() -> None:
    report, log = resumed(torch.relu, torch.tanh)
    assert report["unknown"] == ["it 'torch.relu' -> 'torch.tanh'"]
    assert "param it changed from 'torch.relu' to 'torch.tanh'" in log
    with pytest.raises(ValueError, match="require_same have changed"):
        resumed(torch.relu, torch.tanh, require_same=["it"])


def test_params_that_are_functions_would_change_if_their_addresses_were_stored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The negative control."""
    monkeypatch.setattr(param_kinds, "_qualified_name", repr)
    report, log = resumed(of_one_name(2), of_one_name(3))
    assert report["unknown"] and "param it changed" in log


SPAWNED = """
import multiprocessing, sys
import mlflow_track as mt

def schedule(step):
    return step

def train():
    with mt.start_run(backend="local", params={"schedule": schedule}):
        pass

if __name__ == "__main__":
    train()
    child = multiprocessing.get_context("spawn").Process(target=train)
    child.start()
    child.join()
    sys.exit(child.exitcode)
"""


def test_params_of_the_main_module_have_one_name_in_a_spawned_process(
    run_interpreter: Script,
) -> None:
    Path("spawning.py").write_text(SPAWNED)
    code = "import os, sys; os.execv(sys.executable, [sys.executable, 'spawning.py'])"
    done = run_interpreter(code)
    assert done.returncode == 0, done.stderr
    assert [run.params for run in mt.load_runs("runs")] == [{"schedule": "__main__.schedule"}] * 2


def test_params_that_are_long_are_cut_in_the_log_and_whole_in_the_record() -> None:
    report, log = resumed(np.zeros(1000), np.ones(1000))
    (line,) = [line for line in log.splitlines() if "param it changed" in line]
    assert "… (5,000 characters)" in line and len(line) < 600
    assert len(report["unknown"][0]) < 600
    (run,) = mt.load_runs("runs")
    assert run.params == {"it": [1.0] * 1000}
    (change,) = json.loads((run.path / "config.json").read_text())["changes"]
    assert change["params"]["it"] == [[0.0] * 1000, [1.0] * 1000]


def test_params_of_plain_kinds_import_nothing(run_interpreter: Script) -> None:
    code = """
    import sys, dataclasses, pathlib, uuid
    import mlflow_track as mt
    @dataclasses.dataclass
    class Config:
        lr: float = 0.1
        path: pathlib.Path = pathlib.Path("a")
    with mt.start_run(backend="local", params={"it": Config(), "s": {1}, "id": uuid.uuid4()}):
        pass
    found = {"attr", "attrs", "numpy", "omegaconf", "pandas", "pydantic", "torch", "transformers"}
    assert not found & set(sys.modules), found & set(sys.modules)
    """
    done = run_interpreter(code)
    assert done.returncode == 0, done.stderr
