"""Chooses the device, and the precision that it has natively."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

# By the name that the driver gives a device, the peak of dense products in TFLOP/s: in bf16 with
# sums in fp32 (None: it has none), and in fp32 without tensor cores. From NVIDIA's data sheets of
# H100 (its figures for bf16 are with sparsity: half of them), H200, A100, L40S, L4, A10, T4, V100.
_PEAKS: dict[str, tuple[float | None, float]] = {
    "NVIDIA H200": (989.4, 66.9),
    "NVIDIA H100 80GB HBM3": (989.4, 66.9),
    "NVIDIA H100 PCIe": (756.0, 51.0),
    "NVIDIA A100-SXM4-40GB": (312.0, 19.5),
    "NVIDIA A100-SXM4-80GB": (312.0, 19.5),
    "NVIDIA A100-PCIE-40GB": (312.0, 19.5),
    "NVIDIA A100 80GB PCIe": (312.0, 19.5),
    "NVIDIA L40S": (362.0, 91.6),
    "NVIDIA L4": (121.0, 30.3),
    "NVIDIA A10": (125.0, 31.2),
    "Tesla T4": (None, 8.1),
    "Tesla V100-SXM2-16GB": (None, 15.7),
    "Tesla V100-SXM2-32GB": (None, 15.7),
    "Tesla V100-PCIE-16GB": (None, 14.0),
    "Tesla V100-PCIE-32GB": (None, 14.0),
}


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


def peak_flops(hardware: Hardware) -> float | None:
    """The operations per second that the device can do at most; None where that is unknown.

    A slice of a device (MIG), or one that is not in the table, has no known peak: none is guessed.
    """
    if hardware.device.type != "cuda":
        return None
    in_bf16, in_fp32 = _PEAKS.get(torch.cuda.get_device_name(hardware.device), (None, None))
    peak = in_bf16 if hardware.is_bf16 else in_fp32
    return peak and 1e12 * peak


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
        warning = f"WARNING: torch.compile does not work here, so the model runs eager: {reason}"
        return model, warning
    return cast(nn.Module, torch.compile(model)), None


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        # Elsewhere bf16 is emulated, about 90 times slower.
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return False
