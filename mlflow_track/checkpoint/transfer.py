"""Many tensors into many places by one copy per device."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import torch

# One core copies about 10 GB/s; a second thread for less than this costs more than it saves.
_WORTH_A_THREAD_BYTES = 16 << 20
_MOST_THREADS = 4


def copy_all(targets: Sequence[torch.Tensor], sources: Sequence[torch.Tensor]) -> None:
    """Copy each source into its target in CPU memory; all is there when this returns.

    One call for all tensors of a device: in a loop, each copy would wait for the interpreter that
    another thread may hold. From a CUDA device the copies run on a stream of their own, after what
    the current one has computed; they are quickest into pinned targets.
    """
    if not sources:
        return
    if not torch.cuda.is_initialized():
        _copy_in_memory(list(targets), list(sources))
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
        _copy_in_memory(*_picked(targets, sources, elsewhere))
    for stream in streams:
        stream.synchronize()


def _copy_in_memory(targets: list[torch.Tensor], sources: list[torch.Tensor]) -> None:
    """On several cores, where the training loop leaves them idle while it waits for this."""
    first, *others = _parts(sources, _thread_count(sources))
    if not others:
        _copy(targets, sources)
        return
    with ThreadPoolExecutor(len(others), "copy") as pool:
        copies = [pool.submit(_copy, targets[part], sources[part]) for part in others]
        _copy(targets[first], sources[first])
    for copy in copies:
        copy.result()


def _copy(targets: list[torch.Tensor], sources: list[torch.Tensor]) -> None:
    with torch.no_grad():
        torch._foreach_copy_(targets, sources)


def _thread_count(sources: list[torch.Tensor]) -> int:
    # With threads of its own torch shares out each large tensor itself.
    if torch.get_num_threads() > 1:
        return 1
    total = sum(source.nbytes for source in sources)
    return max(1, min(_cores(), _MOST_THREADS, total // _WORTH_A_THREAD_BYTES))


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
