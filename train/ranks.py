"""The processes of a job under torchrun: each takes a slice of the batch; sums go over all."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn

import torch


@dataclass(frozen=True)
class Ranks:
    """The rank of this process and the number of processes; alone by default."""

    rank: int = 0
    world_size: int = 1

    def sum_in_place(self, tensors: list[torch.Tensor]) -> None:
        """Replace each tensor by its sum over all ranks; one exchange for all of them."""
        if self.world_size == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        torch.distributed.all_reduce(flat)
        pieces = flat.split([tensor.numel() for tensor in tensors])
        torch._foreach_copy_(tensors, [p.view_as(t) for p, t in zip(pieces, tensors, strict=True)])

    def sum_numbers(self, *numbers: float, device: torch.device) -> list[float]:
        """The sum of each number over all ranks."""
        if self.world_size == 1:
            return list(numbers)
        # Of the devices, MPS alone has no float64, and it has no ranks either.
        tensor = torch.tensor(numbers, dtype=torch.float64, device=device)
        torch.distributed.all_reduce(tensor)
        return tensor.tolist()


def ranks_of_environment(batch_size: int) -> Ranks:
    """Reads the variables that torchrun sets for this process.

    Raises:
        ValueError: There are more ranks than sequences in a batch.
    """
    size = int(os.environ.get("WORLD_SIZE") or 1)
    # A rank without a size is what a job script has left: this process is alone.
    ranks = Ranks(int(os.environ.get("RANK") or 0) if size > 1 else 0, size)
    if batch_size < ranks.world_size:
        raise ValueError(
            f"--batch-size must be at least {ranks.world_size}, one for each rank, got {batch_size}"
        )
    return ranks


def own_device(device: str, ranks: Ranks) -> str:
    """The device of this rank, where the setting leaves the choice."""
    if ranks.world_size > 1 and device in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{os.environ.get('LOCAL_RANK') or 0}"
    return device


@contextmanager
def joined(ranks: Ranks, device: torch.device) -> Iterator[None]:
    """Be a member of the job inside the block; alone there is no job."""
    if ranks.world_size == 1:
        yield
        return
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    yield
    # Not after an error: other ranks may hang in an exchange that will never come. Together: a rank
    # that takes its connections down while another still works has been seen to abort.
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def leave(status: int) -> NoReturn:
    """End the process; in a job of several ranks without taking Python apart first.

    A thread of gloo may still hold the last tensor that it sent, and aborts the process when it
    lets go of it in a Python that is ending (https://github.com/pytorch/pytorch/pull/179291).
    """
    if int(os.environ.get("WORLD_SIZE") or 1) > 1 and status == 0:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
