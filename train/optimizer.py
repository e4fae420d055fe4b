"""What updates weights: AdamW over the right groups, the learning rate of each step, clipping."""

from __future__ import annotations

import math

import torch
from torch import nn

_BETAS = (0.9, 0.99)


def make_optimizer(
    model: nn.Module, *, learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """AdamW (arXiv:1711.05101) that decays matrices, and not the gains of norms.

    Where torch has the whole update as one kernel that one serves.
    """
    params = [param for param in model.parameters() if param.requires_grad]
    groups = [
        {"params": [p for p in params if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in params if p.dim() < 2], "weight_decay": 0.0},
    ]
    is_fused = all(param.device.type in ("cpu", "cuda") for param in params)
    return torch.optim.AdamW(groups, lr=learning_rate, betas=_BETAS, fused=is_fused or None)


def learning_rate_at(
    step: int, *, peak: float, minimum: float, warmup_steps: int, max_steps: int
) -> float:
    """Linear warm-up to `peak` at `warmup_steps`, then a cosine to `minimum` at the last step."""
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    last = max_steps - 1
    if step >= last:
        return minimum
    progress = (step - warmup_steps) / (last - warmup_steps)
    return minimum + 0.5 * (1 + math.cos(math.pi * progress)) * (peak - minimum)


def gradients(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Those that the optimizer uses next; to walk through the modules costs ten times more."""
    params = (param for group in optimizer.param_groups for param in group["params"])
    return [param.grad for param in params if param.grad is not None]


@torch.no_grad()
def clip_gradients(grads: list[torch.Tensor], largest_norm: float) -> float:
    """Scale all gradients so that their common norm is at most `largest_norm`; 0 leaves them.

    Returns:
        The norm before; not finite if a gradient is not.
    """
    norm = torch.stack(torch._foreach_norm(grads)).norm().item()
    if 0 < largest_norm < norm < float("inf"):
        torch._foreach_mul_(grads, largest_norm / (norm + 1e-6))
    return norm
