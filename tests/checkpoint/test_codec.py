"""State becomes a safetensors file plus JSON, and comes back equal."""

import json
import math
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from mlflow_track.checkpoint.disk import metadata, safetensors
from mlflow_track.checkpoint.state import codec

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers() | st.none(), inner)
    ),
    max_leaves=20,
)


def there_and_back(value: Any) -> Any:
    encoder = codec.Encoder()
    text = json.dumps(encoder.encode(value, "state"), allow_nan=False)
    return codec.decode(json.loads(text), safetensors.parse(image_of(encoder.tensors)))


def image_of(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    plan = safetensors.CachedPlan()
    buffer = torch.empty(plan.of(tensors).total_bytes, dtype=torch.uint8)
    plan.fill(buffer, tensors)
    return buffer


def equal(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor | np.ndarray):
        return (
            type(left) is type(right)
            and left.dtype == right.dtype
            and bool((left == right).all() and left.shape == right.shape)
        )
    if isinstance(left, float) and isinstance(right, float):
        return left == right or (math.isnan(left) and math.isnan(right))
    if isinstance(left, dict):
        return (
            type(left) is type(right)
            and list(left) == list(right)
            and all(equal(left[k], right[k]) for k in left)
        )
    if isinstance(left, list | tuple):
        return (
            type(left) is type(right)
            and len(left) == len(right)
            and all(equal(a, b) for a, b in zip(left, right, strict=True))
        )
    return type(left) is type(right) and left == right


@given(PLAIN)
def test_plain_data_comes_back_equal(value: Any) -> None:
    assert equal(value, there_and_back(value))


DTYPES = [d for d in safetensors._NAMES if d not in (torch.float8_e4m3fn, torch.float8_e5m2)]


@given(
    st.lists(
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3)), max_size=6
    )
)
def test_tensors_of_every_dtype_and_shape_come_back_equal(
    specification: list[tuple[torch.dtype, list[int]]],
) -> None:
    tensors = [torch.randint(0, 2, shape).to(dtype) for dtype, shape in specification]
    assert equal(tensors, there_and_back(tensors))


def test_the_image_is_a_safetensors_file(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 5).t(), "b": torch.tensor(1), "c": torch.ones(7).bfloat16()}
    path = tmp_path / "x.safetensors"
    path.write_bytes(image_of(tensors).numpy().tobytes())
    read = load_file(path)
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)


def test_odd_things_come_back() -> None:
    state = {
        "array": np.arange(6, dtype=np.int16).reshape(2, 3),
        "large": np.random.default_rng(0).normal(size=(64, 64)),
        "scalar": np.float32(0.1),
        "complex": torch.tensor([1 + 2j]),
        "dtype": torch.bfloat16,
        "device": torch.device("cpu"),
        "$odd": {"$tuple": 1},
        "set": {1, 2},
        "sets": {frozenset({1, 2}), frozenset()},
        "key": {(frozenset({1}), 2): 3, frozenset({"a"}): 4},
        "bytearray": bytearray(b"x"),
        "counter": Counter("aab"),
        "ordered": OrderedDict(b=torch.ones(2), a=2),
        "default": defaultdict(list, a=[1]),
        "no default": defaultdict(None, {1: 2}),
    }
    back = there_and_back(state)
    assert all(equal(state[key], back[key]) for key in state)
    assert list(back) == list(state)


STRIDED = {
    "transposed": torch.randn(3, 5).t(),
    "permuted": torch.randn(2, 3, 4).permute(1, 2, 0),
    "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "1 x 1, channels last": torch.randn(6, 3, 1, 1).to(memory_format=torch.channels_last),
    "complex": torch.randn(3, 5, dtype=torch.complex64).t(),
    "conjugated": torch.randn(3, 5, dtype=torch.complex64).mH,
}


@pytest.mark.parametrize("layout", STRIDED)
def test_a_dense_tensor_has_its_strides_again(layout: str) -> None:
    tensor = STRIDED[layout]
    back = there_and_back({"t": tensor})["t"]
    assert equal(tensor, back) and back.stride() == tensor.stride()


def test_a_slice_or_an_expanded_tensor_comes_back_contiguous() -> None:
    for tensor in (torch.randn(4, 6)[:, ::2], torch.randn(3, 1).expand(3, 4)):
        back = there_and_back(tensor)
        assert equal(tensor, back) and back.is_contiguous()


def test_an_array_in_fortran_order_has_it_again() -> None:
    for array in (np.arange(6.0).reshape(2, 3), np.random.default_rng(0).normal(size=(64, 64))):
        back = there_and_back(np.asfortranarray(array))
        assert equal(array, back) and back.flags.f_contiguous
        assert there_and_back(array).flags.c_contiguous


def test_tied_tensors_are_stored_once() -> None:
    weight = torch.randn(4, 4)
    encoder = codec.Encoder()
    encoder.encode({"a": weight, "b": weight}, "m")
    assert list(encoder.tensors) == ["m.a"]


@pytest.mark.parametrize(
    "thing",
    [
        *(lambda: 0, object(), open, torch.zeros(2).to_sparse(), {1: {range(1): 1}}),
        defaultdict(lambda: 0),
    ],
)
def test_what_cannot_be_held_is_refused_with_its_path(thing: Any) -> None:
    with pytest.raises(TypeError, match=r"'run\.deep\.0"):
        codec.Encoder().encode({"deep": [thing]}, "run")


def test_a_cycle_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(TypeError, match="cycle"):
        codec.Encoder().encode(loop, "state")


@pytest.mark.parametrize("has_guards", [True, False])
@pytest.mark.parametrize("tied", ["nowhere", "before", "after"])
def test_what_an_encoder_remembers_changes_nothing(
    tied: str, has_guards: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_guards:
        monkeypatch.setattr(metadata, "_Guards", None)
    memory: dict[str, Any] = {}
    tensors = {f"t{i}": torch.randn(3) for i in range(20)}
    changes: list[Callable[[], Any]] = [
        lambda: None,
        lambda: tensors.update(t3=torch.randn(3)),
        lambda: tensors.pop("t5"),
        lambda: setattr(tensors["t7"], "data", torch.randn(2, 2)),
        lambda: setattr(tensors["t8"], "data", torch.randn(3).double()),
        lambda: setattr(tensors["t8"], "data", torch.randn(3, 2)),
        lambda: setattr(tensors["t8"], "data", torch.randn(2, 3).t()),
        lambda: tensors["t8"].t_(),
        lambda: tensors["t10"].unsqueeze_(0),
        lambda: tensors["t10"].squeeze_(0),
        lambda: setattr(tensors["t10"], "data", torch._neg_view(tensors["t10"].data)),
        lambda: tensors.update(t11=torch.nn.Parameter(tensors["t11"])),
        lambda: tensors.update(n=4),  # type: ignore[arg-type]
        lambda: tensors.update(t9=tensors["t1"]),
        lambda: tensors.pop("n"),
    ]
    plan = safetensors.CachedPlan()
    for change in changes:
        change()
        for _ in range(3):
            known, fresh = codec.Encoder(memory), codec.Encoder()
            state: dict[str, Any] = {"inside": tensors}
            if tied == "before":
                state = {"outside": tensors["t2"], "inside": tensors}
            if tied == "after":
                state["outside"] = tensors["t2"]
            assert known.encode(state, "s") == fresh.encode(state, "s")
            assert list(known.tensors) == list(fresh.tensors)
            for name, tensor in fresh.tensors.items():
                # One that torch negates when it is read is stored as its values.
                assert known.tensors[name] is tensor or (
                    name == "s.inside.t10" and torch.equal(known.tensors[name], tensor)
                )
                assert not known.tensors[name].is_neg()
            assert plan.of(known.tensors) == safetensors.plan(fresh.tensors)
