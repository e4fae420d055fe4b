"""The settings of torch that decide which kernels compute, and how precisely."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch

# Each of these is asked for by itself: torch refuses to read some once another was set.
_PRECISIONS = {
    "": ("", "mkldnn", "mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn"),
    "cuda": ("cuda.matmul", "cudnn", "cudnn.conv", "cudnn.rnn"),
}
_SWITCHES: dict[str, dict[str, Callable[[], Any]]] = {
    "": {
        "default dtype": torch.get_default_dtype,
        "default device": torch.get_default_device,
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled,
        "filled uninitialized memory": lambda: _of_torch(
            "utils.deterministic.fill_uninitialized_memory"
        ),
        "flush denormal": lambda: is_flushing_denormals(),
        "mkldnn": lambda: torch.backends.mkldnn.enabled,
        "mkldnn.deterministic": lambda: torch.backends.mkldnn.deterministic,
        "nnpack": lambda: _of_torch("_C._get_nnpack_enabled")(),
        "flash attention": torch.backends.cuda.flash_sdp_enabled,
        "memory-efficient attention": torch.backends.cuda.mem_efficient_sdp_enabled,
        "math attention": torch.backends.cuda.math_sdp_enabled,
        "quantized engine": lambda: torch.backends.quantized.engine,
    },
    "cuda": {
        "cudnn": lambda: torch.backends.cudnn.enabled,
        "cudnn.benchmark": lambda: torch.backends.cudnn.benchmark,
        "cudnn.deterministic": lambda: torch.backends.cudnn.deterministic,
        "cudnn.allow_tf32": lambda: torch.backends.cudnn.allow_tf32,
        "cuda.matmul.allow_tf32": lambda: torch.backends.cuda.matmul.allow_tf32,
        "cudnn attention": torch.backends.cuda.cudnn_sdp_enabled,
        "fp16 reduction": lambda: torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction,
        "bf16 reduction": lambda: torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
        "fp16 accumulation": lambda: torch.backends.cuda.matmul.allow_fp16_accumulation,
    },
}
_VARIABLES = {
    "": ("MKL_CBWR", "ONEDNN_DEFAULT_FPMATH_MODE"),
    "cuda": ("CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE"),
}


def kernels(device: str) -> dict[str, str]:
    """The settings by name, as far as this version of torch tells them.

    Args:
        device: Where the state lies: settings of CUDA matter only there.
    """
    found: dict[str, str] = {}
    for kind in ("", "cuda") if "cuda" in device else ("",):
        for path in _PRECISIONS[kind]:
            name = f"{path}.fp32_precision".strip(".")
            _note(found, name, lambda name=name: _of_torch(f"backends.{name}"))
        for name, read in _SWITCHES[kind].items():
            _note(found, name, read)
        for name in _VARIABLES[kind]:
            found[name] = os.environ.get(name, "not set")
    return found


def matmul_precision() -> str | None:
    """torch's older setting; None where a newer one was set, after which torch refuses to tell."""
    found: dict[str, str] = {}
    _note(found, "precision", torch.get_float32_matmul_precision)
    return found.get("precision")


def autocast() -> str:
    """The kinds of device for which autocast is on here, with the dtype."""
    on = []
    for kind in ("cpu", "cuda"):
        if torch.is_autocast_enabled(kind):
            on.append(f"{kind} {torch.get_autocast_dtype(kind)}".replace("torch.", ""))
    return ", ".join(on) or "off"


def is_flushing_denormals(smallest: float = sys.float_info.min) -> bool:
    """Whether this thread computes with flushed denormals: Python computes as torch does."""
    return smallest / 2 == 0


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Settings that both have, with different values."""
    return [
        f"{name} {then[name]} -> {value}"
        for name, value in now.items()
        if name in then and then[name] != value
    ]


def _note(found: dict[str, str], name: str, read: Callable[[], Any]) -> None:
    """Note what can be read: what is only compared must never stop a save."""
    try:
        found[name] = str(read()).removeprefix("torch.")
    except Exception:
        pass


def _of_torch(path: str) -> Any:
    return functools.reduce(getattr, path.split("."), torch)
