"""Do the optimizer, clipping and the schedule do what their formulas say?"""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from train.optimizer import clip_gradients, gradients, learning_rate_at, make_optimizer


def make_gradients(model: torch.nn.Module, seed: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for param in model.parameters():
        param.grad = scale * torch.randn(param.shape, generator=generator)


def all_gradients(model: torch.nn.Module) -> list[torch.Tensor]:
    return gradients(make_optimizer(model, learning_rate=1e-2, weight_decay=0.1))


def small_model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.LayerNorm(5), torch.nn.Linear(5, 3))


def test_the_job_takes_torchs_kernel_where_it_has_one():
    model = small_model()
    fused = make_optimizer(model, learning_rate=1e-2, weight_decay=0.1)
    assert isinstance(fused, torch.optim.AdamW) and fused.defaults["fused"]
    elsewhere = make_optimizer(model.to("meta"), learning_rate=1e-2, weight_decay=0.1)
    assert isinstance(elsewhere, torch.optim.AdamW) and not elsewhere.defaults["fused"]


def test_norm_gains_are_not_decayed():
    model = small_model()
    optimizer = make_optimizer(model, learning_rate=1.0, weight_decay=0.5)
    before = [param.clone() for param in model.parameters()]
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    optimizer.step()
    for param, old in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(param.data, 0.5 * old if param.dim() >= 2 else old)


def test_a_loaded_optimizer_continues_as_if_it_had_not_stopped():
    model = small_model()
    optimizer = make_optimizer(model, learning_rate=1e-2, weight_decay=0.1)
    make_gradients(model, 0)
    optimizer.step()
    twin = copy.deepcopy(model)
    resumed = make_optimizer(twin, learning_rate=1e-2, weight_decay=0.1)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for one, its_optimizer in ((model, optimizer), (twin, resumed)):
        make_gradients(one, 1)
        its_optimizer.step()
    for mine, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("largest", [0.1, 5.0, 1e6])
def test_clipping_agrees_with_torchs(largest):
    model = small_model()
    reference = copy.deepcopy(model)
    make_gradients(model, 3)
    make_gradients(reference, 3)
    norm = clip_gradients(all_gradients(model), largest)
    expected = torch.nn.utils.clip_grad_norm_(reference.parameters(), largest)
    assert norm == pytest.approx(float(expected), rel=1e-6)
    for mine, other in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-5, atol=0)


def test_gradients_are_those_of_every_trained_weight():
    model = small_model()
    optimizer = make_optimizer(model, learning_rate=1e-2, weight_decay=0.1)
    assert gradients(optimizer) == []
    make_gradients(model, 3)
    found = {grad.data_ptr() for grad in gradients(optimizer)}
    assert found == {param.grad.data_ptr() for param in model.parameters()}


def test_clipping_at_zero_leaves_the_gradients():
    model = small_model()
    make_gradients(model, 3)
    before = [param.grad.clone() for param in model.parameters()]
    assert clip_gradients(all_gradients(model), 0) > 0
    assert all(torch.equal(p.grad, old) for p, old in zip(model.parameters(), before, strict=True))


@given(
    max_steps=st.integers(1, 5000),
    warmup_steps=st.integers(0, 6000),
    minimum=st.floats(0, 1e-3),
)
def test_the_schedule_warms_up_falls_and_ends_exactly_at_the_minimum(
    max_steps, warmup_steps, minimum
):
    def rate(step: int) -> float:
        return learning_rate_at(
            step, peak=2e-3, minimum=minimum, warmup_steps=warmup_steps, max_steps=max_steps
        )

    probes = sorted({0, 1, warmup_steps - 1, warmup_steps, max_steps // 2, max_steps - 1})
    rates = [rate(step) for step in probes if 0 <= step < max_steps]
    assert all(0 <= value <= 2e-3 * (1 + 1e-12) for value in rates)
    if warmup_steps < max_steps:
        assert rate(max_steps - 1) == minimum
        if warmup_steps < max_steps - 1:
            assert rate(warmup_steps) == pytest.approx(2e-3)
    for step in range(1, min(warmup_steps, max_steps)):
        assert rate(step) > rate(step - 1)
        if step > 50:
            break
    later = [rate(step) for step in range(warmup_steps, max_steps, 1 + max_steps // 40)]
    assert later == sorted(later, reverse=True)
