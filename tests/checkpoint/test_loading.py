"""Loading: what does not fit is named before anything changes; nothing is ever executed."""

import ast
import copy
import io
import os
import pickle
import shutil
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import mlflow_track as mt
from mlflow_track.checkpoint.disk.store import Checkpoint, CheckpointStore, CorruptCheckpointError
from mlflow_track.checkpoint.state import codec, load
from mlflow_track.checkpoint.state.fill import own_copy
from mlflow_track.checkpoint.state.flatten import SaveRequest
from mlflow_track.checkpoint.writer.saver import Saver
from mlflow_track.record.metrics import MetricsFile


class Folder:
    """Saves states and gives them back."""

    def __init__(self, path: Path) -> None:
        self.store = CheckpointStore(path / "checkpoints")
        self.metrics, self.announce = MetricsFile(path / "metrics.csv"), print
        self.saver = Saver(self.store, self.metrics, self.announce)

    def save(self, step: int, state: dict[str, Any]) -> Checkpoint:
        self.saver.save(SaveRequest(step=step, state=state, manifest={"metrics": {}}))
        self.saver.wait()
        (outcome,) = self.saver.outcomes()
        assert outcome.error is None
        return self.store.expected(outcome.step)

    def load(self, checkpoint: Checkpoint, state: dict[str, Any]) -> None:
        load.load_into(state, load.read(checkpoint)["state"], checkpoint)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    made = Folder(tmp_path)
    yield made
    made.saver.close()


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 1))


def trained() -> dict[str, Any]:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(3):
        model(torch.randn(4, 8)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return {"model": model, "optimizer": optimizer, "plain": {"w": torch.ones(3), "n": (1, 2)}}


def fresh() -> dict[str, Any]:
    model = network()
    return {"model": model, "optimizer": torch.optim.AdamW(model.parameters()), "plain": None}


def test_a_fresh_optimizer_gets_all_of_its_state(folder: Folder) -> None:
    was, now = trained(), fresh()
    folder.load(folder.save(0, was), now)
    before, after = was["optimizer"].state_dict(), now["optimizer"].state_dict()
    assert len(after["state"]) == 6 and after["param_groups"] == before["param_groups"]
    for number, moments in before["state"].items():
        for key, value in moments.items():
            assert torch.equal(after["state"][number][key], value), key
    for key, value in was["model"].state_dict().items():
        assert torch.equal(now["model"].state_dict()[key], value), key
    assert now["plain"]["n"] == (1, 2) and torch.equal(now["plain"]["w"], torch.ones(3))


def test_parameters_and_moments_that_are_there_are_filled_in_place(folder: Folder) -> None:
    was, now = trained(), trained()
    parameters = {n: p.data_ptr() for n, p in now["model"].named_parameters()}
    moment = next(iter(now["optimizer"].state.values()))["exp_avg"]
    folder.load(folder.save(0, was), now)
    assert {n: p.data_ptr() for n, p in now["model"].named_parameters()} == parameters
    loaded = next(iter(now["optimizer"].state.values()))["exp_avg"]
    assert loaded.data_ptr() == moment.data_ptr()
    assert torch.equal(loaded, next(iter(was["optimizer"].state.values()))["exp_avg"])


def test_what_was_loaded_does_not_change_when_the_file_does(folder: Folder) -> None:
    was, now = trained(), fresh()
    checkpoint = folder.save(0, was)
    folder.load(checkpoint, now)
    path = checkpoint.path / "state.safetensors"
    with open(path, "r+b") as file:
        file.write(b"\xff" * path.stat().st_size)
        file.truncate(10)
    state = now["optimizer"].state_dict()["state"]
    assert torch.equal(state[0]["exp_avg"], was["optimizer"].state_dict()["state"][0]["exp_avg"])
    assert torch.equal(now["plain"]["w"], torch.ones(3))


@pytest.mark.parametrize("entry", ["plain", "optimizer"])
def test_what_a_forked_child_writes_into_what_was_loaded_stays_in_the_child(
    folder: Folder, entry: str
) -> None:
    # More than the 4 MB from which on the memory is mapped.
    weight = nn.Parameter(torch.zeros(1_500_000))
    was = torch.optim.SGD([weight], momentum=0.9)
    weight.sum().backward()
    was.step()
    now: dict[str, Any] = {"plain": None, "optimizer": torch.optim.SGD([weight], momentum=0.9)}
    state = {"plain": torch.ones(1_500_000), "optimizer": was}
    folder.load(folder.save(0, state), now)
    optimizer = now["optimizer"]
    loaded = now["plain"] if entry == "plain" else optimizer.state[weight]["momentum_buffer"]
    child = os.fork()
    if child == 0:
        loaded.numpy()[:] = 7
        os._exit(int(loaded[0].item()))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert loaded.unique().tolist() == [1]


def test_a_generator_beside_tensors_that_get_new_memory_comes_back(folder: Folder) -> None:
    saved = torch.Generator().manual_seed(3)
    committed = folder.save(0, {"first": {"w": torch.ones(3)}, "sampler": saved})
    state: dict[str, Any] = {"first": {}, "sampler": torch.Generator().manual_seed(4)}
    folder.load(committed, state)
    assert torch.equal(state["first"]["w"], torch.ones(3))
    assert torch.equal(state["sampler"].get_state(), saved.get_state())
    assert torch.equal(torch.rand(4, generator=state["sampler"]), torch.rand(4, generator=saved))


class Sampler:
    """Keeps the state of its generator, as samplers and loaders do."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])


def test_a_sampler_that_keeps_the_state_of_its_generator_comes_back(folder: Folder) -> None:
    was, now = Sampler(3), Sampler(4)
    committed = folder.save(0, {"weight": torch.ones(3), "sampler": was, "other": torch.ones(9)})
    folder.load(committed, {"weight": None, "sampler": now, "other": None})
    assert torch.equal(now.generator.get_state(), was.generator.get_state())


@pytest.mark.parametrize("count", [5, 1_500_000])
def test_each_tensor_that_is_handed_out_has_a_storage_of_its_own(
    folder: Folder, count: int
) -> None:
    state: dict[str, Any] = {"a": None, "b": None}
    committed = folder.save(0, {"a": {"x": torch.ones(count)}, "b": torch.zeros(count).byte()})
    folder.load(committed, state)
    loaded = own_copy(load.read(committed)["state"])
    for tensor in (state["a"]["x"], state["b"], loaded["a"]["x"], loaded["b"]):
        assert tensor.storage_offset() == 0
        assert tensor.untyped_storage().nbytes() == tensor.nbytes
        assert tensor.data_ptr() == tensor.untyped_storage().data_ptr()


@pytest.mark.parametrize("tensor", [torch.randn(5), torch.randn(3, 5).t()])
def test_tied_tensors_stay_tied(folder: Folder, tensor: torch.Tensor) -> None:
    state: dict[str, Any] = {"plain": None}
    folder.load(folder.save(0, {"plain": {"one": tensor, "two": tensor}}), state)
    assert state["plain"]["one"] is state["plain"]["two"]


def test_another_default_device_gets_no_tensor_of_ours(folder: Folder) -> None:
    memory = torch.arange(9.0)
    was = {"one": {"a": memory[:6], "b": memory[3:]}, "two": {"t": torch.randn(3, 5).t()}}
    there = torch.zeros(9)
    now: dict[str, Any] = {"one": {"a": there[:6], "b": there[3:]}, "two": {}}
    with torch.device("meta"):  # As "cuda" would be, but nothing can be read from it.
        committed = folder.save(0, was)
        folder.load(committed, now)
        loaded = own_copy(load.read(committed)["state"])
    assert torch.equal(there, memory)
    assert torch.equal(now["two"]["t"], was["two"]["t"])
    assert torch.equal(loaded["two"]["t"], was["two"]["t"])


FACTORIES = ("empty", "empty_strided", "tensor", "zeros", "ones", "full", "arange", "as_tensor")


def test_each_new_tensor_of_a_checkpoint_names_its_device() -> None:
    calls = [
        (path.name, node)
        for path in Path(load.__file__).parents[1].rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).removeprefix("torch.") in FACTORIES
        if ast.unparse(node.func).startswith("torch.")
    ]
    named = [[keyword.arg for keyword in call.keywords] for _, call in calls]
    assert len(calls) > 5
    assert [n for n, keys in zip(calls, named, strict=True) if "device" not in keys] == []


class Alternating(torch.optim.Optimizer):
    """Keeps two tensors for each parameter, which begin as one: as a view, where that is asked."""

    def __init__(self, parameters: Any, is_view: bool) -> None:
        super().__init__(parameters, {})
        self.is_view = is_view

    def step(self, closure: Any = None) -> None:
        for parameter in self.param_groups[0]["params"]:
            kept = self.state[parameter]
            if not kept:
                kept["slow"] = parameter.detach().clone()
                kept["last"] = kept["slow"][:] if self.is_view else kept["slow"]
                kept["own"] = parameter.detach()
            else:
                kept["last"] = parameter.detach().clone()
                kept["slow"] = kept["slow"] * 0.5 + parameter.detach()
                kept["own"] = parameter.detach() * 3


@pytest.mark.parametrize("is_view", [True, False])
def test_moments_that_share_memory_here_get_the_two_values_that_were_saved(
    folder: Folder, is_view: bool
) -> None:
    states = []
    for steps in (3, 1):
        model = nn.Linear(2, 1, bias=False)
        optimizer = Alternating(model.parameters(), is_view)
        for _ in range(steps):
            optimizer.step()
            nn.init.normal_(model.weight)
        states.append({"optimizer": optimizer, "model": model})
    was, now = states
    folder.load(folder.save(0, was), now)
    before, after = (s["optimizer"].state_dict()["state"][0] for s in (was, now))
    for name in ("slow", "last", "own"):
        assert torch.equal(before[name], after[name]), name
    assert torch.equal(was["model"].weight, now["model"].weight)


class Average:
    """Of the weights of a model, by their names: what many write beside it."""

    def __init__(self, model: nn.Module) -> None:
        self.shadow = {name: p.detach().clone() for name, p in model.named_parameters()}

    def state_dict(self) -> dict[str, torch.Tensor]:
        return dict(self.shadow)

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.shadow.update(state)


def wrapped() -> nn.Module:
    wrapper = nn.Module()
    wrapper.module = nn.Linear(3, 1)
    return wrapper


@pytest.mark.parametrize("is_now_wrapped", [True, False])
@pytest.mark.parametrize("was_wrapped", [True, False])
def test_an_average_of_a_wrapped_model_has_the_names_that_it_has_here(
    folder: Folder, was_wrapped: bool, is_now_wrapped: bool
) -> None:
    make = {True: wrapped, False: lambda: nn.Linear(3, 1)}
    was, now = Average(make[was_wrapped]()), Average(make[is_now_wrapped]())
    names = list(now.shadow)
    checkpoint = folder.save(0, {"average": was})
    saved = load.read(checkpoint)["state"]["average"]
    assert list(saved) == list(was.shadow)
    folder.load(checkpoint, {"average": now})
    assert list(now.shadow) == names
    for ours, theirs in zip(now.shadow.values(), was.shadow.values(), strict=True):
        assert torch.equal(ours, theirs)


def test_data_of_a_callers_own_keeps_its_names(folder: Folder) -> None:
    plain = {"module.a": 1, "module.b": 2}
    state: dict[str, Any] = {"plain": None}
    folder.load(folder.save(0, {"plain": plain}), state)
    assert state["plain"] == plain


def fused(weight: torch.Tensor) -> tuple[dict[str, Any], torch.optim.Optimizer]:
    model = nn.Module()
    model.weight = nn.Parameter(weight.clone())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    return {"model": model, "optimizer": optimizer}, optimizer


def train(state: dict[str, Any], steps: range) -> None:
    for step in steps:
        x = torch.randn(4, 5, generator=torch.Generator().manual_seed(step))
        (x @ state["model"].weight).square().mean().backward()
        state["optimizer"].step()
        state["optimizer"].zero_grad()


@pytest.mark.parametrize("are_kept", [True, False], ids=["now", "of a version without strides"])
def test_a_fused_optimizer_of_transposed_weights_continues_exactly(
    folder: Folder, are_kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = torch.randn(3, 5).t()
    was, _ = fused(weight)
    now, optimizer = fused(weight)
    train(was, range(3))
    if not are_kept:
        monkeypatch.setattr(codec, "dense_stride", lambda tensor: None)
    folder.load(folder.save(0, was), now)
    assert optimizer.state[now["model"].weight]["exp_avg"].stride() == weight.stride()
    train(was, range(3, 6))
    train(now, range(3, 6))
    assert torch.equal(was["model"].weight, now["model"].weight)


def test_a_fused_optimizer_continues_where_the_weights_are_laid_out_otherwise(
    folder: Folder,
) -> None:
    weight = torch.randn(3, 5).t()
    was, _ = fused(weight)
    now, _ = fused(weight.contiguous())
    train(was, range(3))
    folder.load(folder.save(0, was), now)
    train(was, range(3, 6))
    train(now, range(3, 6))
    assert torch.allclose(was["model"].weight, now["model"].weight)


def test_kinds_of_dict_and_odd_names_come_back_as_they_were(folder: Folder) -> None:
    kinds = {
        "counts": Counter(a=2),
        "default": defaultdict(int, a=1),
        "ordered": OrderedDict(b=torch.ones(2), a=1),
    }
    schedules = [LR.MultiStepLR(unused(torch.optim.SGD), [2, 4]) for _ in range(2)]
    was = {"kinds": kinds, "__metadata__": torch.ones(2), "schedule": schedules[0]}
    now: dict[str, Any] = {"kinds": None, "__metadata__": None, "schedule": schedules[1]}
    folder.load(folder.save(0, was), now)
    assert {k: type(v) for k, v in now["kinds"].items()} == {k: type(v) for k, v in kinds.items()}
    assert now["kinds"]["default"]["new"] == 0 and list(now["kinds"]["ordered"]) == ["b", "a"]
    assert torch.equal(now["__metadata__"], torch.ones(2))
    assert schedules[1].milestones == Counter([2, 4]) and type(schedules[1].milestones) is Counter


def test_what_is_whole_and_cannot_be_read_is_named_and_stays_where_it_is() -> None:
    with mt.start_run() as run:
        checkpoint = run.checkpoints().save(0, {"w": 1})
    reseal(checkpoint, "state.json", b'{"state": {"w": {"$later": 1}}}')
    with mt.start_run(resume=run.id) as again:
        with pytest.raises(
            ValueError, match=r"step-000000000 is intact but cannot be decoded: .*later"
        ):
            again.checkpoints().restore({"w": 0})
    assert checkpoint.path.exists()


class Other(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, 2))
        self.bias = nn.Parameter(torch.zeros(3))


MISFITS = {
    "missing": (
        lambda m: m.register_parameter("extra", nn.Parameter(torch.ones(1))),
        "missing from 'model': extra",
    ),
    "unexpected": (lambda m: m.__delattr__("bias"), "unexpected in 'model': bias"),
    "shape": (
        lambda m: m.register_parameter("weight", nn.Parameter(torch.ones(2, 2))),
        r"model\.weight is float32\[3, 2\] in the checkpoint and float32\[2, 2\] here",
    ),
    "dtype": (lambda m: m.half(), r"model\.bias is float32\[3\] .* float16\[3\] here"),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_what_does_not_fit_is_named_and_nothing_is_changed(folder: Folder, misfit: str) -> None:
    first = nn.Linear(2, 2)
    checkpoint = folder.save(0, {"first": first, "model": Other()})
    change, message = MISFITS[misfit]
    now = {"first": nn.Linear(2, 2), "model": Other()}
    change(now["model"])
    untouched = now["first"].weight.detach().clone()
    with pytest.raises(ValueError, match=message):
        folder.load(checkpoint, now)
    assert torch.equal(now["first"].weight, untouched)


def test_an_optimizer_of_other_groups_or_shapes_is_named(folder: Folder) -> None:
    checkpoint = folder.save(0, trained())
    now = fresh()
    now["optimizer"] = torch.optim.AdamW([nn.Parameter(torch.ones(2))])
    with pytest.raises(ValueError, match=r"groups of \[6\] parameters in the .*, of \[1\] here"):
        folder.load(checkpoint, now)
    now["optimizer"] = torch.optim.AdamW([nn.Parameter(torch.ones(2)) for _ in range(6)])
    with pytest.raises(ValueError, match=r"optimizer\.state\.0\.exp_avg has shape \(16, 8\)"):
        folder.load(checkpoint, now)


def stepped(
    kind: Callable[..., torch.optim.Optimizer], dtype: torch.dtype = torch.float32, **options: Any
) -> torch.optim.Optimizer:
    """An optimizer of two parameters, of which it has moments."""
    parameters = [nn.Parameter(torch.ones(3, dtype=dtype)) for _ in range(2)]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer = kind(parameters, lr=0.1, **options)
    optimizer.step()
    return optimizer


def without_a_moment() -> torch.optim.Optimizer:
    optimizer = stepped(torch.optim.AdamW)
    del optimizer.state[optimizer.param_groups[0]["params"][1]]
    return optimizer


def unused(kind: Callable[..., torch.optim.Optimizer], **options: Any) -> torch.optim.Optimizer:
    return kind([nn.Parameter(torch.ones(3)) for _ in range(2)], lr=0.1, **options)


def schedule(kind: Callable[..., Any], *arguments: Any) -> Any:
    return kind(unused(torch.optim.SGD), *arguments)


class Counts:
    """What a caller writes: some of its keys come with time."""

    def __init__(self, **counts: Any) -> None:
        self.counts: dict[str, Any] = counts

    def state_dict(self) -> dict[str, Any]:
        return self.counts

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.counts = state


class Updated(Counts):
    """Keeps what the checkpoint does not have."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.counts.update(state)


class OtherCounts(Counts):
    pass


LR = torch.optim.lr_scheduler
# What is saved, what it is loaded into, and what is said.
REFUSED = {
    "another optimizer": (
        lambda: stepped(torch.optim.AdamW),
        lambda: unused(torch.optim.SGD, momentum=0.9),
        r"group 0 of 'x' has the extra keys amsgrad, .* in the checkpoint and dampening, .* here",
    ),
    "other moments": (
        lambda: stepped(torch.optim.AdamW),
        lambda: stepped(torch.optim.Adamax),
        r"x\.state\.0 has the extra keys exp_avg_sq in the checkpoint and exp_inf here",
    ),
    "moments of another dtype": (
        lambda: stepped(torch.optim.AdamW, torch.bfloat16),
        lambda: stepped(torch.optim.AdamW),
        r"x\.state\.0\.exp_avg is bfloat16\[3\] in the checkpoint and float32\[3\] here",
    ),
    "another schedule": (
        lambda: schedule(LR.StepLR, 3),
        lambda: schedule(LR.CosineAnnealingLR, 9),
        r"'x' has the extra keys gamma, step_size in the checkpoint and T_max, eta_min here",
    ),
    "another class": (
        lambda: Counts(a=1, b=1),
        lambda: OtherCounts(b=1, c=1),
        "'x' has the extra keys a in the checkpoint and c here",
    ),
    "a tensor of another dtype": (
        lambda: torch.zeros(5),
        lambda: torch.zeros(5, dtype=torch.int64),
        r"'x' is float32\[5\] in the checkpoint and int64\[5\] here",
    ),
    "a tensor of another shape": (
        lambda: torch.zeros(3),
        lambda: torch.zeros(5),
        r"'x' is float32\[3\] in the checkpoint and float32\[5\] here \(None, or an empty one",
    ),
}


def scaler(enabled: bool = True) -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", enabled=enabled)


NOT_THE_SAME = {
    "moments that torch converts": (
        lambda: stepped(torch.optim.AdamW, torch.bfloat16),
        lambda: unused(torch.optim.AdamW),
        "x.state.0.exp_avg bfloat16 -> float32",
    ),
    "a key that only one has": (
        lambda: Updated(a=1),
        lambda: Updated(a=1, b=2),
        "x.b is not in the checkpoint",
    ),
    "keys that are data": (
        lambda: Updated(a=1),
        lambda: Updated(b=2),
        "x.b is not in the checkpoint",
    ),
    "a parameter without moments": (
        without_a_moment,
        lambda: stepped(torch.optim.AdamW),
        "",
    ),
    "a scaler switched off": (scaler, lambda: scaler(enabled=False), "x.scale is missing here"),
    "a scaler switched on": (
        lambda: scaler(enabled=False),
        scaler,
        "x.scale is not in the checkpoint",
    ),
    "the same scaler": (scaler, scaler, ""),
    "a scaler that stays off": (*[lambda: scaler(enabled=False)] * 2, ""),
    "a key that the checkpoint drops": (lambda: Counts(a=1), lambda: Counts(a=1, b=2), ""),
    "a key that came with time": (lambda: Counts(a=1, b=2), lambda: Counts(a=1), ""),
    "nothing here yet": (lambda: Counts(a=1), Counts, ""),
    "a tensor that grows": (lambda: torch.ones(3), lambda: torch.ones(0), ""),
    "the same": (lambda: stepped(torch.optim.AdamW), lambda: stepped(torch.optim.AdamW), ""),
    "a fresh one": (lambda: stepped(torch.optim.AdamW), lambda: unused(torch.optim.AdamW), ""),
}


def run_and_resume(then: Any, now: Any) -> str:
    """The line of the log that says what was restored."""
    with mt.start_run() as run:
        run.checkpoints().save(0, {"x": then})
    with mt.start_run(resume=run.id) as again:
        again.checkpoints().restore({"x": now})
    return (run.path / "training.log").read_text()


@pytest.mark.parametrize("case", REFUSED)
def test_what_was_another_thing_at_the_save_is_refused_and_left_alone(case: str) -> None:
    then, now, message = REFUSED[case]
    live = now()
    before = copy.deepcopy(live.state_dict() if hasattr(live, "state_dict") else live)
    with pytest.raises(ValueError, match=message):
        run_and_resume(then(), live)
    after = live.state_dict() if hasattr(live, "state_dict") else live
    assert str(after) == str(before)


@pytest.mark.parametrize("case", NOT_THE_SAME)
def test_report_says_what_differs_from_the_checkpoint_after_loading(case: str) -> None:
    then, now, words = NOT_THE_SAME[case]
    log = run_and_resume(then(), now())
    assert f"exact: no ({words}" in log if words else "exact: yes" in log


def test_another_class_of_the_same_keys_is_not_an_exact_continuation() -> None:
    log = run_and_resume(stepped(torch.optim.AdamW), unused(torch.optim.Adam))
    assert "exact: no (class of x AdamW -> Adam)" in log


class Raises(Counts):
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.counts["a"] = state["a"]
        raise KeyError("half")


def test_load_that_raises_half_way_names_what_was_changed_and_what_was_not() -> None:
    live = {"first": Counts(), "table": {"w": torch.zeros(2)}, "bad": Raises(), "last": Counts()}
    saved = {"first": Counts(a=1), "table": {"w": torch.ones(2)}, "bad": Raises(a=1)}
    with mt.start_run() as run:
        run.checkpoints().save(0, {**saved, "last": Counts(a=1)})
    with mt.start_run(resume=run.id) as again:
        with pytest.raises(RuntimeError) as caught:
            again.checkpoints().restore(live)
    assert str(caught.value) == (
        "step-000000000 was restored only in part: loading 'bad' raised KeyError: 'half'; "
        "changed: 'first', 'table', 'bad' (the last perhaps in part); unchanged: 'last'"
    )
    assert live["first"].counts == {"a": 1} and live["last"].counts == {}
    assert live["table"]["w"].tolist() == [1, 1]


class OneWay:
    def state_dict(self) -> dict[str, int]:
        return {"n": 1}


def test_an_object_that_cannot_load_is_refused_at_the_save_and_at_the_restore() -> None:
    words = r"state\['x'\] must be .*, got OneWay without load_state_dict"
    with mt.start_run() as run:
        checkpoints = run.checkpoints()
        with pytest.raises(TypeError, match=words):
            checkpoints.save(0, {"x": OneWay()})
        checkpoints.save(0, {"x": Counts(n=1)})
    with mt.start_run(resume=run.id) as again:
        with pytest.raises(TypeError, match=words):
            again.checkpoints().restore({"x": OneWay()})


# --- no code runs, no damage passes ---


class Bomb:
    """Unpickling it leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.trace,))


def bombs(trace: Path) -> list[bytes]:
    payload = pickle.dumps(Bomb(trace))
    archive = io.BytesIO()
    torch.save({"w": Bomb(trace)}, archive)
    return [payload, archive.getvalue()]


def reseal(checkpoint: Checkpoint, name: str, content: bytes) -> None:
    """Put `content` in place of a file with a manifest that vouches for it, as a forger would."""
    import json

    from mlflow_track.checkpoint.disk import verify

    (checkpoint.path / name).write_bytes(content)
    path = checkpoint.path / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["digest"]
    manifest["files"][name] = {"bytes": len(content), "chunks": [verify.digest(content)]}
    path.write_text(json.dumps({**manifest, "digest": verify.digest_of_manifest(manifest)}))


@pytest.mark.parametrize("is_sealed", [False, True])
@pytest.mark.parametrize("name", ["state.safetensors", "state.json", "manifest.json"])
def test_a_planted_pickle_is_never_executed(
    folder: Folder, name: str, is_sealed: bool, tmp_path: Path
) -> None:
    trace = tmp_path / "executed"
    for step, bomb in enumerate(bombs(trace)):
        checkpoint = folder.save(step, {"plain": {"w": torch.ones(3)}})
        if is_sealed and name != "manifest.json":
            reseal(checkpoint, name, bomb)
        else:
            (checkpoint.path / name).write_bytes(bomb)
        with pytest.raises(CorruptCheckpointError, match=checkpoint.path.name):
            folder.load(Checkpoint(checkpoint.path, step), {"plain": None})
        assert not trace.exists()


def test_the_planted_pickle_would_have_left_a_trace(tmp_path: Path) -> None:
    trace = tmp_path / "executed"
    pickle.loads(bombs(trace)[0])
    assert trace.exists()


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size // 2)


DAMAGES = {
    "first bit": lambda path, other: flip(path, 0),
    "bit in the middle": lambda path, other: flip(path, path.stat().st_size // 2),
    "last bit": lambda path, other: flip(path, -1),
    "truncated": lambda path, other: cut(path),
    "longer": lambda path, other: path.write_bytes(path.read_bytes() + b"\0"),
    "emptied": lambda path, other: path.write_bytes(b""),
    "zeroed": lambda path, other: path.write_bytes(bytes(path.stat().st_size)),
    "dropped": lambda path, other: path.unlink(),
    "of another step": lambda path, other: shutil.copy(other, path),
}


@pytest.mark.parametrize("name", ["state.safetensors", "state.json", "manifest.json"])
def test_every_damage_is_found_before_anything_is_loaded(folder: Folder, name: str) -> None:
    checkpoint = folder.save(0, trained())
    other = folder.save(1, {**trained(), "plain": {"w": torch.ones(3), "n": (3, 4)}})
    for damage, spoil in DAMAGES.items():
        shutil.copytree(checkpoint.path, whole := checkpoint.path.parent / "copy")
        spoil(checkpoint.path / name, other.path / name)
        now = fresh()
        before = now["model"][0].weight.detach().clone()
        with pytest.raises(CorruptCheckpointError, match="step-000000000"):
            folder.load(Checkpoint(checkpoint.path, 0), now)
        assert torch.equal(now["model"][0].weight, before), damage
        shutil.rmtree(checkpoint.path)
        whole.rename(checkpoint.path)
    folder.load(Checkpoint(checkpoint.path, 0), fresh())
