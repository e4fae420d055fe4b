"""Is the memory enough for the settings? Says which of them to lower where it is not."""

from __future__ import annotations

import os

import torch

from mlflow_track.wording import size_text
from train.config import Config
from train.data import Corpus
from train.hardware import Hardware
from train.ranks import Ranks

# In fp32: a weight, its gradient, and the two moments that AdamW has of it.
_BYTES_PER_PARAMETER, _LOGIT_BYTES, _LEAST_ACTIVATION_BYTES = 16, 4, 2
_MODEL, _BATCH = ("d_model", "num_layers", "d_ff"), ("batch_size", "context_length")


def require_memory(config: Config, corpus: Corpus, hardware: Hardware, ranks: Ranks) -> None:
    """Refuse settings whose smallest possible size exceeds the memory of the device.

    Raises:
        ValueError: The memory is too small; the message names the flags to lower.
    """
    if hardware.device.type == "cuda":
        available = torch.cuda.mem_get_info(hardware.device)[1]
    else:
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    block = config.d_model * (4 * config.d_model + 2 * config.d_ff)
    model = config.num_layers * block + corpus.vocab_size * config.d_model
    tokens = -(-config.batch_size // ranks.world_size) * config.context_length
    layers = config.num_layers * config.d_model * _LEAST_ACTIVATION_BYTES
    for what, flags, least in (
        ("the memory for the model", _MODEL, model * _BYTES_PER_PARAMETER),
        ("the memory for a step", _BATCH, tokens * (corpus.vocab_size * _LOGIT_BYTES + layers)),
    ):
        if least > available:
            raise ValueError(
                f"{what} must be at most the {size_text(available)} of {hardware.device}, got "
                f"{size_text(least)} or more; lower {_flags(config, flags)}"
            )


def shortage(error: BaseException, config: Config) -> str | None:
    """The message for an error that says that no more memory was there; None for other errors."""
    is_known = isinstance(error, MemoryError | torch.cuda.OutOfMemoryError)
    if not is_known and "can't allocate memory" not in str(error):
        return None
    reason = (str(error).strip().splitlines() or ["no more memory"])[0]
    return f"out of memory: {reason}; lower {_flags(config, (*_BATCH, *_MODEL))}"


def _flags(config: Config, names: tuple[str, ...]) -> str:
    flags = [f"--{name.replace('_', '-')} {getattr(config, name)}" for name in names]
    return f"{', '.join(flags[:-1])} or {flags[-1]}"
