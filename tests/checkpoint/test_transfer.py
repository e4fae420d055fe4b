"""Is every tensor copied, once, whichever thread does it?"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import forward_ad

from mlflow_track.checkpoint.disk import copying, safetensors
from mlflow_track.checkpoint.state.tensors import same_tensors

SIZES = st.lists(st.integers(0, 40), min_size=1, max_size=30)


@pytest.fixture
def one_training_thread(monkeypatch) -> Iterator[None]:
    monkeypatch.setattr(copying, "_WORTH_A_THREAD_BYTES", 64)
    monkeypatch.setattr(copying, "core_count", lambda: 4)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@given(sizes=SIZES, count=st.integers(1, 6))
def test_the_parts_are_the_whole_in_order_and_none_is_much_larger(sizes, count):
    sources = [torch.zeros(size, dtype=torch.uint8) for size in sizes]
    parts = copying._parts(sources, count)
    indices = [index for part in parts for index in range(len(sources))[part]]
    assert all(len(sources[part]) for part in parts)
    assert len(parts) <= count
    assert indices == list(range(len(sources)))
    most = max(sum(sizes[part]) for part in parts)
    assert most <= sum(sizes) / count + max(sizes)


def test_threads_copy_what_one_would(one_training_thread, monkeypatch):
    calls = []
    copy = copying._copy
    monkeypatch.setattr(copying, "_copy", lambda *lists: [calls.append(1), copy(*lists)])
    sources = [torch.randn(n) for n in (100, 1, 0, 30, 30, 7)]
    targets = [torch.empty_like(source) for source in sources]
    copying.copy_all(targets, sources)
    assert len(calls) == 4
    for target, source in zip(targets, sources, strict=True):
        assert torch.equal(target, source)


def test_torchs_own_threads_are_not_doubled(one_training_thread, monkeypatch):
    torch.set_num_threads(2)
    assert copying._thread_count([torch.zeros(10_000)], None) == 1
    torch.set_num_threads(1)
    assert copying._thread_count([torch.zeros(10_000)], None) == 4
    assert copying._thread_count([torch.zeros(8)], None) == 1


@pytest.mark.parametrize("bad", [0, 5])
def test_an_error_of_any_thread_is_the_callers(one_training_thread, bad):
    sources = [torch.randn(100) for _ in range(6)]
    targets = [torch.empty_like(source) for source in sources]
    targets[bad] = torch.empty(3)
    with pytest.raises(RuntimeError):
        copying.copy_all(targets, sources)


def test_where_no_thread_can_be_had_the_caller_copies_all(one_training_thread, monkeypatch):
    def refuse(thread: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading.Thread.start", refuse)
    sources = [torch.randn(100) for _ in range(6)]
    targets = [torch.empty_like(source) for source in sources]
    copying.copy_all(targets, sources)
    assert all(map(torch.equal, targets, sources))


def test_tensors_of_inference_mode_are_copied_by_every_thread(one_training_thread):
    with torch.inference_mode():
        sources = [torch.randn(100) for _ in range(6)]
        targets = [torch.empty_like(source) for source in sources]
        copying.copy_all(targets, sources)
    assert all(map(torch.equal, targets, sources))


@st.composite
def neighbours(draw: st.DrawFn) -> list[torch.Tensor]:
    """Tensors of few shapes, some of them laid out otherwise, as `safetensors.plan` orders them."""
    shapes = st.sampled_from([(), (0,), (3,), (2,), (2, 3), (4, 3), (3, 2), (1, 2, 3)])
    dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool])
    tensors = []
    for shape, dtype, kind in draw(st.lists(st.tuples(shapes, dtypes, st.integers(0, 3)))):
        made = torch.randint(0, 2, shape).to(dtype)
        if kind == 0:
            made = made.mT.contiguous().mT if made.dim() > 1 else made
        if kind == 1 and made.is_floating_point():
            made = torch.nn.Parameter(made)
        tensors.append(made)
    return tensors


@given(sources=neighbours())
def test_joined_tensors_arrive_as_each_on_its_own(sources):
    named = {str(number): source for number, source in enumerate(sources)}
    plan = safetensors.CachedPlan()
    layout = plan.of(named)
    buffer = torch.full((layout.total_bytes,), 255, dtype=torch.uint8)
    for _ in range(2):
        plan.fill(buffer, named)
        for name, target in safetensors.views(buffer, layout).items():
            assert torch.equal(target, named[name])
        for source in sources:
            source.detach().logical_not_()


def test_joined_tensors_may_carry_derivatives_of_either_kind():
    with forward_ad.dual_level():
        carriers = [torch.nn.Parameter(torch.randn(3)) for _ in range(2)]
        carriers += [forward_ad.make_dual(torch.randn(3), torch.randn(3)) for _ in range(2)]
        named = {str(number): tensor for number, tensor in enumerate(carriers)}
        plan = safetensors.CachedPlan()
        layout = plan.of(named)
        buffer = torch.zeros(layout.total_bytes, dtype=torch.uint8)
        plan.fill(buffer, named)
    for name, target in safetensors.views(buffer, layout).items():
        assert torch.equal(target, named[name])


def test_small_neighbours_of_one_shape_are_copied_by_one_call(monkeypatch):
    joined = []
    cat = torch.cat
    monkeypatch.setattr(torch, "cat", lambda t, out: [joined.append(len(t)), cat(t, out=out)])
    tensors = {f"a{i}": torch.randn(4, 3) for i in range(9)}
    tensors |= {f"b{i}": torch.randn(5, 2) for i in range(2)} | {"c": torch.randn(5, 7)}
    tensors["other layout"] = torch.randn(3, 4).t()
    tensors["large"] = torch.randn(copying._SMALL_BYTES, 3)
    plan = safetensors.CachedPlan()
    buffer = torch.zeros(plan.of(tensors).total_bytes, dtype=torch.uint8)
    plan.fill(buffer, tensors)
    assert sorted(joined) == [2, 9]
    views = safetensors.views(buffer, plan.of(tensors))
    assert all(torch.equal(views[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6.0)[::2][:1],  # One element, with the stride of its column.
        torch.arange(6.0).view(2, 3).t(),
        torch.arange(3.0).expand(4, 3),
        torch.tensor([1 + 2j, 3 - 4j]).conj().imag,
        torch.tensor([1 + 2j, 3 - 4j]).conj(),
        torch.tensor(7, dtype=torch.int16),
        torch.zeros(2, 0),
        torch.ones(3, requires_grad=True),
    ],
    ids=str,
)
def test_as_bytes_gives_the_elements_in_order(tensor):
    numbers = tensor.detach().resolve_conj().resolve_neg().numpy()
    assert safetensors.as_bytes(tensor).numpy().tobytes() == numbers.tobytes()
    assert same_tensors(tensor, tensor.detach().clone(memory_format=torch.contiguous_format))
