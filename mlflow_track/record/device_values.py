"""Rows whose values are still on their way from a device, kept in the order of their calls."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

# A device this far behind is waited for; memory stays bounded.
_MOST_ROWS = 1000


class Arriving(Protocol):
    """A number that is being copied to this process."""

    def has_arrived(self) -> bool:
        """Whether `wait` returns at once."""
        ...

    def wait(self) -> float:
        """The number.

        Raises:
            RuntimeError: The device failed; it will never come.
        """
        ...


class LateRow(NamedTuple):
    """A call of log_metrics that could not be written yet; `time` is that of the call."""

    step: int
    time: float
    names: tuple[str, ...]
    values: Sequence[float | Arriving]


class LateRows(deque[LateRow]):
    """First in, first out: no row overtakes another.

    Attributes:
        lost: The number of values lost because their device failed.
    """

    lost = 0

    def take(self, *, wait: bool) -> Iterator[LateRow]:
        """Hand out rows from the front, with numbers for values, as far as all has arrived.

        Args:
            wait: Wait for missing values and return all rows.
        """
        while len(self):
            row = self[0]
            if not (wait or len(self) > _MOST_ROWS or all(map(_is_there, row.values))):
                return
            self.popleft()
            row = self._settled(row)
            if row.names:
                yield row

    def _settled(self, row: LateRow) -> LateRow:
        """A value that never comes is left out, and its row keeps the others."""
        settled: dict[str, float] = {}
        for name, value in zip(row.names, row.values, strict=True):
            try:
                settled[name] = value if isinstance(value, int | float) else value.wait()
            except RuntimeError:
                self.lost += 1
        return row._replace(names=tuple(settled), values=list(settled.values()))


def _is_there(value: float | Arriving) -> bool:
    try:
        return isinstance(value, int | float) or value.has_arrived()
    except RuntimeError:
        # The device failed: waiting longer changes nothing.
        return True


class CudaCopy:
    """A tensor on its way to the host: a copy into pinned memory, and the event behind it.

    Asking a CUDA tensor for its values waits until the device has done all that was queued before;
    a training loop that does so at every step leaves the device idle while Python prepares the
    next one. Here the copy is queued behind that work, and the values are read later.

    Args:
        tensor: A CUDA tensor. It may change after this returns.
    """

    def __init__(self, tensor: Any) -> None:
        import torch

        # non_blocking makes the host side of the copy pinned memory, from torch's pool of it.
        self._copy = tensor.detach().to("cpu", non_blocking=True)
        self._event = torch.cuda.Event()
        self._event.record(torch.cuda.current_stream(tensor.device))

    def has_arrived(self) -> bool:
        return self._event.query()

    def wait_for_tensor(self) -> Any:
        """The tensor, in memory of the host.

        Raises:
            RuntimeError: The device failed; it will never come.
        """
        self._event.synchronize()
        return self._copy


class CudaNumber(CudaCopy):
    """One number on its way to the host.

    Args:
        tensor: A CUDA tensor of one element. It may change after this returns.

    Raises:
        TypeError: The tensor holds more or less than one real number.
    """

    def __init__(self, tensor: Any) -> None:
        if tensor.numel() != 1 or tensor.is_complex():
            raise TypeError(f"its shape is {tuple(tensor.shape)}, its type {tensor.dtype}")
        super().__init__(tensor)

    def wait(self) -> float:
        return float(self.wait_for_tensor())
