"""Chooses the device, and the precision that it has natively."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch


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


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        # Elsewhere bf16 is emulated, about 90 times slower.
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return False
