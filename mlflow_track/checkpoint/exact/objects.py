"""Reads facts off live objects: their paths, and what modules, parameters and functions are."""

from __future__ import annotations

import functools
import inspect
import random
import re
import zlib
from collections.abc import Iterator, Mapping
from types import CodeType
from typing import Any

import numpy as np
import torch
from torch.nn.modules.lazy import LazyModuleMixin

from mlflow_track.checkpoint.disk.safetensors import as_bytes
from mlflow_track.checkpoint.state.compatibility import class_of
from mlflow_track.checkpoint.state.plain import describe

LAZY = "lazy"
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
# Attributes of a module that say what it is; longer texts and paths say where it runs.
_SETTINGS = (bool, int, float, complex)
_MOST_TEXT, _MOST_ITEMS = 60, 1000
GENERATORS = frozenset((torch.Generator, random.Random, np.random.Generator, np.random.RandomState))
_OF_EVERY_MODULE = frozenset(torch.nn.Module().__dict__)
_WHOLE_BYTES, _SAMPLES = 1 << 20, 1 << 12


def objects_of(state: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Modules, optimizers and other objects by path, also those inside of containers."""
    for name, entry in state.items():
        if hasattr(entry, "state_dict"):
            yield name, entry
        elif isinstance(entry, dict | list | tuple) and len(entry) <= _MOST_ITEMS:
            items = entry.items() if isinstance(entry, dict) else enumerate(entry)
            yield from objects_of({f"{name}.{key}": item for key, item in items})


def mode_of(state: Mapping[str, Any]) -> str:
    """Which whole models of a state are in training mode."""
    models = ((n, m) for n, m in objects_of(state) if isinstance(m, torch.nn.Module))
    return " ".join(sorted(f"{name}={'T' if model.training else 'F'}" for name, model in models))


def walk(name: str, root: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """Each module once by its path, in a fixed order; what wraps one has the path of it."""
    stack, seen = [(name, root)], set()
    while stack:
        path, module = stack.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        yield path, module
        inner = wrapped(module)
        if inner is not None:
            stack.append((path, inner))
        elif module._modules:
            children = [(f"{path}.{k}", m) for k, m in module._modules.items() if m is not None]
            stack += reversed(children)


def wrapped(module: torch.nn.Module) -> torch.nn.Module | None:
    """The module in a wrapper of torch: a compiled one, or one of several ranks."""
    modules = module.__dict__["_modules"]
    if len(modules) != 1 or not ("_orig_mod" in modules or "module" in modules):
        return None
    is_of_torch = type(module).__module__.startswith("torch.")
    return next(iter(modules.values())) if is_of_torch else None


def kind_of(entry: Any) -> str:
    if isinstance(entry, torch.nn.Module):
        return "module"
    is_object = hasattr(entry, "state_dict") or isinstance(entry, torch.Generator)
    return class_of(entry) if is_object else "plain data"


def module_names(state: Mapping[str, Any]) -> dict[str, list[str]]:
    return {
        name: [path for path, module in walk(name, item) if wrapped(module) is None]
        for name, item in objects_of(state)
        if isinstance(item, torch.nn.Module)
    }


def parameter_names(state: Mapping[str, Any]) -> dict[str, list[str]]:
    """The names of the parameters of each model and optimizer, in the order of their flags."""
    objects = dict(objects_of(state))
    of_all = names_of_params(state, objects)
    names: dict[str, list[str]] = {}
    for name, item in objects.items():
        if isinstance(item, torch.nn.Module):
            names[name] = [
                f"{path}.{key}"
                for path, module in walk(name, item)
                if wrapped(module) is None
                for key, parameter in module._parameters.items()
                if parameter is not None
            ]
        elif isinstance(item, torch.optim.Optimizer):
            params = [p for group in item.param_groups for p in group["params"]]
            names[name] = [of_all.get(id(p)) or f"a parameter {list(p.shape)}" for p in params]
    return names


def names_of_params(state: Mapping[str, Any], objects: Mapping[str, Any]) -> dict[int, str]:
    names: dict[int, str] = {}
    for name, item in objects.items():
        if isinstance(item, torch.nn.Module):
            for path, module in walk(name, item):
                for key, parameter in module._parameters.items():
                    names.setdefault(id(parameter), f"{path}.{key}")
    for name, entry in state.items():
        if isinstance(entry, torch.Tensor):
            names.setdefault(id(entry), name)
    return names


def text_of(module: torch.nn.Module) -> str:
    """A module's line in its repr, without memory addresses; LAZY before its first batch."""
    if isinstance(module, LazyModuleMixin):
        return LAZY
    try:
        extra = _ADDRESS.sub("", module.extra_repr())
    except Exception:  # A module's own code; what is only compared must never stop a save.
        extra = ""
    return f"{type(module).__name__}({extra})"


def attributes_of(path: str, module: torch.nn.Module) -> Iterator[tuple[str, str]]:
    for name, value in module.__dict__.items():
        if name in _OF_EVERY_MODULE or name.startswith("_"):
            continue
        key = f"{path}.{name}"
        if isinstance(value, _SETTINGS):
            yield key, repr(value)
        elif isinstance(value, str) and len(value) <= _MOST_TEXT and value.isidentifier():
            yield key, value
        elif isinstance(value, tuple) and all(isinstance(item, _SETTINGS) for item in value):
            yield key, repr(value)
        elif callable(value) and hasattr(value, "__qualname__"):
            yield key, function_text(value)
    for name, parameter in module._parameters.items():
        # Which kernels compute: channels last, or not.
        if parameter is not None and parameter.dim() > 3:
            yield f"{path}.{name} strides", str(parameter.stride())


def compilation_of(module: Any) -> str:
    """Backend and options, as far as this version of torch tells them."""
    try:
        from torch._dynamo.eval_frame import innermost_backend

        backend = innermost_backend(module.dynamo_ctx.callback)
        name = getattr(backend, "__name__", type(backend).__name__).strip("_")
        options = {k: v for k, v in vars(backend).items() if k in ("config", "dynamic", "kwargs")}
        return _ADDRESS.sub("", f"compiled ({name} {options})")
    except Exception:  # Private names of torch, which another version may not have.
        return "compiled"


def digest_of_generator(generator: Any) -> str:
    """A digest of where a generator of random numbers is."""
    if isinstance(generator, torch.Generator):
        return digest_of(generator.get_state())
    if isinstance(generator, random.Random):
        state = generator.getstate()
    elif isinstance(generator, np.random.Generator):
        state = generator.bit_generator.state
    else:
        state = generator.get_state(legacy=False)
    return f"{type(generator).__name__} {zlib.crc32(repr(state).encode()):08x}"


def digest_of(tensor: torch.Tensor) -> str:
    """Form and digest; of a large one the digest of a sample."""
    form = describe(tensor)
    if tensor.layout is not torch.strided or tensor.is_meta or tensor.is_quantized:
        return form
    try:
        with torch.no_grad():
            flat = tensor.detach().reshape(-1)
            if flat.nbytes > _WHOLE_BYTES:
                flat = flat[:: max(1, flat.numel() // _SAMPLES)]
            raw = as_bytes(flat).cpu()
        return f"{form} {zlib.crc32(raw.numpy().tobytes()):08x}"
    except (RuntimeError, TypeError, NotImplementedError):
        return form  # What is only compared must never stop a save.


def function_text(function: Any) -> str:
    """A function of torch by its name; another one by its code, and the numbers that it uses.

    Names of variables, lines and comments do not count.
    """
    if isinstance(function, functools.partial):
        given = [*function.args, *dict(sorted(function.keywords.items())).values()]
        return f"{function_text(function.func)} with {_ADDRESS.sub('', repr(given))}"
    code = getattr(function, "__code__", None)
    module = str(getattr(function, "__module__", None))
    is_of_torch = module.partition(".")[0] == "torch"
    if code is None or (is_of_torch and not function.__closure__):
        return getattr(function, "__name__", type(function).__name__)
    if is_of_torch:
        function = inspect.unwrap(function)
    names = {} if is_of_torch else getattr(function, "__globals__", {})
    used = [names.get(name) for name in code.co_names]
    for cell in function.__closure__ or ():
        try:
            used.append(cell.cell_contents)
        except ValueError:
            pass  # Not set yet.
    numbers = [repr(value) for value in used if isinstance(value, _SETTINGS)]
    digest = f"function {zlib.crc32(repr(_plain_code(code)).encode()):08x}"
    if is_of_torch:
        digest = function.__name__
    return f"{digest} of {', '.join(numbers)}" if numbers else digest


def _plain_code(code: CodeType) -> list[Any]:
    constants = [
        _plain_code(constant) if isinstance(constant, CodeType) else repr(constant)
        for constant in code.co_consts
        if not isinstance(constant, str)
    ]
    return [code.co_code, constants]
