"""What the machine lacks is said where it is asked for: fast bf16, a compiler."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from train import hardware
from train.hardware import choose_hardware, compiled, slow_precision


@pytest.mark.parametrize("has_bf16", [True, False])
@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16"])
def test_slow_precision_warns_of_bf16_that_is_emulated(has_bf16, precision, monkeypatch):
    monkeypatch.setattr(hardware, "_has_bf16", lambda _device: has_bf16)
    warning = slow_precision(choose_hardware("cpu", precision))
    assert bool(warning) == (precision == "bf16" and not has_bf16)
    if warning:
        assert warning.startswith("WARNING: this cpu has no bf16")


def test_compiled_without_a_compiler_is_the_model_itself_and_one_sentence(monkeypatch):
    def fail(_model):
        raise RuntimeError("No working C++ compiler found\n\nlong\nexplanation")

    monkeypatch.setattr(torch, "compile", fail)
    model = nn.Linear(2, 2)
    forward, warning = compiled(model, torch.device("cpu"))
    assert forward is model
    assert warning is not None
    assert warning.endswith("runs eager: No working C++ compiler found")


def test_compiled_is_the_compiled_model_where_that_works(monkeypatch):
    monkeypatch.setattr(
        torch,
        "compile",
        lambda thing: nn.Sequential(thing) if isinstance(thing, nn.Module) else thing,
    )
    forward, warning = compiled(nn.Linear(2, 2), torch.device("cpu"))
    assert (type(forward), warning) == (nn.Sequential, None)
