"""Facts about live objects that no state_dict has: what modules are, and what optimizers train."""

from __future__ import annotations

import base64
import weakref
import zlib
from collections.abc import Collection, Mapping
from itertools import groupby
from typing import Any, NamedTuple

import msgspec
import torch
from msgspec import Struct
from msgspec.structs import replace

from mlflow_track.checkpoint.exact.given import COMPLETE, given_by_code
from mlflow_track.checkpoint.exact.kernels import autocast
from mlflow_track.checkpoint.exact.objects import (
    GENERATORS,
    attributes_of,
    compilation_of,
    digest_of,
    digest_of_generator,
    function_text,
    kind_of,
    mode_of,
    names_of_params,
    objects_of,
    text_of,
    walk,
    wrapped,
)
from mlflow_track.checkpoint.exact.replaced import settings_of

_LOSABLE = GENERATORS | {torch.Tensor}
_REMEMBERED = frozenset((int, float, complex, str, bool, tuple))
_MOST_BYTES, _MOST_MODES = 64 << 20, 8


class Facts(Struct, frozen=True, kw_only=True):
    """What surrounds the tensors of a state, as plain data.

    Attributes:
        static: Kinds of objects, reprs of modules, params of optimizers: they never change.
        attributes: Numbers and short texts that modules hold.
        changing: Those that had another value earlier in the process that saved.
        buffers: Digests of buffers that are not saved, behind their shape.
        metrics: Digests of states of metrics that are not saved.
        settings: What the code gave to optimizers and schedules, before any checkpoint.
        given: What it gave to objects beside their state, at the same time.
        grads: Which parameters of each model require a gradient.
        training: Which modules of each model are in training mode.
        autocast: Where autocast is on.
        verb: The method that took them: flags are compared at the same place of a loop.
        mode: Which whole models are in training mode.
        modes: The same at the steps that the process which saved has looked at.
    """

    static: dict[str, str] = {}
    attributes: dict[str, str] = {}
    changing: tuple[str, ...] = ()
    buffers: dict[str, str] = {}
    metrics: dict[str, str] = {}
    settings: dict[str, Any] = {}
    given: dict[str, str] = {}
    grads: dict[str, str] = {}
    training: dict[str, str] = {}
    autocast: str = ""
    verb: str = ""
    mode: str = ""
    modes: tuple[str, ...] = ()


class _Known(NamedTuple):
    """A module as it was last described."""

    module: weakref.ref[torch.nn.Module]
    values: list[Any]
    text: str
    attributes: dict[str, str]


class Fingerprints:
    """Describes the objects of a state; what is as it was the last time costs little.

    Attributes:
        devices: Where the tensors and parameters were that were described last.
        given: What the code gave to objects beside their state.
    """

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}
        self.devices: set[torch.device] = set()
        self._first: dict[str, str] = {}
        self._is_noted = False
        self._settings: dict[str, Any] = {}
        self.given: dict[str, str] = {}
        self._modes: dict[str, None] = {}
        # The parameters of all models, by `id`.
        self._owners: list[int] = []
        # The params of each group of an optimizer, and their names.
        self._groups: dict[str, tuple[list[weakref.ref[Any]], str]] = {}
        torch.get_num_threads()  # Before a DataLoader that pins memory changes a first answer.

    @property
    def settings(self) -> Mapping[str, Any]:
        """What the code gave to optimizers and schedules, by path."""
        return self._settings

    def note_settings(self, state: Mapping[str, Any]) -> None:
        """Remember the settings of the code; those that are known stay as they were first."""
        self._is_noted = True
        for path, value in settings_of(state).items():
            self._settings.setdefault(path, value)
        for path, text in given_by_code(state).items():
            self.given.setdefault(path, text)

    def take(self, state: Mapping[str, Any], verb: str = "") -> Facts:
        """The facts of the live objects of `state`."""
        if not self._is_noted:
            self.note_settings(state)
        self.devices = {item.device for item in state.values() if isinstance(item, torch.Tensor)}
        facts = Facts(static={f"class of {name}": kind_of(item) for name, item in state.items()})
        objects = dict(objects_of(state))
        owners: list[int] = []
        for name, item in objects.items():
            if isinstance(item, torch.nn.Module):
                self._of_module(name, item, facts, owners)
        if owners != self._owners:
            # Params have the names of those that hold them.
            self._owners = owners
            self._groups.clear()
        for name, item in objects.items():
            if isinstance(item, torch.optim.Optimizer):
                self._of_optimizer(name, item, state, objects, facts)
            elif type(item).__module__.partition(".")[0] not in COMPLETE:
                _of_generators(name, item, facts)
            for number, function in enumerate(getattr(item, "lr_lambdas", None) or ()):
                facts.attributes[f"{name}.lr_lambdas.{number}"] = function_text(function)
        first = self._first
        changing = [p for p, v in facts.attributes.items() if first.setdefault(p, v) != v]
        return replace(
            facts,
            changing=tuple(changing),
            settings=self._settings,
            given=self.given,
            autocast=autocast(),
            verb=verb,
            mode=mode_of(state),
            modes=tuple(self._modes),
        )

    def note_modes(self, *modes: str) -> None:
        """Remember the `mode_of` the state at some steps of the run."""
        self._modes.update(dict.fromkeys(modes[: _MOST_MODES - len(self._modes)]))

    def _of_module(self, name: str, root: torch.nn.Module, facts: Facts, owners: list[int]) -> None:
        flags: list[bool] = []
        grads: list[bool] = []
        known, devices = self._known, self.devices
        static, attributes = facts.static, facts.attributes
        for path, module in walk(name, root):
            own = module.__dict__
            if module._compiled_call_impl is not None or "dynamo_ctx" in own:
                static[f"compilation of {path}"] = compilation_of(module)
            if wrapped(module) is not None:
                continue
            values = [v for v in own.values() if type(v) in _REMEMBERED]
            was = known.get(path)
            if was is None or was.module() is not module or not _is_same(was.values, values):
                described = text_of(module), dict(attributes_of(path, module))
                was = known[path] = _Known(weakref.ref(module), values, *described)
            static[path] = was.text
            attributes.update(was.attributes)
            flags.append(own["training"])
            own_parameters = [p for p in own["_parameters"].values() if p is not None]
            grads += [p.requires_grad for p in own_parameters]
            devices.update([p.device for p in own_parameters])
            owners += map(id, own_parameters)
            has_more = own["_non_persistent_buffers_set"] or "_defaults" in own
            if has_more or not _LOSABLE.isdisjoint(map(type, own.values())):
                _of_lost(path, module, facts)
        facts.training[name], facts.grads[name] = _run_lengths(flags), _run_lengths(grads)

    def _of_optimizer(
        self,
        name: str,
        optimizer: torch.optim.Optimizer,
        state: Mapping[str, Any],
        objects: Mapping[str, Any],
        facts: Facts,
    ) -> None:
        grads: list[bool] = []
        for number, group in enumerate(optimizer.param_groups):
            params = group["params"]
            where = f"{name}.param_groups.{number}.params"
            known, text = self._groups.get(where, ([], ""))
            if len(known) != len(params) or any(
                reference() is not one for reference, one in zip(known, params, strict=True)
            ):
                names = names_of_params(state, objects)
                text = ", ".join(names.get(id(p)) or f"a parameter {list(p.shape)}" for p in params)
                self._groups[where] = (list(map(weakref.ref, params)), text)
            facts.static[where] = text
            grads += [p.requires_grad for p in params]
        facts.grads[name] = _run_lengths(grads)


def packed(facts: Facts) -> str:
    """Facts as a short text for a manifest."""
    return base64.b64encode(zlib.compress(msgspec.json.encode(facts), 1)).decode()


def unpacked(text: str) -> Facts | None:
    """Facts of a manifest; None where it has none that this version can read."""
    try:
        raw = zlib.decompressobj().decompress(base64.b64decode(text), _MOST_BYTES)
        return msgspec.json.decode(raw, type=Facts)
    except (ValueError, zlib.error, msgspec.MsgspecError):
        return None


def _is_same(values: list[Any], others: list[Any]) -> bool:
    try:
        return values == others
    except (RuntimeError, ValueError):
        return False  # A tuple of tensors.


def _of_lost(path: str, module: torch.nn.Module, facts: Facts) -> None:
    """Note digests of what a module has, and its `state_dict` does not."""
    for key in module._non_persistent_buffers_set:
        buffer = module._buffers.get(key)
        if buffer is not None:
            facts.buffers[f"{path}.{key}"] = digest_of(buffer)
    states: Collection[str] = ()
    if hasattr(module, "add_state"):
        # A metric: it leaves its states out of the state_dict, unless asked.
        states, saved = getattr(module, "_defaults", ()), module.state_dict().keys()
        for key in states:
            value: Any = getattr(module, key, None)
            tensors = value if isinstance(value, list) else [value]
            if key not in saved and all(isinstance(tensor, torch.Tensor) for tensor in tensors):
                facts.metrics[f"{path}.{key}"] = " ".join(map(digest_of, tensors))
    for key, value in module.__dict__.items():
        if type(value) is torch.Tensor and not value.requires_grad and key not in states:
            facts.buffers[f"{path}.{key}"] = digest_of(value)
    _of_generators(path, module, facts)


def _of_generators(path: str, item: Any, facts: Facts) -> None:
    """Note where generators are that an object draws from; torch's own are in no object."""
    for key, value in getattr(item, "__dict__", {}).items():
        if type(value) in GENERATORS:
            facts.buffers[f"{path}.{key}"] = digest_of_generator(value)


def _run_lengths(flags: list[bool]) -> str:
    """[True, True, False] as "2T1F": short where all are the same."""
    groups = ((flag, sum(1 for _ in same)) for flag, same in groupby(flags))
    return "".join(f"{count}{'T' if flag else 'F'}" for flag, count in groups)
