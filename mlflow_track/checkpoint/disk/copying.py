"""Many tensors into many places by one copy per device."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch

from mlflow_track.checkpoint.disk.verify import core_count

# One core copies about 10 GB/s; a second thread for less than this costs more than it saves.
_WORTH_A_THREAD_BYTES = 16 << 20
_MOST_THREADS = 4
# Larger ones copy as fast one by one: torch may split such a call among threads.
_SMALL_BYTES = 64 << 10


class Run(NamedTuple):
    """Small tensors one behind the other in the target: torch.cat copies them in one call."""

    whole: torch.Tensor
    part: slice


def runs_of(targets: Sequence[torch.Tensor], sources: Sequence[torch.Tensor]) -> list[Run]:
    """The stretches of `targets` that can be filled by joining `sources`, for `copy_all`.

    They hold for all sources of the same class, dtype, shape, strides and device.
    """
    begins = [0]
    for index in range(1, len(targets)):
        last, target = targets[index - 1], targets[index]
        if not (
            (_is_joinable(sources[index - 1]) and _is_joinable(sources[index]))
            and (last.dtype, last.shape[1:]) == (target.dtype, target.shape[1:])
            and last.data_ptr() + last.nbytes == target.data_ptr()
        ):
            begins.append(index)
    runs = []
    for begin, end in pairwise([*begins, len(targets)]):
        if end - begin > 1:
            first = targets[begin]
            rows = sum(target.shape[0] for target in targets[begin:end])
            whole = first.as_strided((rows, *first.shape[1:]), first.stride())
            runs.append(Run(whole, slice(begin, end)))
    return runs


def _is_joinable(source: torch.Tensor) -> bool:
    is_plain = source.device.type == "cpu" and source.is_contiguous()
    return is_plain and source.dim() > 0 and 0 < source.nbytes <= _SMALL_BYTES


def copy_all(
    targets: Sequence[torch.Tensor],
    sources: Sequence[torch.Tensor],
    total_bytes: int | None = None,
    runs: Sequence[Run] = (),
) -> None:
    """Copy each source into its target in CPU memory; all is there when this returns.

    One call for all tensors of a device: in a loop, each copy would wait for the interpreter that
    another thread may hold. From a CUDA device the copies run on a separate stream, after what
    the current one has computed; they are quickest into pinned targets.

    Args:
        total_bytes: The size of all sources, where it is known: adding it up takes time.
        runs: What `runs_of` found for such tensors, where they are copied more than once.
    """
    if runs:
        total_bytes = None
        # Without derivatives of either kind: with out=, torch knows none.
        with torch.inference_mode():
            for run in runs:
                torch.cat(list(sources[run.part]), out=run.whole)
        bounds = [0, *(bound for run in runs for bound in (run.part.start, run.part.stop)), None]
        rest = list(map(slice, bounds[::2], bounds[1::2]))
        targets, sources = ([t for part in rest for t in of[part]] for of in (targets, sources))
    if not sources:
        return
    if not torch.cuda.is_initialized():
        _copy_in_memory(list(targets), list(sources), total_bytes)
        return
    on_cuda: dict[torch.device, list[int]] = defaultdict(list)
    elsewhere = []
    for index, source in enumerate(sources):
        (on_cuda[source.device] if source.is_cuda else elsewhere).append(index)
    streams = []
    with torch.no_grad():
        for device, indices in on_cuda.items():
            stream = torch.cuda.Stream(device)
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                torch._foreach_copy_(*_picked(targets, sources, indices), non_blocking=True)
            streams.append(stream)
    if elsewhere:
        _copy_in_memory(*_picked(targets, sources, elsewhere), None)
    for stream in streams:
        stream.synchronize()


def on_cores(tensors: Sequence[torch.Tensor], work: Callable[[slice], None]) -> None:
    """Call `work` for stretches of a list of tensors, on the cores that idle meanwhile.

    Args:
        tensors: Their sizes decide where the list is cut.
        work: Gets the part of the list to work on; it may be called in several threads at once.
    """
    _divide(list(tensors), None, work)


def _copy_in_memory(
    targets: list[torch.Tensor], sources: list[torch.Tensor], total_bytes: int | None
) -> None:
    """On several cores, where the training loop leaves them idle while it waits for this."""
    _divide(sources, total_bytes, lambda part: _copy(targets[part], sources[part]))


def _divide(
    tensors: list[torch.Tensor], total_bytes: int | None, work: Callable[[slice], None]
) -> None:
    if not tensors:
        return
    count = _thread_count(tensors, total_bytes)
    if count == 1:
        work(slice(0, len(tensors)))
        return
    first, *others = _parts(tensors, count)
    helpers = [_Helper(part, work) for part in others]
    work(first)
    for helper in helpers:
        helper.join()


def _copy(targets: list[torch.Tensor], sources: list[torch.Tensor]) -> None:
    with torch.no_grad():
        torch._foreach_copy_(targets, sources)


class _Helper:
    """Work on another core; where no thread can be had, as at the end of Python, it is here.

    A new thread and not one of a pool: pools take no work once the main thread has ended.
    """

    def __init__(self, part: slice, work: Callable[[slice], None]) -> None:
        self._error: BaseException | None = None
        self._part, self._do = part, work
        self._is_inference = torch.is_inference_mode_enabled()
        self._thread: threading.Thread | None = threading.Thread(target=self._work, daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            self._thread = None
            work(part)

    def join(self) -> None:
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        try:
            # A thread begins outside of the mode that its maker is in.
            with torch.inference_mode(self._is_inference):
                self._do(self._part)
        except BaseException as error:
            self._error = error


def _thread_count(sources: list[torch.Tensor], total_bytes: int | None) -> int:
    # With its own threads torch splits each large tensor itself.
    if torch.get_num_threads() > 1:
        return 1
    if total_bytes is None:
        total_bytes = sum(source.nbytes for source in sources)
    return max(1, min(core_count(), _MOST_THREADS, total_bytes // _WORTH_A_THREAD_BYTES))


def _parts(sources: list[torch.Tensor], count: int) -> list[slice]:
    """Cut the list into at most `count` stretches of about as many bytes each; none is empty."""
    share = sum(source.nbytes for source in sources) / count
    cuts, so_far = [0], 0
    for index, source in enumerate(sources[:-1]):
        so_far += source.nbytes
        if len(cuts) < count and so_far >= share * len(cuts):
            cuts.append(index + 1)
    return [slice(begin, end) for begin, end in pairwise([*cuts, len(sources)])]


def _picked(
    targets: Sequence[torch.Tensor], sources: Sequence[torch.Tensor], indices: list[int]
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    if len(indices) == len(sources):
        return list(targets), list(sources)
    return [targets[i] for i in indices], [sources[i] for i in indices]
