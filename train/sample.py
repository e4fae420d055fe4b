"""Samples a continuation from the model, drawn with a separate generator."""

from __future__ import annotations

import torch
from torch import nn

from train.config import Config
from train.data import Corpus


def sample_text(
    model: nn.Module, config: Config, corpus: Corpus, *, length: int, device: torch.device
) -> str:
    """A continuation of `length` tokens as text; where the tokens are not bytes, as numbers."""
    is_text = corpus.bytes_per_token is not None
    tokens = sample(
        model,
        list(b"The ") if is_text else corpus.val.cut(0, 4).tolist(),
        length=length,
        context_length=config.context_length,
        device=device,
        seed=config.seed,
    )
    return bytes(tokens).decode(errors="replace") if is_text else " ".join(map(str, tokens))


@torch.no_grad()
def sample(
    model: nn.Module,
    prompt: list[int],
    *,
    length: int,
    context_length: int,
    device: torch.device,
    seed: int,
    temperature: float = 0.8,
    top_k: int = 50,
) -> list[int]:
    """Continue `prompt` by `length` tokens; returns prompt and continuation."""
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    tokens = list(prompt)
    for _ in range(length):
        window = torch.tensor([tokens[-context_length:]], device=device)
        logits = model(window)[0, -1].float().cpu() / temperature
        best = logits.topk(min(top_k, len(logits)))
        index = torch.multinomial(best.values.softmax(-1), 1, generator=generator)
        tokens.append(int(best.indices[index]))
    model.train()
    return tokens
