"""Params of every kind that people configure with: what is stored of each, and what is refused."""

from __future__ import annotations

import argparse
import array
import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import io
import ipaddress
import json
import math
import pathlib
import re
import socket
import types
import typing
import uuid
import zoneinfo
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import msgspec
import numpy as np
import omegaconf
import pandas as pd
import pydantic
import pytest
import torch
from transformers.configuration_utils import PretrainedConfig

import mlflow_track as mt
from mlflow_track.param_values import plain_params

HERE = __name__


class Mode(enum.Enum):
    FAST = "fast"
    PAIR = (1, 2)
    MARK = object()


class Rights(enum.Flag):
    READ = 1
    WRITE = 2


Point = collections.namedtuple("Point", "x y")


class Typed(typing.NamedTuple):
    lr: float = 0.5


@dataclasses.dataclass(frozen=True)
class Frozen:
    width: int = 3
    shared: typing.ClassVar[int] = 4
    scale: dataclasses.InitVar[int] = 5
    late: int = dataclasses.field(init=False)


@dataclasses.dataclass
class Structured:
    mode: Mode = Mode.FAST
    path: Path = Path("a")
    layers: list[int] = dataclasses.field(default_factory=lambda: [1])


@dataclasses.dataclass
class OfDict(dict):  # type: ignore[type-arg]
    lr: float = 0.5


@attrs.define
class Attrs:
    lr: float = 0.5
    _hidden: str = "h"


class Struct(msgspec.Struct):
    lr: float = 0.5


class Inner(pydantic.BaseModel):
    width: int = 3


class Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")

    lr: float = 0.5
    inner: Inner = Inner()
    path: Path = Path("a/b")
    key: pydantic.SecretStr = pydantic.SecretStr("canary")
    url: pydantic.PostgresDsn = pydantic.PostgresDsn("postgresql://u:canary@h/d")
    left_out: Any = pydantic.Field(default_factory=object, exclude=True)


class Numbers(pydantic.RootModel[list[int]]):
    pass


class Mapped(pydantic.RootModel[dict[str, int]]):
    pass


class OldModel:
    """As a model of pydantic 1 looks from outside."""

    class _Info:
        def __init__(self, exclude: bool | None) -> None:
            self.exclude = exclude

    __fields__: typing.ClassVar = {
        "lr": types.SimpleNamespace(field_info=_Info(None)),
        "left_out": types.SimpleNamespace(field_info=_Info(True)),
    }
    parse_obj = None

    def __init__(self) -> None:
        self.lr, self.left_out, self.extra = 0.5, object(), 1


class EasyDict(dict):  # type: ignore[type-arg]
    """As many packages have one: a dict with attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class ConfigDict:
    """As that of ml_collections: no Mapping, and with the methods that `dict(…)` asks for."""

    def __init__(self, content: dict[str, Any]) -> None:
        self._content = content

    def keys(self) -> list[str]:
        return list(self._content)

    def __getitem__(self, key: str) -> Any:
        return self._content[key]


class WithToDict:
    def to_dict(self) -> dict[str, Any]:
        return {"lr": 0.5}


class Location:
    """A path of another package."""

    def __fspath__(self) -> str:
        return "s3:/bucket/x"


class OwnModule(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.setting = 3


def zone(key: str | None) -> zoneinfo.ZoneInfo:
    """One whose file is the least that its format allows, and not the machine's."""
    counts = b"".join(number.to_bytes(4, "big") for number in (0, 0, 0, 0, 1, 4))
    file = io.BytesIO(b"TZif\0" + bytes(15) + counts + bytes(6) + b"UTC\0")
    return zoneinfo.ZoneInfo.from_file(file, key)


def activation(x: float) -> float:
    return x


OMEGA = {
    "lr": 0.5,
    "again": "${lr}",
    "layers": [1, "${lr}", {"lr": "${lr}"}],
    "later": "???",
    "list": ["???"],
    "inner": {"of": "${inner.width}", "width": 3},
}
OMEGA_STORED = {
    "lr": 0.5,
    "again": 0.5,
    "layers": [1, 0.5, {"lr": 0.5}],
    "later": "???",
    "list": ["???"],
    "inner": {"of": 3, "width": 3},
}

# What is given, and what is stored; the rows of the table in docs/logging.md, and their relatives.
STORED: dict[str, tuple[Any, Any]] = {
    "None": (None, None),
    "bool": (True, True),
    "int": (-3, -3),
    "large int": (10**1000, 10**1000),
    "float": (0.1, 0.1),
    "nan": (math.nan, "nan"),
    "infinity": (-math.inf, "-inf"),
    "text": ("a\nb", "a\nb"),
    "half a character": ("a\udce9", "a\\udce9"),
    "complex": (1 + 2j, "(1+2j)"),
    "Decimal": (decimal.Decimal("0.10"), "0.10"),
    "Fraction": (fractions.Fraction(1, 3), "1/3"),
    "bytes": (b"a\xff", "b'a\\xff'"),
    "bytearray": (bytearray(b"a"), "b'a'"),
    "memoryview": (memoryview(b"a"), "b'a'"),
    "range": (range(0, 9, 2), "range(0, 9, 2)"),
    "slice": (slice(1, np.int64(2)), "slice(1, 2, None)"),
    "Ellipsis": (..., "Ellipsis"),
    "datetime": (datetime.datetime(2026, 1, 2), "2026-01-02T00:00:00"),
    "datetime with a zone": (
        datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone.utc),
        "2026-01-02T00:00:00+00:00",
    ),
    "date": (datetime.date(2026, 1, 2), "2026-01-02"),
    "time": (datetime.time(1, 2), "01:02:00"),
    "timedelta": (datetime.timedelta(days=1, seconds=5), "1 day, 0:00:05"),
    "timezone": (datetime.timezone.utc, "UTC"),
    "ZoneInfo": (zone("Europe/Berlin"), "Europe/Berlin"),
    "Timestamp": (pd.Timestamp(5), "1970-01-01T00:00:00.000000005"),
    "UUID": (uuid.UUID(int=5), "00000000-0000-0000-0000-000000000005"),
    "IP address": (ipaddress.ip_address("::1"), "::1"),
    "pattern": (re.compile("a+"), "re.compile('a+')"),
    "pattern with a flag": (re.compile("a", re.I), "re.compile('a', re.IGNORECASE)"),
    "Path": (pathlib.Path("a/b"), "a/b"),
    "Windows path": (pathlib.PureWindowsPath("a/b"), "a\\b"),
    "path of another package": (Location(), "s3:/bucket/x"),
    "Enum": (Mode.FAST, "fast"),
    "Enum of a tuple": (Mode.PAIR, [1, 2]),
    "Enum of a bare object": (Mode.MARK, "Mode.MARK"),
    "Flag": (Rights.READ | Rights.WRITE, 3),
    "pybind11 enum": (torch.nn.attention.SDPBackend.MATH, "SDPBackend.MATH"),
    "dtype of torch": (torch.bfloat16, "torch.bfloat16"),
    "device": (torch.device("cuda:1"), "cuda:1"),
    "layout": (torch.strided, "torch.strided"),
    "memory format": (torch.channels_last, "torch.channels_last"),
    "dtype of NumPy": (np.dtype("f4"), "float32"),
    "type of NumPy": (np.float32, "numpy.float32"),
    "scalar of NumPy": (np.float32(0.5), 0.5),
    "bool of NumPy": (np.bool_(True), True),
    "text of NumPy": (np.str_("a"), "a"),
    "complex of NumPy": (np.complex64(1j), "1j"),
    "long double that is a float": (np.longdouble(0.5), 0.5),
    "long double nan": (np.longdouble("nan"), "nan"),
    "long complex": (np.clongdouble(1), "(1+0j)"),
    "datetime64": (np.datetime64(1, "ns"), "1970-01-01T00:00:00.000000001"),
    "timedelta64": (np.timedelta64(5, "s"), "5 seconds"),
    "array": (np.array([[1.0, np.nan]]), [[1.0, "nan"]]),
    "array without dimensions": (np.array(3), 3),
    "array of days": (np.array(["2026-01-02"], "M8[D]"), ["2026-01-02"]),
    "array of nanoseconds": (np.array([5], "M8[ns]"), ["1970-01-01T00:00:00.000000005"]),
    "array of objects": (np.array([{"a": Mode.FAST}, None]), [{"a": "fast"}, None]),
    "array of long doubles": (np.longdouble([1, 2]), [1.0, 2.0]),
    "array of Python": (array.array("i", [1, 2]), [1, 2]),
    "tensor": (torch.tensor([1, 2]), [1, 2]),
    "tensor with a gradient": (torch.ones(1, dtype=torch.bfloat16, requires_grad=True), [1.0]),
    "tensor without dimensions": (torch.tensor(2.5), 2.5),
    "complex tensor": (torch.tensor([1j]), ["1j"]),
    "Size": (torch.Size([1, 2]), [1, 2]),
    "function": (activation, f"{HERE}.activation"),
    "function of torch in C": (torch.relu, "torch.relu"),
    "function of C": (math.sqrt, "math.sqrt"),
    "ufunc": (np.tanh, "numpy.tanh"),
    "method of C": (dict.get, "builtins.dict.get"),
    "bound method": (Frozen.__repr__, f"{HERE}.Frozen.__repr__"),
    "class": (torch.optim.AdamW, "torch.optim.adamw.AdamW"),
    "class of Python": (dict, "builtins.dict"),
    "module": (np.linalg, "numpy.linalg"),
    "annotation": (list[int], "list[int]"),
    "union": (int | None, "int | None"),
    "Literal": (typing.Literal["a"], "typing.Literal['a']"),
    "partial": (
        functools.partial(torch.optim.AdamW, 1, lr=0.5),
        {"function": "torch.optim.adamw.AdamW", "args": [1], "keywords": {"lr": 0.5}},
    ),
    "activation": (
        torch.nn.Dropout(0.5),
        {"class": "torch.nn.modules.dropout.Dropout", "p": 0.5, "inplace": False},
    ),
    "activations": (
        torch.nn.Sequential(torch.nn.Tanh()),
        {
            "class": "torch.nn.modules.container.Sequential",
            "modules": {"0": {"class": "torch.nn.modules.activation.Tanh"}},
        },
    ),
    "loss": (
        torch.nn.CrossEntropyLoss(label_smoothing=0.5),
        {
            "class": "torch.nn.modules.loss.CrossEntropyLoss",
            "reduction": "mean",
            "ignore_index": -100,
            "label_smoothing": 0.5,
        },
    ),
    "module of the caller's": (OwnModule(), {"class": f"{HERE}.OwnModule", "setting": 3}),
    "tuple": ((1, (2,)), [1, [2]]),
    "deque": (collections.deque([1]), [1]),
    "values": ({"a": 1}.values(), [1]),
    "set": ({10, 9, "b", "a", None}, [9, 10, "a", "b", None]),
    "set of sets": (frozenset({frozenset({2, 1})}), [[1, 2]]),
    "keys": ({"b": 1, "a": 2}.keys(), ["a", "b"]),
    "keys of many kinds": (
        {1: "a", 2.5: "b", None: "c", (1, "x"): "d", Mode.FAST: "e", datetime.date(2026, 1, 2): 1},
        {"1": "a", "2.5": "b", "None": "c", '[1, "x"]': "d", "fast": "e", "2026-01-02": 1},
    ),
    "empty mapping": ({}, {}),
    "mapping proxy": (types.MappingProxyType({"a": 1}), {"a": 1}),
    "UserDict": (collections.UserDict({"a": 1}), {"a": 1}),
    "defaultdict": (collections.defaultdict(int, a=1), {"a": 1}),
    "Counter": (collections.Counter("aab"), {"a": 2, "b": 1}),
    "dict with attributes": (EasyDict(a=EasyDict(b=1)), {"a": {"b": 1}}),
    "config that is no Mapping": (ConfigDict({"a": ConfigDict({"b": 1})}), {"a": {"b": 1}}),
    "object with to_dict": (WithToDict(), {"lr": 0.5}),
    "row of a table": (pd.Series({"a": 1, "b": 2}), {"a": 1, "b": 2}),
    "dataclass": (Frozen(), {"width": 3}),
    "dataclass that is a dict": (OfDict(), {"lr": 0.5}),
    "Namespace": (
        argparse.Namespace(a=argparse.Namespace(b=1)),
        {"a": {"b": 1}},
    ),
    "SimpleNamespace": (types.SimpleNamespace(a=1), {"a": 1}),
    "namedtuple": (Point(1, 2), {"x": 1, "y": 2}),
    "NamedTuple": (Typed(), {"lr": 0.5}),
    "attrs": (Attrs(), {"lr": 0.5, "_hidden": "h"}),
    "msgspec": (Struct(), {"lr": 0.5}),
    "pydantic": (
        Model(more=1),  # type: ignore[call-arg]
        {
            "lr": 0.5,
            "inner": {"width": 3},
            "path": "a/b",
            "key": "***",
            "url": "postgresql://u:***@h/d",
            "more": 1,
        },
    ),
    "pydantic root": (Numbers([1, 2]), [1, 2]),
    "pydantic 1": (OldModel(), {"lr": 0.5, "extra": 1}),
    "OmegaConf": (omegaconf.OmegaConf.create(OMEGA), OMEGA_STORED),
    "OmegaConf list": (omegaconf.OmegaConf.create([1, {"a": 2}]), [1, {"a": 2}]),
    "OmegaConf structured": (
        omegaconf.OmegaConf.structured(Structured),
        {"mode": "fast", "path": "a", "layers": [1]},
    ),
}


@pytest.mark.parametrize("kind", STORED)
def test_params_of_each_kind_are_stored_as_the_table_says(kind: str) -> None:
    given_value, stored = STORED[kind]
    content = plain_params({"it": given_value, "nested": {"list": [given_value]}})
    assert content == {"it": stored, "nested": {"list": [stored]}}
    assert json.loads(json.dumps(content, allow_nan=False)) == content


def test_a_run_reads_back_params_of_every_kind_as_they_were_stored() -> None:
    with mt.start_run(params={kind: value for kind, (value, _) in STORED.items()}) as run:
        run.log_params({"late": {kind: value for kind, (value, _) in STORED.items()}})
    stored = {kind: expected for kind, (_, expected) in STORED.items()}
    assert mt.load_run(run.path).params == {**stored, "late": stored}


@pytest.mark.parametrize(
    ("params", "stored"),
    [
        (Frozen(), {"width": 3}),
        (Point(1, 2), {"x": 1, "y": 2}),
        (argparse.Namespace(a=1), {"a": 1}),
        (Attrs(), {"lr": 0.5, "_hidden": "h"}),
        (Inner(), {"width": 3}),
        (Mapped({"a": 1}), {"a": 1}),
        (omegaconf.OmegaConf.create({"a": 1, "b": "${a}"}), {"a": 1, "b": 1}),
        (pd.Series({"a": 1}), {"a": 1}),
        (functools.partial(dict, a=1), {"function": "builtins.dict", "keywords": {"a": 1}}),
    ],
)
def test_params_as_a_whole_may_be_any_configuration_object(params: Any, stored: Any) -> None:
    assert plain_params(params) == stored


def test_params_of_a_config_of_transformers_are_more_than_its_fields() -> None:
    config = PretrainedConfig(beyond_its_fields=1)
    assert "beyond_its_fields" not in {f.name for f in dataclasses.fields(config)}
    assert plain_params(config)["beyond_its_fields"] == 1


class Broken:
    def keys(self) -> list[str]:
        return ["a"]

    def __getitem__(self, key: str) -> Any:
        raise RuntimeError("no answer from redis://:canary@h")


class WithLength(WithToDict):
    """As a data set of another package, which could be given as a dict, too."""

    def __len__(self) -> int:
        return 1


REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "open file": (io.StringIO, TypeError, "got _io.StringIO"),
    "socket": (socket.socket, TypeError, "got socket.socket"),
    "bare object": (object, TypeError, "got builtins.object"),
    "object of the caller's": (type("Own", (), {}), TypeError, f"got {HERE}.Own"),
    "generator": (lambda: (i for i in [1]), TypeError, "got builtins.generator"),
    "iterator": (lambda: iter([1]), TypeError, "got builtins.list_iterator"),
    "error": (lambda: ValueError("x"), TypeError, "got builtins.ValueError"),
    "optimizer": (
        lambda: torch.optim.SGD([torch.zeros(1)], 1.0),
        TypeError,
        "got torch.optim.sgd.SGD",
    ),
    "generator of torch": (torch.Generator, TypeError, "got torch._C.Generator"),
    "data set with a length": (WithLength, TypeError, f"got {HERE}.WithLength"),
    "module with weights": (
        lambda: torch.nn.Linear(1, 1),
        TypeError,
        "must be a torch module without weights, got one with weights .torch.nn.*Linear",
    ),
    "module with a running mean": (lambda: torch.nn.BatchNorm1d(1), TypeError, "with weights"),
    "loss with weights": (
        lambda: torch.nn.CrossEntropyLoss(weight=torch.ones(2)),
        TypeError,
        "with weights",
    ),
    "annotation with an address": (
        lambda: typing.Annotated[int, object()],
        ValueError,
        "must be readable, got ValueError: an address in its text",
    ),
    "time zone of a file": (
        lambda: zone(None),
        ValueError,
        "got ValueError: a time zone without a key",
    ),
    "tensor without data": (
        lambda: torch.zeros(1, device="meta"),
        ValueError,
        "must be readable, got NotImplementedError",
    ),
    "failing mapping": (Broken, ValueError, "must be readable, got RuntimeError: no answer"),
    "unknown interpolation": (
        lambda: omegaconf.OmegaConf.create({"a": "${nowhere}"}),
        ValueError,
        "must be readable, got InterpolationKeyError",
    ),
    "bare object as a key": (
        lambda: {object(): 1},
        TypeError,
        "names in .* must be texts, numbers or .*, got builtins.object",
    ),
    "empty key": (lambda: {"": 1}, ValueError, "must be at least 1 character long, got ''"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_params_without_a_faithful_text_are_refused_with_their_path(kind: str) -> None:
    make, error, words = REFUSED[kind]
    value = make()
    with pytest.raises(error, match=words) as caught:
        plain_params({"outer": [0, {"it": value}]})
    assert "'outer.1.it" in str(caught.value) and " must " in str(caught.value)
    assert "canary" not in str(caught.value)
    if hasattr(value, "close"):
        value.close()


@pytest.mark.parametrize("params", [[1], torch.nn.Linear(1, 1), Model, np.array([1]), 3, "lr=1"])
def test_params_as_a_whole_must_be_a_configuration_object(params: Any) -> None:
    with pytest.raises(TypeError, match=r"params must be a mapping, a dataclass or .*, got "):
        plain_params(params)


def test_param_of_a_failing_object_names_the_item_that_fails() -> None:
    config = omegaconf.OmegaConf.create({"a": {"b": [1, "${nowhere}"]}})
    with pytest.raises(ValueError, match=r"param 'a\.b\.1' must be readable"):
        plain_params({"it": 1, "a": config.a})
