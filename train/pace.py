"""Measures where the time of a job goes, and how much of the device it uses."""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

import torch

from train.hardware import Hardware, peak_flops
from train.model import Transformer

_OF_A_STEP = ("data", "step")
_PARTS = (*_OF_A_STEP, "evaluate", "record", "save")


class Pace:
    """The clock of the loop: each part of it ends with `lap`.

    Nothing here reads a number from the device, so no step waits for it.

    Args:
        tokens_per_step: Tokens of one step, of all ranks.
        flops_per_token: See `flops_per_token`.
        hardware: The device of this process.
        world_size: How many of them work.
    """

    def __init__(
        self, tokens_per_step: int, flops_per_token: float, hardware: Hardware, world_size: int
    ) -> None:
        self._tokens_per_step, self._device = tokens_per_step, hardware.device
        peak = peak_flops(hardware)
        self._tokens_at_peak = peak and world_size * peak / flops_per_token
        self._seconds: dict[str, float] = dict.fromkeys(_PARTS, 0.0)
        self._steps = self._steps_of_row = 0
        self._seconds_of_row = 0.0
        self._begin = self._mark = time.perf_counter()

    def lap(self, part: str) -> None:
        """The time since the last call belongs to `part`: data, step, evaluate, save or record."""
        now = time.perf_counter()
        self._seconds[part] += now - self._mark
        if part in _OF_A_STEP:
            self._seconds_of_row += now - self._mark
        self._mark = now

    def count(self) -> None:
        """A step is done."""
        self._steps += 1
        self._steps_of_row += 1

    def metrics(self) -> dict[str, float]:
        """The speed of the steps since the last call, without evaluating and saving."""
        seconds = self._seconds_of_row / self._steps_of_row
        self._seconds_of_row, self._steps_of_row = 0.0, 0
        speed = self._tokens_per_step / seconds
        return {"perf/tokens_per_second": speed, "perf/step_ms": 1000 * seconds}

    def shares(self) -> dict[str, float]:
        """Shares of the time of this attempt, and of the peak of the devices where it is known."""
        row = {f"perf/{part}_share": self._share(part) for part in ("data", "save")}
        if self._tokens_at_peak:
            row["perf/mfu"] = self._speed() / self._tokens_at_peak
        return row

    def memory(self) -> dict[str, float]:
        """The most memory that this process has had so far, in MB."""
        row = {"perf/peak_memory_mb": peak_resident_bytes() / 1e6}
        if self._device.type == "cuda":
            row["perf/peak_cuda_memory_mb"] = torch.cuda.max_memory_allocated(self._device) / 1e6
        return row

    def summary(self) -> str:
        """One line about this attempt; empty where it had no step."""
        if not self._steps:
            return ""
        elapsed = time.perf_counter() - self._begin
        shares = {"data": "waiting for data", "evaluate": "evaluating", "save": "stalled by saves"}
        parts = [f"{words} {100 * self._share(p):.1f}%" for p, words in shares.items()]
        memory = [f"{v:,.0f} MB" for v in self.memory().values()]
        parts.append("peak memory " + ", on the GPU ".join(memory))
        if self._tokens_at_peak:
            parts.append(f"MFU {100 * self._speed() / self._tokens_at_peak:.1f}%")
        steps = f"{self._steps:,} step{'' if self._steps == 1 else 's'}"
        what = f"{steps} in {elapsed:,.1f} s, {self._speed():,.0f} tokens/s"
        return f"{what}: {', '.join(parts)}"

    def _speed(self) -> float:
        """Tokens per second of all steps, without evaluating and saving."""
        return self._tokens_per_step * self._steps / sum(self._seconds[p] for p in _OF_A_STEP)

    def _share(self, part: str) -> float:
        return self._seconds[part] / (time.perf_counter() - self._begin)


def flops_per_token(model: Transformer) -> float:
    """Floating-point operations of a training step for each token: 6 N + 12 L H Q T.

    N are the weights that are multiplied with, so no table of embeddings that is only looked up;
    the second term is attention, over the whole context. PaLM, arXiv:2204.02311, appendix B.
    """
    shape = model.shape
    weights = sum(p.numel() for p in model.parameters() if p.dim() >= 2)
    if not shape.tie_embeddings:
        weights -= shape.vocab_size * shape.d_model
    if shape.position == "learned":
        weights -= shape.context_length * shape.d_model
    return 6 * weights + 12 * shape.num_layers * shape.d_model * shape.context_length


def peak_resident_bytes() -> int:
    """The most physical memory that this process has had."""
    try:
        # ru_maxrss is inherited from the process that started this one.
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    except (OSError, LookupError, ValueError):
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else 1024 * most
