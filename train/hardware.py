"""Chooses the device, and the precision that it has natively."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn


@dataclass(frozen=True)
class Hardware:
    """A device, and whether matrix products run in bf16 there."""

    device: torch.device
    is_bf16: bool

    def autocast(self) -> AbstractContextManager[object]:
        if not self.is_bf16:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)


def choose_hardware(device: str, precision: str) -> Hardware:
    """Resolve "auto".

    Raises:
        ValueError: There is no such device here.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device must be usable here, got {device!r}: {reason}") from None
    is_bf16 = precision == "bf16" or (precision == "auto" and _has_bf16(chosen))
    return Hardware(chosen, is_bf16)


def slow_precision(hardware: Hardware) -> str | None:
    """A warning where bf16 was asked for and the device has to emulate it."""
    if not hardware.is_bf16 or _has_bf16(hardware.device):
        return None
    return (
        f"WARNING: this {hardware.device.type} has no bf16 arithmetic and emulates it, many times "
        "slower than fp32; --precision auto would use fp32 here"
    )


def compiled(model: nn.Module, device: torch.device) -> tuple[nn.Module, str | None]:
    """The compiled model, or the model itself and a warning where nothing can be compiled here."""
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(1, device=device))
    except Exception as error:  # Whatever is missing: a compiler, Triton, headers of Python.
        reason = str(error).strip().splitlines()[0]
        return (
            model,
            f"WARNING: torch.compile does not work here, so the model runs eager: {reason}",
        )
    return cast(nn.Module, torch.compile(model)), None


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        # Elsewhere bf16 is emulated, about 90 times slower.
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return False
