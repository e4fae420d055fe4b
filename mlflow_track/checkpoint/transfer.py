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
    by_device: dict[torch.device, list[int]] = defaultdict(list)
    for index, source in enumerate(sources):
        by_device[source.device].append(index)
    waiting = []
    with torch.no_grad():
        for device, indices in by_device.items():
            of_device = [targets[i] for i in indices], [sources[i] for i in indices]
            if device.type == "cuda":
                stream = torch.cuda.Stream(device)
                stream.wait_stream(torch.cuda.current_stream(device))
                with torch.cuda.stream(stream):
                    torch._foreach_copy_(*of_device, non_blocking=True)
                waiting.append(stream)
            else:
                torch._foreach_copy_(*of_device)
    for stream in waiting:
        stream.synchronize()
