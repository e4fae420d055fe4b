"""Numbers on a CUDA device, fetched without making the caller wait for the device."""

from __future__ import annotations

from typing import Any


class CudaNumber:
    """One number on its way to the host: a copy into pinned memory, and the event behind it.

    Asking a CUDA tensor for its value waits until the device has done all that was queued before;
    a training loop that does so at every step leaves the device idle while Python prepares the
    next one. Here the copy is queued behind that work, and the value is looked at later.

    Args:
        tensor: A CUDA tensor of one element. It may change after this returns.

    Raises:
        TypeError: The tensor holds more or less than one real number.
    """

    def __init__(self, tensor: Any) -> None:
        if tensor.numel() != 1 or tensor.is_complex():
            raise TypeError(f"its shape is {tuple(tensor.shape)}, its type {tensor.dtype}")
        import torch

        # non_blocking makes the host side of the copy pinned memory, from torch's pool of it.
        self._copy = tensor.detach().to("cpu", non_blocking=True)
        self._event = torch.cuda.Event()
        self._event.record(torch.cuda.current_stream(tensor.device))

    def has_arrived(self) -> bool:
        return self._event.query()

    def wait(self) -> float:
        self._event.synchronize()
        return float(self._copy)
