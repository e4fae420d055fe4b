"""The Transformer: a decoder-only language model, pre-norm, its parts written out.

Sources: attention and blocks, arXiv:1706.03762; RMSNorm, 1910.07467; rotary positions, 2104.09864;
SwiGLU, 2002.05202; GPT-2's parts (learned positions, LayerNorm, GELU) as options.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

_NORM_EPSILON = 1e-5
_ROPE_BASE = 10000.0


class Shape(NamedTuple):
    """The settings that determine the parameters of a model."""

    vocab_size: int
    context_length: int
    d_model: int
    num_layers: int
    num_heads: int
    d_ff: int
    dropout: float = 0.0
    position: str = "rope"
    ffn: str = "swiglu"
    norm: str = "rmsnorm"
    tie_embeddings: bool = False


class Linear(nn.Module):
    """y = x W^T; the weight is (features_out, features_in)."""

    def __init__(self, features_in: int, features_out: int, std: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(_normal(features_out, features_in, std=std))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self.weight)


class Embedding(nn.Module):
    """A row of the weight for each integer."""

    def __init__(self, count: int, width: int, std: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(_normal(count, width, std=std))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return functional.embedding(ids, self.weight)


class RMSNorm(nn.Module):
    """x / rms(x) * weight, computed in fp32 at the least."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, _RMSNorm.apply(x, self.weight, _products_dtype(x)))


class _RMSNorm(torch.autograd.Function):
    """The same with its derivative written out: fewer passes over x than autograd makes."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype
    ) -> torch.Tensor:
        wide = x.to(torch.promote_types(weight.dtype, torch.float32))
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale = norm.square_().mul_(1 / x.shape[-1]).add_(_NORM_EPSILON).rsqrt_()
        ctx.save_for_backward(wide, scale, weight)
        ctx.dtype = x.dtype
        return (wide * scale).mul_(weight).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        wide, scale, weight = ctx.saved_tensors
        grad = grads[0].to(wide.dtype)
        wide_weight = weight.to(wide.dtype)
        # LayerNorm's derivative, which torch has in one pass. With a mean of 0 and 1 / rms in the
        # place of 1 / std it is RMSNorm's but for one term, -mean(g w) / rms, which is added back.
        mean, wanted = torch.zeros_like(scale), (True, True, False)
        grad_x, grad_weight, _ = torch.ops.aten.native_layer_norm_backward.default(
            grad, wide, weight.shape, mean, scale, wide_weight, None, wanted
        )
        sums = (grad @ wide_weight).unsqueeze(-1)
        grad_x.add_(sums.mul_(scale), alpha=1 / grad.shape[-1])
        return grad_x.to(ctx.dtype), grad_weight.to(weight.dtype), None


class LayerNorm(nn.Module):
    """(x - mean) / std * weight, computed in fp32, without a bias."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        centred = wide - wide.mean(-1, keepdim=True)
        scale = torch.rsqrt(centred.square().mean(-1, keepdim=True) + _NORM_EPSILON)
        return (centred * scale * self.weight).to(x.dtype)


class Attention(nn.Module):
    """Causal multi-head self-attention. Rotary positions turn adjacent pairs of q and k."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width, std = shape.d_model, shape.d_model**-0.5
        self.num_heads, self.dropout = shape.num_heads, shape.dropout
        self.q_proj = Linear(width, width, std)
        self.k_proj = Linear(width, width, std)
        self.v_proj = Linear(width, width, std)
        self.output_proj = Linear(width, width, std)

    def forward(self, x: torch.Tensor, length: int, rotations: torch.Tensor | None) -> torch.Tensor:
        """x is (batch * length, width): a product of plain matrices is the fewest calls."""
        # One product for the three: a third of the calls, the same numbers.
        weights = torch.cat((self.q_proj.weight, self.k_proj.weight, self.v_proj.weight))
        qkv = functional.linear(x, weights)
        qkv = qkv.view(-1, length, 3, self.num_heads, x.shape[1] // self.num_heads)
        dropout = self.dropout if self.training else 0.0
        return self.output_proj(cast(torch.Tensor, _Attend.apply(qkv, rotations, dropout)))


class _Attend(torch.autograd.Function):
    """Causal attention of turned q and k, with its derivative written out.

    Autograd copies, scales, masks and joins about as long as it multiplies.
    """

    @staticmethod
    def forward(
        ctx: Any, qkv: torch.Tensor, rotations: torch.Tensor | None, dropout: float
    ) -> torch.Tensor:
        """(batch, length, 3, heads, width) to (batch * length, heads * width)."""
        batch, length, _, heads, width = qkv.shape
        apart = qkv.permute(2, 0, 3, 1, 4).clone(memory_format=torch.contiguous_format)
        apart = apart.view(3, -1, length, width)
        if rotations is not None:
            rotations = rotations[:length]
            turn(apart[:2], rotations)
        q, k, v = apart.unbind()
        future = torch.full((length, length), float("-inf"), dtype=q.dtype, device=q.device)
        scores = torch.baddbmm(future.triu_(1), q, k.transpose(1, 2), alpha=width**-0.5)
        weights = torch.softmax(scores, dim=-1).to(v.dtype)
        kept = functional.dropout(torch.ones_like(weights), dropout) if dropout else None
        ctx.save_for_backward(q, k, v, weights, kept, rotations)
        ctx.heads = heads
        y = torch.bmm(weights if kept is None else weights * kept, v)
        y = y.view(batch, heads, length, width).transpose(1, 2)
        return y.reshape(batch * length, heads * width)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        q, k, v, weights, kept, rotations = ctx.saved_tensors
        count, length, width = q.shape
        grad = grads[0].reshape(-1, length, ctx.heads, width).transpose(1, 2).reshape(q.shape)
        grad_weights = torch.bmm(grad, v.transpose(1, 2))
        if kept is not None:
            grad_weights *= kept
        grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
        apart = torch.empty((3, count, length, width), dtype=q.dtype, device=q.device)
        grad_q, grad_k, grad_v = apart.unbind()
        scale = width**-0.5
        torch.baddbmm(grad_q, grad_scores, k, beta=0, alpha=scale, out=grad_q)
        torch.baddbmm(grad_k, grad_scores.transpose(1, 2), q, beta=0, alpha=scale, out=grad_k)
        torch.bmm((weights if kept is None else weights * kept).transpose(1, 2), grad, out=grad_v)
        if rotations is not None:
            turn(apart[:2], rotations.conj())
        grad_qkv = apart.view(3, -1, ctx.heads, length, width).permute(1, 3, 0, 2, 4)
        return grad_qkv.contiguous(), None, None


def turn(x: torch.Tensor, rotations: torch.Tensor) -> None:
    """Turn each pair (2i, 2i + 1) of the last dimension by its position's angle, in place, in fp32.

    A pair is a complex number, and the turn one complex product: a fifth of the time of the same
    with sines and cosines, because nothing is taken apart.

    Args:
        x: (…, length, width).
        rotations: (length, width / 2), complex.
    """
    wide = x.float()
    torch.view_as_complex(wide.unflatten(-1, (-1, 2))).mul_(rotations)
    if wide is not x:
        x.copy_(wide)


class SwiGLU(nn.Module):
    """w2(silu(w1 x) * w3 x)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        std = shape.d_model**-0.5
        self.w1 = Linear(shape.d_model, shape.d_ff, std)
        self.w2 = Linear(shape.d_ff, shape.d_model, shape.d_ff**-0.5)
        self.w3 = Linear(shape.d_model, shape.d_ff, std)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.w2(functional.silu(self.w1(x)) * self.w3(x))


class GELU(nn.Module):
    """w2(gelu(w1 x))."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.w1 = Linear(shape.d_model, shape.d_ff, shape.d_model**-0.5)
        self.w2 = Linear(shape.d_ff, shape.d_model, shape.d_ff**-0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.w2(functional.gelu(self.w1(x)))


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.ln1 = _norm(shape)
        self.attn = Attention(shape)
        self.ln2 = _norm(shape)
        self.ffn = SwiGLU(shape) if shape.ffn == "swiglu" else GELU(shape)
        self.dropout = shape.dropout

    def forward(self, x: torch.Tensor, length: int, rotations: torch.Tensor | None) -> torch.Tensor:
        x = x + self._drop(self.attn(self.ln1(x), length, rotations))
        return x + self._drop(self.ffn(self.ln2(x)))

    def _drop(self, x: torch.Tensor) -> torch.Tensor:
        return functional.dropout(x, self.dropout, self.training)


class Transformer(nn.Module):
    """Tokens (batch, length) to logits (batch, length, vocab_size)."""

    rotations: torch.Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        std = shape.d_model**-0.5 if shape.tie_embeddings else 1.0
        self.token_embeddings = Embedding(shape.vocab_size, shape.d_model, std)
        self.position_embeddings = None
        if shape.position == "learned":
            self.position_embeddings = Embedding(shape.context_length, shape.d_model, 0.02)
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.num_layers))
        self.ln_final = _norm(shape)
        self.lm_head = Linear(shape.d_model, shape.vocab_size, shape.d_model**-0.5)
        if shape.tie_embeddings:
            self.lm_head.weight = self.token_embeddings.weight
        table = rotary_table(shape.context_length, shape.d_model // shape.num_heads)
        self.register_buffer("rotations", table, persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        batch, length = tokens.shape
        x = self.token_embeddings(tokens)
        if self.position_embeddings is not None:
            x = x + self.position_embeddings.weight[:length]
        x = functional.dropout(x, self.shape.dropout, self.training).flatten(0, 1)
        rotations = self.rotations if self.shape.position == "rope" else None
        for layer in self.layers:
            x = layer(x, length, rotations)
        return self.lm_head(self.ln_final(x)).view(batch, length, -1)


def rotary_table(length: int, width: int) -> torch.Tensor:
    """exp(i * position * base^(-2j/width)), complex64 of (length, width // 2): arXiv:2104.09864."""
    frequencies = _ROPE_BASE ** (-torch.arange(0, width - 1, 2, dtype=torch.float32) / width)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies)
    return torch.polar(torch.ones_like(angles), angles)


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The mean of -log softmax(logits)[target] in nats, computed in fp32.

    Args:
        logits: (…, vocab_size).
        targets: (…), int64.
    """
    return functional.cross_entropy(logits.float().flatten(0, -2), targets.flatten())


def _products_dtype(x: torch.Tensor) -> torch.dtype:
    """The dtype of the matrix products around `x`: that of autocast where it is on."""
    kind = x.device.type
    is_on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if is_on else x.dtype


def _norm(shape: Shape) -> RMSNorm | LayerNorm:
    return RMSNorm(shape.d_model) if shape.norm == "rmsnorm" else LayerNorm(shape.d_model)


def _normal(*size: int, std: float) -> torch.Tensor:
    return nn.init.trunc_normal_(torch.empty(*size), std=std, a=-3 * std, b=3 * std)
