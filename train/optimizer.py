"""Updates weights: AdamW, the learning rate of each step, clipping."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

_BETAS = (0.9, 0.99)


class AdamW(torch.optim.Optimizer):
    """Adam with decoupled weight decay (arXiv:1711.05101), all tensors in a few fused calls."""

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float] = _BETAS,
        eps: float = 1e-8,
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            for param in params:
                if not self.state[param]:
                    self.state[param].update(
                        step=0, exp_avg=torch.zeros_like(param), exp_avg_sq=torch.zeros_like(param)
                    )
            states = [self.state[param] for param in params]
            for state in states:
                state["step"] += 1
            _update(
                params,
                [param.grad for param in params],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                count=states[0]["step"],
                group=group,
            )


def _update(
    params: list[Any],
    grads: list[Any],
    means: list[Any],
    squares: list[Any],
    *,
    count: int,
    group: dict[str, Any],
) -> None:
    lr, (beta1, beta2) = group["lr"], group["betas"]
    if group["weight_decay"]:
        torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
    torch._foreach_lerp_(means, grads, 1 - beta1)
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
    scale = torch._foreach_sqrt(squares)
    torch._foreach_div_(scale, math.sqrt(1 - beta2**count))
    torch._foreach_add_(scale, group["eps"])
    torch._foreach_addcdiv_(params, means, scale, -lr / (1 - beta1**count))


def make_optimizer(
    model: nn.Module, *, learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """AdamW that decays matrices, and not the gains of norms.

    Where torch has the whole update as one kernel that one serves, at 40% of the time of ours;
    elsewhere `AdamW` above. A test holds both to the same numbers.
    """
    params = [param for param in model.parameters() if param.requires_grad]
    groups = [
        {"params": [p for p in params if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in params if p.dim() < 2], "weight_decay": 0.0},
    ]
    if all(param.device.type in ("cpu", "cuda") for param in params):
        return torch.optim.AdamW(groups, lr=learning_rate, betas=_BETAS, fused=True)
    return AdamW(groups, lr=learning_rate)


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
