"""Many tensors into many places by one copy per device."""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch

# One core copies about 10 GB/s; a second thread for less than this costs more than it saves.
_WORTH_A_THREAD_BYTES = 16 << 20
_MOST_THREADS = 4


def copy_all(
    targets: Sequence[torch.Tensor],
    sources: Sequence[torch.Tensor],
    total_bytes: int | None = None,
) -> None:
    """Copy each source into its target in CPU memory; all is there when this returns.

    One call for all tensors of a device: in a loop, each copy would wait for the interpreter that
    another thread may hold. From a CUDA device the copies run on a separate stream, after what
    the current one has computed; they are quickest into pinned targets.

    Args:
        total_bytes: The size of all sources, where it is known: adding it up takes time.
    """
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
    return max(1, min(_cores(), _MOST_THREADS, total_bytes // _WORTH_A_THREAD_BYTES))


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


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
