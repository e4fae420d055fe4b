"""The processes of one job: which one this is, and what all agree on, so that none waits for ever.

Agreements go through gloo, as numbers and bytes: no pickle, and no synchronisation of a GPU.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

FIRST = 0


def rank_and_size(
    variables: Mapping[str, str], joined: tuple[int, int] | None = None, rank: int | None = None
) -> tuple[int, int]:
    """The rank of this process and the size of its job; (0, 1) without a job.

    A rank without a size, as a job script may leave it, is not a job.

    Args:
        joined: Rank and size in torch.distributed; None where the process has not joined a job.
        rank: The rank given by the user, which overrides the others.
    """
    # The launcher that is closest to the process comes first. In a Slurm job mpirun and Lightning
    # start processes inside one task, and each of them has the SLURM_PROCID of that task. A batch
    # script is task 0 itself; a shell in an allocation without a step has no SLURM_PROCID.
    told = (
        joined
        or _told(variables, "RANK", "WORLD_SIZE")
        or _told_by_lightning(variables)
        or _told(variables, "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")
        or _told(variables, "PMI_RANK", "PMI_SIZE")
        or _told(variables, "SLURM_PROCID", "SLURM_NTASKS")
        or (FIRST, 1)
    )
    return told if rank is None else (rank, max(rank + 1, told[1]))


def joined_job() -> tuple[int, int] | None:
    """Rank and size in torch.distributed; None before `init_process_group`."""
    # A process that has not imported it cannot have joined a job.
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    return distributed.get_rank(), distributed.get_world_size()


def _told(variables: Mapping[str, str], rank_name: str, size_name: str) -> tuple[int, int] | None:
    rank, size = _number(variables, rank_name), _number(variables, size_name)
    return None if rank is None or size is None or rank >= size else (rank, size)


def _told_by_lightning(variables: Mapping[str, str]) -> tuple[int, int] | None:
    node, local, size = (_number(variables, k) for k in ("NODE_RANK", "LOCAL_RANK", "WORLD_SIZE"))
    if node is None or local is None or size is None:
        return None
    # Its own launcher does not tell how many ranks a node has, but the first one is certain.
    return node * (_number(variables, "LOCAL_WORLD_SIZE") or local + 1) + local, size


def _number(variables: Mapping[str, str], name: str) -> int | None:
    text = variables.get(name, "").strip()
    return int(text) if re.fullmatch("[0-9]{1,9}", text) else None


class Ranks:
    """The job as one of its processes sees it; a process without a job is alone.

    Every method is a collective: all ranks call it, in the same order.

    Attributes:
        rank: The number of this process, from 0.
        world_size: The number of processes.
    """

    _of_this_process: ClassVar[Ranks | None] = None

    def __init__(self, rank: int, world_size: int, group: Any = None) -> None:
        self.rank, self.world_size, self._group = rank, world_size, group

    @classmethod
    def here(cls) -> Ranks:
        """The job that this process belongs to. The first call in a job is a collective."""
        joined = joined_job()
        if joined is None or joined[1] == 1:
            cls._of_this_process = None
            return cls(FIRST, 1)
        if cls._of_this_process is None:
            distributed = sys.modules["torch.distributed"]
            has_gloo = distributed.get_backend() == "gloo"
            group = None if has_gloo else distributed.new_group(backend="gloo")
            cls._of_this_process = cls(*joined, group)
        return cls._of_this_process

    @property
    def is_alone(self) -> bool:
        return self.world_size == 1

    @property
    def is_first(self) -> bool:
        return self.rank == FIRST

    def largest(self, numbers: Sequence[int]) -> list[int]:
        """Element-wise maximum over all ranks."""
        if self.is_alone:
            return list(numbers)
        import torch

        tensor = torch.tensor(numbers, dtype=torch.int64, device="cpu")
        torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX, group=self._group)
        return tensor.tolist()

    def same(self, value: Any) -> Any:
        """The value of rank 0: nested plain data and tensors; the others' values do not count."""
        if self.is_alone:
            return value
        import torch

        from mlflow_track.checkpoint.disk import safetensors
        from mlflow_track.checkpoint.state import codec

        encoder = codec.Encoder()
        text = b""
        if self.is_first:
            form = encoder.encode(value, "value")
            tensors = {k: (str(t.dtype)[6:], list(t.shape)) for k, t in encoder.tensors.items()}
            text = json.dumps([form, tensors]).encode()
        form, shapes = json.loads(self._same_bytes(text))
        tensors = {}
        for name, (dtype, shape) in shapes.items():
            if self.is_first:
                tensor = encoder.tensors[name].cpu().contiguous()
            else:
                tensor = torch.empty(shape, dtype=getattr(torch, dtype), device="cpu")
            if tensor.numel():
                torch.distributed.broadcast(safetensors.as_bytes(tensor), FIRST, group=self._group)
            tensors[name] = tensor
        return value if self.is_first else codec.decode(form, tensors)

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, in order, on every rank: nested plain data."""
        if self.is_alone:
            return [value]
        import torch

        from mlflow_track.checkpoint.state import codec

        text = bytearray(json.dumps(codec.Encoder().encode(value, "value")).encode())
        (longest,) = self.largest([len(text)])
        mine = torch.frombuffer(text.ljust(longest), dtype=torch.uint8)
        pieces = [torch.empty_like(mine) for _ in range(self.world_size)]
        torch.distributed.all_gather(pieces, mine, group=self._group)
        return [codec.decode(json.loads(bytes(piece.numpy())), {}) for piece in pieces]

    def _same_bytes(self, data: bytes) -> bytes:
        import torch

        (size,) = self.largest([len(data)])
        tensor = torch.empty(size, dtype=torch.uint8, device="cpu")
        if self.is_first:
            tensor.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        torch.distributed.broadcast(tensor, FIRST, group=self._group)
        return bytes(tensor.numpy())
