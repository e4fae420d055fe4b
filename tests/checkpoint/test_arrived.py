"""After loading, live objects are compared with the checkpoint: what did not arrive is named."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mlflow_track.checkpoint.reproducibility import Findings, arrived
from mlflow_track.checkpoint.state.arrived import Arrivals

ONES = torch.ones(3)
SAME: dict[str, tuple[Any, Any]] = {
    "tensors": (ONES, torch.ones(3)),
    "NaN": (torch.tensor([1.0, float("nan")]), torch.tensor([1.0, float("nan")])),
    "a complex NaN": (torch.tensor([complex("nan+1j")]),) * 2,
    "tiny floats": (torch.ones(2).to(torch.float8_e4m3fn), torch.ones(2).to(torch.float8_e4m3fn)),
    "strides": (torch.arange(6).view(2, 3), torch.arange(6).view(2, 3).t().contiguous().t()),
    "no elements": (torch.zeros(0, 3), torch.zeros(0, 3)),
    "NaN as a number": (float("nan"), float("nan")),
    "kinds of a container": ((1, [2, {"a": 3}]), [1, (2, {"a": 3.0})]),
    "a number in a tensor": (10, torch.tensor(10.0)),
    "a NumPy number": (np.float64(1.5), 1.5),
    "arrays": (np.array([1.0, np.nan]), np.array([1.0, np.nan])),
    "sets and bytes": ({"s": {1, 2}, "b": b"a"}, {"s": {2, 1}, "b": b"a"}),
    "prefixes": (
        {"module.a": 1, "module.b": 2},
        {"_orig_mod.module.b": 2, "_orig_mod.module.a": 1},
    ),
    "order of the keys": ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
}
OTHER: dict[str, tuple[Any, Any, list[str]]] = {
    "a value": ({"w": ONES}, {"w": ONES * 2}, ["x.w has another value"]),
    "one bit": (ONES, torch.tensor([1.0, 1.0, 1.0000001]), ["x has another value"]),
    "NaN here": (ONES, torch.tensor([1, 1, float("nan")]), ["x has another value"]),
    "a dtype": (ONES, ONES.double(), ["x float32 -> float64"]),
    "a shape": (ONES, ONES.view(3, 1), ["x [3] -> [3, 1]"]),
    "a number": ({"n": 3}, {"n": 0}, ["x.n 3 -> 0"]),
    "missing": ({"a": 1, "b": 2}, {"a": 1}, ["x.b is missing here"]),
    "more": ({"a": 1}, {"a": 1, "b": 2}, ["x.b is not in the checkpoint"]),
    "items": ([1, 2], [1], ["x has 2 items in the checkpoint, 1 here"]),
    "a tensor became a number": (ONES, 1, ["x float32[3] -> 1"]),
    "a mapping became a list": ({"a": 1}, [1], ["x dict -> list"]),
    "an array": (np.zeros(2), np.ones(2), ["x has another value"]),
    "the dtype of an array": (np.zeros(2), np.zeros(2, int), ["x float64[2] -> int64[2]"]),
    "deep": ({"a": [0, {"b": (1, 2)}]}, {"a": [0, {"b": (1, 3)}]}, ["x.a.1.b.1 2 -> 3"]),
    "a set": ({1}, {2}, ["x set -> set"]),
}


@pytest.mark.parametrize("kind", SAME)
def test_compare_finds_nothing_where_all_arrived(kind: str) -> None:
    saved, here = SAME[kind]
    assert Arrivals().compare("x", saved, here) == []


@pytest.mark.parametrize("kind", OTHER)
def test_compare_names_the_leaf_that_did_not_arrive(kind: str) -> None:
    saved, here, words = OTHER[kind]
    assert Arrivals().compare("x", saved, here) == words


@pytest.mark.parametrize("at", [0, 4_999, 9_999])
def test_compare_finds_one_changed_tensor_among_many_on_several_cores(
    at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow_track.checkpoint.disk import copying

    monkeypatch.setattr(copying, "_thread_count", lambda *_: 3)
    saved = {str(i): torch.full((7,), i) for i in range(10_000)}
    here = {name: tensor.clone() for name, tensor in saved.items()}
    here[str(at)][6] += 1
    assert Arrivals().compare("x", saved, here) == [f"x.{at} has another value"]


def test_ties_that_are_new_or_gone_are_named() -> None:
    one, two = torch.ones(2), torch.ones(2)
    for saved, here, words in (
        ({"a": one, "b": one}, {"a": one, "b": two}, "x.a and x.b were one tensor at the save and"),
        ({"a": one, "b": two}, {"a": one, "b": one}, "x.a and x.b were 2 tensors at the save and"),
    ):
        arrivals = Arrivals()
        assert arrivals.compare("x", saved, here, may_be_tied=True) == []
        (found,) = arrivals.ties()
        assert found.startswith(words)


def test_ties_are_the_same_where_nothing_changed() -> None:
    tied, model = nn.Linear(2, 2), nn.Module()
    model.a, model.b, model.free = tied, tied, nn.Linear(2, 2)
    arrivals, saved = Arrivals(), {k: v.clone() for k, v in model.state_dict().items()}
    saved["b.weight"], saved["b.bias"] = saved["a.weight"], saved["a.bias"]
    assert arrivals.compare("x", saved, model.state_dict(), may_be_tied=True) == []
    assert arrivals.ties() == []


class Kept:
    """An object whose `state_dict` is computed by what it was given."""

    def __init__(self, compute: Callable[[], Any]) -> None:
        self.state_dict = compute

    def load_state_dict(self, state: Any) -> None:
        pass


DRAWS: dict[str, Callable[[], Any]] = {
    "torch": lambda: torch.rand(1),
    "python": random.random,
    "numpy": np.random.rand,
}


@pytest.mark.parametrize("generator", DRAWS)
def test_state_dict_that_draws_random_numbers_is_unknown_and_costs_none(generator: str) -> None:
    draw = DRAWS[generator]
    reference = Kept(lambda: {"n": 1})
    drawing = Kept(lambda: {"n": (draw(), 1)[1]})
    assert arrived({"x": reference}, {"x": {"n": 1}}) == Findings([], [])
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    expected = draw()
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    found = arrived({"x": drawing}, {"x": {"n": 1}})
    assert found == Findings([], ["state_dict() of 'x' draws random numbers"])
    assert draw() == expected


def test_state_dict_that_never_returns_the_same_is_unknown() -> None:
    calls = iter(range(9))
    found = arrived({"x": Kept(lambda: {"n": next(calls)})}, {"x": {"n": 7}})
    assert found == Findings([], ["two calls of state_dict() of 'x' do not return the same"])


def test_findings_of_ranks_are_said_once_with_the_rank_where_only_some_have_them() -> None:
    ranks = [Findings(["a"]), Findings(["a", "b"], ["c"])]
    assert Findings.of_ranks(ranks) == Findings(["a", "b (rank 1)"], ["c (rank 1)"], [])
