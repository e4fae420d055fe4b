"""The table of plain kinds: each comes back as it was, as a new object and in place."""

from __future__ import annotations

import ast
import enum
import json
import random
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mlflow_track.checkpoint.state import classes, codec, fill, kinds

Point = namedtuple("Point", "x y")


class Colour(enum.Enum):
    RED = object()  # Its value cannot be stored, its name can.
    BLUE = 2


class Rights(enum.Flag):
    READ = 1
    WRITE = 2


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


def there_and_back(value: Any) -> Any:
    encoder = codec.Encoder()
    form = json.loads(json.dumps(encoder.encode(value, "state")))
    tensors = {name: tensor.detach().clone() for name, tensor in encoder.tensors.items()}
    return codec.decode(form, tensors)


def filled(live: Any, value: Any) -> Any:
    """`value` in the place of `live`, as a restore puts it there."""
    copies = fill.Copies()
    planned = copies.of("state", there_and_back(value), live)
    assert copies.settle() == []
    copies.make()
    return kinds.fill(live, copies.resolve(planned))


# --- generated values ---

NUMBERS = arrays.scalar_dtypes().filter(lambda dtype: dtype.kind in "biufc")


def arrays_of(dtype: Any) -> Any:
    shapes = arrays.array_shapes(min_dims=0, min_side=0, max_side=3)
    return arrays.arrays(dtype, shapes, elements=None)


def masked(array: np.ndarray, seed: int) -> Any:
    return np.ma.MaskedArray(array, np.random.default_rng(seed).random(array.shape) < 0.5)


def drawn(made: Any, count: int) -> Any:
    """A generator that has been used."""
    for _ in range(count):
        made.random()
    return made


SEEDS = st.integers(0, 2**32 - 1)
BITS = (np.random.PCG64, np.random.MT19937, np.random.Philox, np.random.SFC64)
FLOATS = st.floats(allow_nan=True)
KEYS = st.one_of(
    st.text(max_size=3),
    st.integers(),
    st.sampled_from([*Colour, *Level, None, 1j, b"k", (1, "a"), frozenset({2}), torch.float16]),
)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**80), 2**80),
    FLOATS,
    st.text(max_size=5),
    st.binary(max_size=9),
    st.binary(max_size=9).map(bytearray),
    st.complex_numbers(),
    st.sampled_from([*Colour, *Level, Rights.READ, Rights.READ | Rights.WRITE, Rights(0)]),
    st.sampled_from([torch.float32, torch.int8, torch.device("cuda:1"), torch.Size([2, 0])]),
    st.sets(st.integers() | st.text(max_size=3), max_size=3),
    st.frozensets(st.binary(max_size=3), max_size=3),
    NUMBERS.flatmap(arrays_of),
    NUMBERS.flatmap(lambda dtype: arrays.arrays(dtype, ()).map(lambda array: array[()])),
    st.builds(masked, arrays_of(np.dtype("f4")), SEEDS),
    st.builds(lambda seed, n: drawn(random.Random(seed), n), SEEDS, st.integers(0, 3)),
    st.builds(
        lambda kind, seed, n: drawn(np.random.Generator(kind(seed)), n),
        st.sampled_from(BITS),
        SEEDS,
        st.integers(0, 3),
    ),
    st.builds(lambda seed: drawn(np.random.RandomState(seed), 2), SEEDS),
    st.lists(st.integers(0, 3), max_size=3).map(lambda shape: torch.randn(shape)),
    st.lists(st.integers(0, 2), max_size=2).map(lambda shape: torch.randn(shape) * 1j),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.lists(inner, max_size=4).map(lambda items: deque(items, maxlen=3)),
        st.lists(inner, max_size=3).map(deque),
        st.builds(Point, inner, inner),
        st.dictionaries(KEYS, inner, max_size=3),
        st.dictionaries(KEYS, inner, max_size=3).map(OrderedDict),
        st.dictionaries(KEYS, inner, max_size=3).map(lambda items: defaultdict(list, items)),
        st.dictionaries(st.text(max_size=2), st.integers(), max_size=3).map(Counter),
    ),
    max_leaves=5,
)


@given(VALUES)
def test_every_kind_comes_back_as_a_new_object(value: Any) -> None:
    back = there_and_back(value)
    assert kinds.same(value, back), (value, back)


@given(VALUES, VALUES)
def test_every_kind_comes_back_in_the_place_of_any_other(live: Any, value: Any) -> None:
    before = there_and_back(value)
    back = filled(live, value)
    # A deque keeps the length that the code gives it; a generator its own kind of bits.
    if type(live) is type(value) and isinstance(live, deque | np.random.Generator):
        return
    assert kinds.same(back, before) or contains(live, deque | np.random.Generator), (back, before)


def contains(value: Any, types: Any) -> bool:
    if isinstance(value, types):
        return True
    kind = kinds.kind_of(value)
    parts = kind.parts(value).values() if kind is not None and kind.parts is not None else ()
    return any(contains(part, types) for part in parts)


@given(VALUES)
def test_same_tells_values_and_kinds_apart(value: Any) -> None:
    assert not kinds.same([value], [value, value])
    assert not kinds.same([value], (value,))


# --- in place ---

IN_PLACE: dict[str, tuple[Callable[[], Any], Any]] = {
    "array": (lambda: np.zeros(3), np.arange(3.0)),
    "strided array": (lambda: np.zeros((3, 2))[:, 1], np.arange(3.0)),
    "masked array": (
        lambda: np.ma.array([0.0, 0.0], mask=[1, 0]),
        np.ma.array([1.0, 2.0], mask=[0, 1]),
    ),
    "set": (set, {1, "a"}),
    "bytearray": (lambda: bytearray(b"--"), bytearray(b"abc")),
    "list": (list, [1, 2]),
    "dict": (dict, {"a": 1}),
    "Counter": (lambda: Counter(b=4), Counter(a=1)),
    "OrderedDict": (lambda: OrderedDict(a=0, b=1), OrderedDict(b=2, a=3)),
    "defaultdict": (lambda: defaultdict(int, z=3), defaultdict(list, a=[1])),
    "deque": (lambda: deque([9], maxlen=3), deque([1, 2], maxlen=3)),
    "tensor": (lambda: torch.zeros(3), torch.arange(3.0)),
    "column": (lambda: torch.zeros(3, 3)[:, 1], torch.arange(3.0)),
    "expanded": (lambda: torch.zeros(1).expand(3), torch.ones(1).expand(3)),
    "Parameter": (lambda: torch.nn.Parameter(torch.zeros(3)), torch.arange(3.0)),
    "random": (lambda: random.Random(0), drawn(random.Random(5), 3)),
    "Generator": (lambda: np.random.default_rng(0), drawn(np.random.default_rng(5), 3)),
    "RandomState": (lambda: np.random.RandomState(0), drawn(np.random.RandomState(5), 3)),
}


@pytest.mark.parametrize("kind", IN_PLACE)
def test_fill_changes_the_object_that_others_hold(kind: str) -> None:
    make, value = IN_PLACE[kind]
    live = make()
    assert filled(live, value) is live
    is_plain_tensor = isinstance(value, torch.Tensor)
    assert torch.equal(live, value) if is_plain_tensor else kinds.same(live, value)


def test_fill_reaches_what_lies_inside() -> None:
    inner = {"rows": [np.zeros(2)], "seen": {1}}
    rows, array, seen = inner["rows"], inner["rows"][0], inner["seen"]
    live = (inner,)
    filled(live, ({"rows": [np.ones(2)], "seen": {5}},))
    assert inner["rows"] is rows and rows[0] is array and array.tolist() == [1, 1]
    assert inner["seen"] is seen and seen == {5}


def test_fill_keeps_a_subclass_of_dict_of_the_caller() -> None:
    class Config(dict):
        pass

    live = Config(a=1)
    assert filled(live, {"b": 2}) is live and live == {"b": 2}


def test_fill_gives_overlapping_tensors_the_values_that_agree() -> None:
    base, now = torch.arange(6.0).view(2, 3), torch.zeros(2, 3)
    live = {"row": now[1], "column": now[:, 2], "all": now}
    held = list(live.values())
    back = filled(live, {"row": base[1], "column": base[:, 2], "all": base})
    assert torch.equal(now, base) and list(back.values()) == held


def test_fill_gives_overlapping_tensors_new_memory_where_the_saved_ones_differ() -> None:
    now = torch.zeros(3)
    back = filled({"a": now, "b": now[:2]}, {"a": torch.ones(3), "b": torch.zeros(2)})
    assert back["a"].tolist() == [1, 1, 1] and back["b"].tolist() == [0, 0]


# --- classes of the program ---


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a program that has not loaded the classes of this one."""
    monkeypatch.setattr(classes, "_loaded", lambda module, name: None)


def test_a_named_tuple_of_a_class_that_is_not_loaded_has_its_values_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forget(monkeypatch)
    back = there_and_back(Point(1, [2]))
    assert back == (1, [2]) and (back.x, back.y) == (1, [2]) and repr(back) == "Point(x=1, y=[2])"
    assert type(kinds.fill(Point(0, []), back)) is Point
    again = there_and_back(back)
    assert kinds.same(back, again)
    with pytest.raises(AttributeError):
        _ = back.z


def test_a_member_of_a_class_that_is_not_loaded_gets_it_from_the_live_entry(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forget(monkeypatch)
    for member in (Colour.RED, Level.HIGH, Rights.READ | Rights.WRITE):
        back = there_and_back(member)
        assert type(back) is classes.Absent and kinds.same(back, there_and_back(back))
        assert kinds.fill(next(iter(type(member))), back) is member
    assert kinds.fill(Level.LOW, there_and_back(Colour.RED)) == there_and_back(Colour.RED)


@pytest.mark.parametrize(
    "form",
    [
        {"$enum": ["os", "system", "x"]},
        {"$enum": ["enum", "Enum", "mro"]},
        {"$enum": ["builtins", "int", "real"]},
        {"$named": ["subprocess", "Popen", ["args"], ["true"]]},
        {"$named": ["builtins", "tuple", ["x"], [1]]},
        {"$named": ["ast", "Name", list(ast.Name._fields), [1] * len(ast.Name._fields)]},
        {"$named": ["os", "stat_result", ["st_mode"], [1]]},
    ],
)
def test_a_class_is_only_ever_an_enum_or_a_named_tuple(form: Any) -> None:
    back = codec.decode(form, {})
    assert type(back) in (classes.Absent, classes.Named)


# --- hostile documents ---

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
TAGS = (*kinds.BY_TAG, "$tensor", "$complex", "$strided", "$later")
HOSTILE = st.recursive(
    JSON,
    lambda inner: (
        st.builds(lambda tag, content: {tag: content}, st.sampled_from(TAGS), inner)
        | st.lists(inner, max_size=4)
    ),
    max_leaves=6,
)


@given(HOSTILE)
def test_decode_of_a_hostile_document_is_a_value_error_or_plain_data(form: Any) -> None:
    try:
        codec.decode(form, {"t": torch.zeros(2)})
    except ValueError:
        pass


@pytest.mark.parametrize(
    "form",
    [
        {"$strided": [{"$tensor": "t"}, [10**12]]},
        {"$strided": [{"$tensor": "t"}, [1, 1]]},
        {"$strided": [{"$tensor": "t"}, [3]]},
        {"$tensor": "missing"},
        {"$tensor": ["t"]},
        {"$array": ["O", [1], {"$bytes": "AAAAAAAAAAA="}]},
        {"$array": ["f8,f8", [1], {"$bytes": "AAAAAAAAAAA="}]},
        {"$array": ["<M8[s]", [1], {"$bytes": "AAAAAAAAAAA="}]},
        {"$array": ["<f8", [10**9], {"$bytes": "AAAAAAAAAAA="}]},
        {"$scalar": ["<f8", ""]},
        {"$float": "1e5"},
        {"$random": [3, [1, 2], None]},
        {"$np_generator": {"bit_generator": "seed"}},
        {"$np_generator": {"bit_generator": "PCG64", "state": {}}},
        {"$np_random_state": {"bit_generator": "MT19937", "state": {"key": [], "pos": 99999}}},
        {"$deque": [-1, []]},
        {"$deque": [10**30, []]},
        {"$named": ["m", "P", ["x"], []]},
        {"$enum": ["m", "E", None]},
        {"$dict": [[{"$tuple": [[]]}, 1]]},
        {"$device": "nowhere"},
        {"$dtype": "nn"},
        {"$masked": [1, 2, 3, 4]},
    ],
)
def test_decode_refuses_what_no_encoder_writes(form: Any) -> None:
    with pytest.raises(ValueError):
        codec.decode(form, {"t": torch.zeros(2)})


def test_decode_refuses_a_document_that_is_nested_without_end() -> None:
    form: Any = 1
    for _ in range(100_000):
        form = [form]
    with pytest.raises(ValueError, match="not encoded state"):
        codec.decode(form, {})


REFUSED = {
    "meta": (lambda: torch.zeros(2, device="meta"), "on the meta device"),
    "quantized": (
        lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        "a quantized tensor",
    ),
    "nested": (lambda: torch.nested.nested_tensor([torch.ones(2)]), "a nested tensor"),
    "jagged": (
        lambda: torch.nested.nested_tensor([torch.ones(2)], layout=torch.jagged),
        "a nested tensor",
    ),
    "sparse": (lambda: torch.eye(3).to_sparse(), r"a sparse tensor \(sparse_coo\)"),
    "sparse rows": (lambda: torch.eye(3).to_sparse_csr(), r"a sparse tensor \(sparse_csr\)"),
    "lazy": (lambda: torch.nn.LazyLinear(3).weight, "a lazy layer without a shape"),
    "subclass": (lambda: torch.ones(1).as_subclass(Marked), "got a Marked"),
    "text array": (lambda: np.array(["a"]), "an array of numbers, got one of <U1"),
    "objects": (lambda: np.array([object()]), "an array of numbers, got one of object"),
    "matrix": (lambda: np.ones((2, 2)).view(np.matrix), "numpy.matrix"),
    "masked": (lambda: np.ma.masked, "MaskedConstant"),
    "set of tensors": (lambda: {torch.ones(1)}, "a set of plain values"),
    "list subclass": (lambda: type("Rows", (list,), {})(), "Rows"),
    "class": (lambda: torch.nn.Linear, "builtins.type"),
}


class Marked(torch.Tensor):
    pass


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", REFUSED)
def test_encode_refuses_by_kind_and_path(kind: str) -> None:
    make, words = REFUSED[kind]
    with pytest.raises(TypeError, match=f"'run\\.deep\\.0.*{words}"):
        codec.Encoder().encode({"deep": [make()]}, "run")
