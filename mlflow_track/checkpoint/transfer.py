"""Many tensors into many places by one copy per device."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch


def copy_all(targets: Sequence[torch.Tensor], sources: Sequence[torch.Tensor]) -> None:
    """Copy each source into its target in CPU memory; all is there when this returns.

    One call for all tensors of a device: in a loop, each copy would wait for the interpreter that
    another thread may hold. From a CUDA device the copies run on a stream of their own, after what
    the current one has computed; they are quickest into pinned targets.
    """
    if not sources:
        return
    if not torch.cuda.is_initialized():
        with torch.no_grad():
            torch._foreach_copy_(list(targets), list(sources))
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
            torch._foreach_copy_(*_picked(targets, sources, elsewhere))
    for stream in streams:
        stream.synchronize()


def _picked(
    targets: Sequence[torch.Tensor], sources: Sequence[torch.Tensor], indices: list[int]
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    if len(indices) == len(sources):
        return list(targets), list(sources)
    return [targets[i] for i in indices], [sources[i] for i in indices]
