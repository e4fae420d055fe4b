"""Objects of the state: their names with and without wrappers, and modules with their own rules."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import mlflow_track as mt
from mlflow_track.checkpoint.state import load, rules
from mlflow_track.checkpoint.state.objects import state_of
from tests.checkpoint.test_loading import Folder


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    made = Folder(tmp_path)
    yield made
    made.saver.close()


def blocks(wrap: Callable[[nn.Module], nn.Module] = lambda block: block) -> nn.Module:
    return nn.Sequential(wrap(nn.Linear(3, 3)), nn.Sequential(wrap(nn.Linear(3, 3)), nn.ReLU()))


class Wrapper(nn.Module):
    """Its only child has the name that DDP uses."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Linear(3, 1)


WRAPS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "bare": lambda model: model,
    "compiled": torch.compile,
    "parallel": nn.DataParallel,
    "both": lambda model: nn.DataParallel(torch.compile(model)),
    "the other way": lambda model: torch.compile(nn.DataParallel(model)),
}
MODELS: dict[str, Callable[[], nn.Module]] = {
    "blocks": blocks,
    "compiled blocks": lambda: blocks(torch.compile),
    "a child called module": Wrapper,
}


def same_tensors(one: Any, other: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.values(), other.values(), strict=True))


@pytest.mark.parametrize("model", MODELS)
def test_state_of_a_model_has_the_names_of_its_classes(folder: Folder, model: str) -> None:
    bare = {"compiled blocks": blocks}.get(model, MODELS[model])().state_dict().keys()
    for step, then in enumerate(WRAPS):
        was = WRAPS[then](MODELS[model]())
        assert state_of(was).keys() == bare
        checkpoint = folder.save(step, {"model": was})
        for now in WRAPS:
            here = WRAPS[now](MODELS[model]())
            folder.load(checkpoint, {"model": here})
            assert same_tensors(was.state_dict(), here.state_dict()), (then, now)


def test_state_of_an_earlier_version_without_the_name_of_a_child_is_found(folder: Folder) -> None:
    # Earlier versions took `module.` for a wrapper's, whatever the class.
    was, now = nn.Linear(3, 1), Wrapper()
    folder.load(folder.save(0, {"model": was}), {"model": now})
    assert torch.equal(now.module.weight, was.weight)


class Average:
    def __init__(self, model: nn.Module) -> None:
        self.content: dict[str, Any] = {"steps": 3, "shadow": dict(model.state_dict())}

    def state_dict(self) -> dict[str, Any]:
        return self.content

    def load_state_dict(self, content: dict[str, Any]) -> None:
        assert content["shadow"].keys() == self.content["shadow"].keys()
        self.content = content


def test_names_deep_in_an_average_are_those_of_the_model_here(folder: Folder) -> None:
    for step, then in enumerate(WRAPS):
        was = Average(WRAPS[then](blocks()))
        checkpoint = folder.save(step, {"average": was})
        for now in WRAPS:
            here = Average(WRAPS[now](blocks(torch.compile)))
            folder.load(checkpoint, {"average": here})
            assert same_tensors(was.content["shadow"], here.content["shadow"]), (then, now)


# --- objects in lists and dicts ---


def trained(count: int = 2) -> list[torch.optim.Optimizer]:
    made: list[torch.optim.Optimizer] = []
    for number in range(count):
        weight = nn.Parameter(torch.ones(2))
        weight.grad = torch.full((2,), float(number + 1))
        made.append(torch.optim.AdamW([weight]))
        made[-1].step()
    return made


def test_objects_in_containers_are_loaded_and_stay_where_they_are(folder: Folder) -> None:
    def state() -> dict[str, Any]:
        return {"parts": {"pair": (trained(1)[0], nn.Linear(2, 1)), "step": 0, "rows": []}}

    was, now = state(), state()
    was["parts"].update(step=7, rows=[1, 2])
    parts, (optimizer, model), rows = now["parts"], now["parts"]["pair"], now["parts"]["rows"]
    folder.load(folder.save(0, was), now)
    assert now["parts"] is parts and parts["pair"] == (optimizer, model)
    assert torch.equal(model.weight, was["parts"]["pair"][1].weight)
    assert parts["step"] == 7 and parts["rows"] is rows and rows == [1, 2]


@pytest.mark.parametrize(
    ("now", "words"),
    [
        (lambda: trained(3), r"'x' does not hold the objects .*missing .*: \[2\]; .*: \[\]"),
        (lambda: trained(1), r"'x' does not hold the objects .*unexpected .*: \[1\]"),
        (lambda: dict(enumerate(trained())), "'x' is a dict of objects here, .* saved as list"),
    ],
)
def test_other_objects_in_a_container_are_refused(
    folder: Folder, now: Callable[[], Any], words: str
) -> None:
    checkpoint = folder.save(0, {"x": trained()})
    live = now()
    with pytest.raises(ValueError, match=words):
        folder.load(checkpoint, {"x": live})


def test_an_object_inside_the_state_of_another_is_refused() -> None:
    outer = Average(nn.Linear(1, 1))
    outer.content["inner"] = nn.Linear(1, 1)
    with mt.start_run() as run, pytest.raises(TypeError, match=r"'x\.inner' .* got .*Linear"):
        run.checkpoints().save(0, {"x": outer})


# --- asked before anything changes ---


class Expanded(nn.Module):
    def __init__(self, value: float, *, is_expanded: bool = True) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.full((2,), value))
        mask = torch.full((1, 1), value).expand(4, 3)
        self.register_buffer("mask", mask if is_expanded else mask.clone())


def test_an_expanded_buffer_gets_its_one_element(folder: Folder) -> None:
    was, now = Expanded(1.0), Expanded(0.0)
    folder.load(folder.save(0, {"model": was}), {"model": now})
    assert now.first.tolist() == [1, 1] and torch.equal(now.mask, was.mask)
    assert now.mask.stride() == (0, 0)


def test_an_expanded_buffer_of_several_values_is_refused(folder: Folder) -> None:
    was, now = Expanded(1.0, is_expanded=False), Expanded(0.0)
    was.mask[2, 2] = 5
    with pytest.raises(ValueError, match=r"model\.mask is expanded here.* has several values"):
        folder.load(folder.save(0, {"model": was}), {"model": now})
    assert now.first.tolist() == [0, 0] and not now.mask.any()


def test_tied_weights_that_differ_in_the_checkpoint_are_refused(folder: Folder) -> None:
    was, now = blocks(), blocks()
    now[1][0].weight = now[0].weight
    before = now[0].weight.clone()
    checkpoint = folder.save(0, {"other": torch.ones(1), "model": was})
    state = {"other": torch.zeros(1), "model": now}
    with pytest.raises(ValueError, match=r"model\.0\.weight and model\.1\.0\.weight share memory"):
        folder.load(checkpoint, state)
    assert torch.equal(now[0].weight, before) and not state["other"].any()


@pytest.mark.parametrize("part", ["whole", "one layer", "plain"])
def test_what_lies_on_the_meta_device_is_refused(folder: Folder, part: str) -> None:
    checkpoint = folder.save(0, {"x": torch.ones(3) if part == "plain" else blocks()})
    model = blocks()
    now: Any = {"whole": model, "one layer": model[1], "plain": torch.ones(3)}[part].to("meta")
    with pytest.raises(ValueError, match="on the meta device, without memory"):
        folder.load(checkpoint, {"x": model if part == "one layer" else now})


def test_a_state_of_a_generator_of_another_device_is_refused(folder: Folder) -> None:
    checkpoint = folder.save(0, {"g": torch.zeros(16, dtype=torch.uint8)})
    with pytest.raises(ValueError, match="'g' is a generator here, but was not saved as one"):
        folder.load(checkpoint, {"g": torch.Generator()})


# --- rules of their own ---


class Growing(nn.Module):
    def __init__(self, size: int = 0) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.register_buffer("seen", torch.ones(size))

    def _load_from_state_dict(self, content: Any, prefix: str, *rest: Any) -> None:
        self.seen = content[f"{prefix}seen"]
        super()._load_from_state_dict(content, prefix, *rest)


def test_a_module_that_keeps_what_it_is_given_holds_nothing_of_the_file(folder: Folder) -> None:
    was, now = Growing(3), Growing()
    checkpoint = folder.save(0, {"model": was})
    folder.load(checkpoint, {"model": now})
    path = checkpoint.path / "state.safetensors"
    with open(path, "r+b") as file:
        file.write(b"\xff" * path.stat().st_size)
    assert now.seen.tolist() == [1, 1, 1] and now.seen.storage_offset() == 0
    assert torch.equal(now.layer.weight, was.layer.weight)


def test_rules_are_those_of_the_part_that_has_them(folder: Folder) -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2), Growing(), nn.LazyLinear(3))
    assert rules.prefixes_with_rules(model) == ("2.", "3.")
    was = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2), Growing(4), nn.Linear(2, 3))
    checkpoint = folder.save(0, {"model": was})
    wrong = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 5), Growing(), nn.LazyLinear(3))
    with pytest.raises(ValueError, match=r"nothing was loaded: model\.1\.weight is float32\[2, 2"):
        folder.load(checkpoint, {"model": wrong})
    assert wrong[2].seen.numel() == 0 and nn.parameter.is_lazy(wrong[3].weight)
    folder.load(checkpoint, {"model": model})
    assert torch.equal(model[3].weight, was[3].weight) and model[2].seen.numel() == 4


class Refusing(nn.Module):
    """Loads its layers, and then refuses."""

    def __init__(self, *, can_go_back: bool = True) -> None:
        super().__init__()
        self.layer, self.tries, self.can_go_back = nn.Linear(2, 2), 0, can_go_back

    def load_state_dict(self, content: Any, *arguments: Any, **named: Any) -> Any:
        self.tries += 1
        super().load_state_dict(content, *arguments, **named)
        if self.tries == 1 or not self.can_go_back:
            raise RuntimeError("of another time")


@pytest.mark.parametrize("can_go_back", [True, False])
def test_a_module_that_refuses_by_its_rules_is_put_back(folder: Folder, can_go_back: bool) -> None:
    was, now = Refusing(), Refusing(can_go_back=can_go_back)
    other = nn.Linear(2, 2)
    before, untouched = copy.deepcopy(now.layer.weight), copy.deepcopy(other.weight)
    checkpoint = folder.save(0, {"other": nn.Linear(2, 2), "model": was})
    end = "nothing was loaded" if can_go_back else "model may have been changed in part"
    with pytest.raises(ValueError, match=f"'model' has its own .*; {end}: of another time"):
        folder.load(checkpoint, {"other": other, "model": now})
    assert torch.equal(other.weight, untouched)
    assert torch.equal(now.layer.weight, before)


def test_a_missing_key_of_a_lazy_model_is_named_before_anything_changes(folder: Folder) -> None:
    checkpoint = folder.save(0, {"model": nn.Sequential(nn.Linear(2, 3))})
    now = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 1))
    with pytest.raises(ValueError, match=r"missing from 'model': 1\.weight, 1\.bias; to take what"):
        folder.load(checkpoint, {"model": now})
    assert nn.parameter.is_lazy(now[0].weight)


def test_moments_of_another_shape_are_those_of_a_foreign_optimizer_only(folder: Folder) -> None:
    class LowRank(torch.optim.AdamW):
        pass

    for step, kind in enumerate((LowRank, torch.optim.AdamW)):
        weight = nn.Parameter(torch.ones(4, 3))
        was, now = kind([weight]), kind([weight])
        was.state[weight] = {"step": torch.tensor(1.0), "exp_avg": torch.ones(2, 3)}
        checkpoint = folder.save(step, {"o": was})
        if kind is torch.optim.AdamW:
            with pytest.raises(ValueError, match=r"exp_avg has shape \(2, 3\)"):
                folder.load(checkpoint, {"o": now})
        else:
            folder.load(checkpoint, {"o": now})
            assert torch.equal(now.state[weight]["exp_avg"], torch.ones(2, 3))


def test_load_reads_complex_numbers_at_an_odd_place_of_the_file(folder: Folder) -> None:
    state = {"a": torch.ones(9), "b": torch.tensor([1 + 2j])}
    checkpoint = folder.save(0, state)
    assert torch.equal(load.read(checkpoint)["state"]["b"], state["b"])
