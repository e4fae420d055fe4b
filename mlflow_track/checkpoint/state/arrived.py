"""Compares live objects, taken apart again after loading, with what the checkpoint holds."""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from mlflow_track.checkpoint.disk.copying import on_cores
from mlflow_track.checkpoint.state import kinds
from mlflow_track.checkpoint.state.names import fit_plain
from mlflow_track.checkpoint.state.plain import describe
from mlflow_track.checkpoint.state.tensors import form_of
from mlflow_track.checkpoint.state.values import dtype_text
from mlflow_track.wording import shown

# A tensor on a device comes back in pieces of this size: memory may be short on either side.
_PIECE_BYTES = 64 << 20
_ROWS = (list, tuple, deque)
_WORTH_WORDS_BYTES = 1 << 20
_PLAIN = (bool, int, float, complex, str, bytes, bytearray, type(None))


class _Pair(NamedTuple):
    """A tensor of the checkpoint, and the live one at the same path."""

    path: str
    saved: torch.Tensor
    here: torch.Tensor


class Arrivals:
    """Compares entry by entry; it reads each tensor once and copies none.

    Example:
        >>> arrivals = Arrivals()
        >>> arrivals.compare("counter", {"n": 3}, {"n": 0})
        ['counter.n 3 -> 0']
    """

    def __init__(self) -> None:
        # The memory of each tensor there and here, with the paths that lead to it.
        self._here_of: dict[Any, dict[Any, str]] = defaultdict(dict)
        self._saved_of: dict[Any, dict[Any, str]] = defaultdict(dict)

    def compare(self, name: str, saved: Any, here: Any, *, may_be_tied: bool = False) -> list[str]:
        """Readable differences of one entry, leaf by leaf; empty where all of it arrived.

        A container counts as the same whatever its kind, a number whatever its type: only values
        that differ can change what follows.

        Args:
            here: The live object as plain data, taken apart after loading.
            may_be_tied: Whether it matters which of its tensors are one, as in a model. The live
                tensors must stay alive until `ties` has been called.
        """
        saved = _under_new_names(fit_plain(here, saved), here)
        pairs: list[_Pair] = []
        found = list(_differences(name, saved, here, pairs))
        is_equal = [True] * len(pairs)

        def work(part: slice) -> None:
            for index in range(part.start, part.stop):
                is_equal[index] = _is_equal(pairs[index].saved, pairs[index].here)

        on_cores([pair.saved for pair in pairs], work)
        for pair, is_same in zip(pairs, is_equal, strict=True):
            if not is_same:
                found.append(f"{pair.path} has another value")
        if may_be_tied:
            for pair in pairs:
                self._note(pair)
        return found

    def ties(self) -> list[str]:
        """Tensors of the compared entries that were one at the save and are two here, or the
        other way round.
        """
        forms = (
            (self._here_of, "were one tensor at the save and are {} here"),
            (self._saved_of, "were {} tensors at the save and are one here"),
        )
        return [
            f"{' and '.join(paths.values())} {form.format(len(paths))}"
            for groups, form in forms
            for paths in groups.values()
            if len(paths) > 1
        ]

    def _note(self, pair: _Pair) -> None:
        # A tensor without elements has no memory.
        if not pair.saved.numel():
            return
        there, here = pair.saved.data_ptr(), (pair.here.data_ptr(), *form_of(pair.here))
        self._here_of[there].setdefault(here, pair.path)
        self._saved_of[here].setdefault(there, pair.path)


def _under_new_names(saved: Any, here: Any) -> Any:
    """`saved`, with the new names where a module's loading rules have renamed its tensors."""
    if not (isinstance(saved, Mapping) and isinstance(here, Mapping)):
        return saved
    gone = [key for key in saved if key not in here]
    new = [key for key in here if key not in saved]
    if not gone or len(gone) != len(new):
        return saved
    pairs = [(saved[key], here[name]) for key, name in zip(gone, new, strict=True)]
    if not all(isinstance(t, torch.Tensor) for pair in pairs for t in pair):
        return saved
    if any(_other_form(*pair) or not _is_equal(*pair) for pair in pairs):
        return saved
    names = dict(zip(gone, new, strict=True))
    return {names.get(key, key): value for key, value in saved.items()}


def _differences(path: str, saved: Any, here: Any, pairs: list[_Pair]) -> Iterator[str]:
    """What differs apart from the values of tensors, which are collected in `pairs`."""
    if isinstance(saved, torch.Tensor) and isinstance(here, torch.Tensor):
        words = _other_form(saved, here)
        if words:
            yield f"{path} {words}"
        elif saved.numel():
            pairs.append(_Pair(path, saved, here.detach()))
    elif isinstance(saved, Mapping) and isinstance(here, Mapping):
        for key, value in saved.items():
            if key in here:
                yield from _differences(f"{path}.{key}", value, here[key], pairs)
            else:
                yield f"{path}.{key} is missing here"
        yield from (f"{path}.{key} is not in the checkpoint" for key in here if key not in saved)
    elif isinstance(saved, _ROWS) and isinstance(here, _ROWS):
        if len(saved) != len(here):
            yield f"{path} has {len(saved)} items in the checkpoint, {len(here)} here"
            return
        for number, (then, now) in enumerate(zip(saved, here, strict=True)):
            yield from _differences(f"{path}.{number}", then, now, pairs)
    elif type(saved) is np.ndarray and type(here) is np.ndarray:
        if (saved.dtype, saved.shape) != (here.dtype, here.shape):
            form = [f"{array.dtype}{list(array.shape)}" for array in (saved, here)]
            yield f"{path} {form[0]} -> {form[1]}"
        elif saved.tobytes() != here.tobytes():
            yield f"{path} has another value"
    elif not _is_same_leaf(saved, here):
        yield f"{path} {_describe(saved)} -> {_describe(here)}"


def _other_form(saved: torch.Tensor, here: torch.Tensor) -> str:
    """The dtypes or shapes where they differ, else nothing."""
    if saved.dtype != here.dtype:
        return f"{dtype_text(saved.dtype)} -> {dtype_text(here.dtype)}"
    if saved.shape != here.shape:
        return f"{list(saved.shape)} -> {list(here.shape)}"
    return ""


def _is_same_leaf(saved: Any, here: Any) -> bool:
    saved, here = _number(saved), _number(here)
    kind = kinds.kind_of(saved)
    if kind is not None and kind is kinds.kind_of(here):
        return kind.same(saved, here)
    if isinstance(saved, float | complex) and saved != saved:
        return isinstance(here, float | complex) and here != here
    try:
        return bool(saved == here)
    except (TypeError, ValueError, RuntimeError):
        return False


def _number(value: Any) -> Any:
    """A number in a tensor or an array of no dimension, as Python has it: torch converts some."""
    if (isinstance(value, torch.Tensor) and value.dim() == 0) or isinstance(value, np.generic):
        return value.item()
    return value


def _describe(value: Any) -> str:
    return shown(value) if isinstance(value, _PLAIN) else describe(value)


def _is_equal(saved: torch.Tensor, here: torch.Tensor) -> bool:
    """Whether two tensors of one shape and dtype hold the same values; NaN equals NaN."""
    if here.device != saved.device:
        return all(_is_equal(then, now.to(then.device)) for then, now in _pieces(saved, here))
    if saved.dtype.itemsize == 1 and saved.dtype.is_floating_point:
        saved, here = saved.view(torch.uint8), here.view(torch.uint8)
    if torch.equal(*_as_words(saved, here)):
        return True
    if not (saved.is_floating_point() or saved.is_complex()):
        return False
    return all(
        bool(((then == now) | ((then != then) & (now != now))).all())
        for then, now in _pieces(saved, here)
    )


def _as_words(saved: torch.Tensor, here: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Large tensors as words of 8 bytes, which are compared sooner, and bit for bit."""
    are_flat = saved.is_contiguous() and here.is_contiguous()
    if not are_flat or saved.nbytes < _WORTH_WORDS_BYTES or saved.nbytes % 8 or saved.is_conj():
        return saved, here
    flat = [tensor.detach().reshape(-1) for tensor in (saved, here)]
    if any(tensor.storage_offset() * tensor.itemsize % 8 for tensor in flat):
        return saved, here
    return flat[0].view(torch.int64), flat[1].view(torch.int64)


def _pieces(saved: torch.Tensor, here: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Both, cut along the first dimension into pieces of bounded size."""
    if saved.dim() == 0:
        yield saved, here
        return
    rows = max(1, math.floor(_PIECE_BYTES / max(1, saved.nbytes // max(1, len(saved)))))
    yield from zip(saved.split(rows), here.split(rows), strict=True)
