"""Write docs/states.md, the table of what a checkpoint can hold: `python docs/make_states.py`.

Each row is played by three processes: one trains without interruption; one trains half of the
steps and saves; one restores, trains the rest, and must end with the same bytes. `make tables`
plays all of them, `make test` a quarter.
"""

from __future__ import annotations

import collections
import enum
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.utils import prune

import mlflow_track as mt

PAGE = Path(__file__).with_name("states.md")
PARTS = ("whole", "first", "rest")
STEPS, SAVED = 6, 2
LR = torch.optim.lr_scheduler

Point = collections.namedtuple("Point", "x y")


class Phase(enum.Enum):
    WARM = "warm"
    COLD = "cold"


class Played(NamedTuple):
    """What a row plays with.

    Attributes:
        state: What is saved and restored.
        advance: One step of training.
    """

    state: dict[str, Any]
    advance: Callable[[int], Any]


Make = Callable[[bool], Played]
STATES: dict[str, Make] = {}


def state(words: str) -> Callable[[Make], Make]:
    """Add a row. Its function is told whether it plays the resumed half."""

    def add(make: Make) -> Make:
        STATES[words] = make
        return make

    return add


# --- what is trained ---


def step_of(model: nn.Module, optimizer: Any, *, size: int = 3, after: Any = None) -> Any:
    """A function that takes one step, with dropout and noise of the global generators."""

    def advance(step: int) -> None:
        x = torch.randn(4, size) + random.random() + float(np.random.rand())

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = nn.functional.dropout(model(x).abs(), 0.5).square().mean()
            loss.backward()
            return loss

        loss = optimizer.step(closure)
        if after is not None:
            after(step, float(loss))

    return advance


def net(size: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(size, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def with_optimizer(kind: Callable[..., Any], **options: Any) -> Make:
    def make(_: bool) -> Played:
        model = net()
        optimizer = kind(model.parameters(), **options)
        return Played({"model": model, "optimizer": optimizer}, step_of(model, optimizer))

    return make


def with_schedule(make_schedule: Callable[[Any], Any], *, is_of_loss: bool = False) -> Make:
    def make(_: bool) -> Played:
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        schedule = make_schedule(optimizer)

        def after(step: int, loss: float) -> None:
            schedule.step(*([loss] if is_of_loss else []))

        advance = step_of(model, optimizer, after=after)
        return Played({"model": model, "optimizer": optimizer, "schedule": schedule}, advance)

    return make


def with_model(make_model: Callable[[bool], nn.Module]) -> Make:
    def make(is_resumed: bool) -> Played:
        model = make_model(is_resumed)
        model(torch.zeros(4, 3)) if not any(map(nn.parameter.is_lazy, model.parameters())) else None
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return Played({"model": model}, step_of(model, optimizer))

    return make


def with_plain(make_value: Callable[[], Any], advance: Callable[[Any, int], Any]) -> Make:
    """Plain data that `advance` changes in place: it knows the object, and not the state."""

    def make(_: bool) -> Played:
        value = make_value()
        return Played({"it": value}, lambda step: advance(value, step))

    return make


# --- optimizers ---

state("AdamW")(with_optimizer(torch.optim.AdamW))
state("SGD with momentum")(with_optimizer(torch.optim.SGD, lr=0.1, momentum=0.9))
state("LBFGS, which keeps a history")(with_optimizer(torch.optim.LBFGS, lr=0.1, max_iter=3))
state("Adafactor, whose moments have other shapes")(with_optimizer(torch.optim.Adafactor))


@state("fused AdamW, resumed with `foreach=True`")
def fused_into_foreach(is_resumed: bool) -> Played:
    option = {"foreach": True} if is_resumed else {"fused": True}
    return with_optimizer(torch.optim.AdamW, **option)(is_resumed)


class LowRank(torch.optim.SGD):
    """Keeps a moment of a lower rank, as GaLore does, under the name that Adam has."""

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                mean = parameter.grad.reshape(-1)[:2].clone()
                kept = self.state[parameter]
                kept["exp_avg"] = kept.get("exp_avg", torch.zeros_like(mean)) * 0.5 + mean
                with torch.no_grad():
                    parameter.sub_(kept["exp_avg"].mean())
        return loss


state("moments of a lower rank than their parameter")(with_optimizer(LowRank, lr=0.1))


@state("a list of optimizers")
def list_of_optimizers(_: bool) -> Played:
    models = [net(), net()]
    optimizers = [torch.optim.AdamW(model.parameters()) for model in models]
    steps = [step_of(*pair) for pair in zip(models, optimizers, strict=True)]
    content = {"models": dict(zip("ab", models, strict=True)), "optimizers": optimizers}
    return Played(content, lambda step: [advance(step) for advance in steps])


@state("`GradScaler`")
def scaler(_: bool) -> Played:
    played = with_optimizer(torch.optim.AdamW)(False)
    scale = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)

    def advance(step: int) -> None:
        model, optimizer = played.state["model"], played.state["optimizer"]
        scale.scale(model(torch.randn(4, 3)).square().mean()).backward()
        scale.step(optimizer)
        scale.update()
        optimizer.zero_grad()

    return Played({**played.state, "scaler": scale}, advance)


# --- schedules ---

state("`OneCycleLR`")(with_schedule(lambda o: LR.OneCycleLR(o, 0.1, total_steps=STEPS + 1)))
state("`SequentialLR` of a warm-up and a cosine")(
    with_schedule(
        lambda o: LR.SequentialLR(
            o, [LR.LinearLR(o, 0.1, total_iters=2), LR.CosineAnnealingLR(o, 4)], milestones=[2]
        )
    )
)
state("`ChainedScheduler`")(
    with_schedule(lambda o: LR.ChainedScheduler([LR.StepLR(o, 2), LR.ExponentialLR(o, 0.9)]))
)
state("`LambdaLR`")(with_schedule(lambda o: LR.LambdaLR(o, lambda step: 1 / (1 + step))))
state("`ReduceLROnPlateau`")(
    with_schedule(lambda o: LR.ReduceLROnPlateau(o, patience=0, factor=0.5), is_of_loss=True)
)


# --- averages ---


@state("`AveragedModel` and `SWALR`")
def stochastic_average(_: bool) -> Played:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    average = torch.optim.swa_utils.AveragedModel(model)
    schedule = torch.optim.swa_utils.SWALR(optimizer, swa_lr=0.05, anneal_epochs=3)

    def after(step: int, loss: float) -> None:
        average.update_parameters(model)
        schedule.step()

    content = {"model": model, "optimizer": optimizer, "average": average, "schedule": schedule}
    return Played(content, step_of(model, optimizer, after=after))


class Average:
    """An average that names its tensors as the model does."""

    def __init__(self, model: nn.Module) -> None:
        self.shadow = {name: p.detach().clone() for name, p in model.named_parameters()}

    def update(self, model: nn.Module) -> None:
        for old, new in zip(self.shadow.values(), model.parameters(), strict=True):
            old.lerp_(new.detach(), 0.3)

    def state_dict(self) -> dict[str, Any]:
        return {"decay": 0.3, "shadow": self.shadow}

    def load_state_dict(self, content: dict[str, Any]) -> None:
        assert content["shadow"].keys() == self.shadow.keys()
        self.shadow = dict(content["shadow"])


def averaged(model: nn.Module, bare: nn.Module) -> Played:
    optimizer = torch.optim.SGD(bare.parameters(), lr=0.1)
    average = Average(model)
    after = lambda step, loss: average.update(model)  # noqa: E731
    advance = step_of(bare, optimizer, after=after)
    return Played({"model": model, "average": average, "optimizer": optimizer}, advance)


@state("an average of your own, of a compiled model, resumed without `torch.compile`")
def compiled_into_bare(is_resumed: bool) -> Played:
    model = net()
    return averaged(model if is_resumed else torch.compile(model), model)


@state("a bare model and its average, resumed with compiled blocks")
def bare_into_compiled_blocks(is_resumed: bool) -> Played:
    model = net()
    if is_resumed:
        wrapped = nn.Sequential(*(torch.compile(block) for block in model))
        return averaged(wrapped, model)
    return averaged(model, model)


@state("a wrapped model (`DataParallel`, DDP), resumed bare")
def wrapped_into_bare(is_resumed: bool) -> Played:
    model = net()
    return averaged(model if is_resumed else nn.DataParallel(model), model)


# --- layers ---


class EveryTimeStep(nn.Module):
    """Its only child has the name that wrappers use."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.module(x)


class Buffers(nn.Module):
    """Buffers that are expanded, empty, of bool, complex and of 8 bits, and two of one memory."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        base = torch.arange(6.0)
        for name, value in {
            "expanded": torch.ones(1, 1).expand(4, 3),
            "empty": torch.zeros(0, 3),
            "flags": torch.tensor([True, False]),
            "waves": torch.ones(2, dtype=torch.complex64),
            "small": torch.ones(2).to(torch.float8_e4m3fn),
            "whole": base,
            "part": base[2:4],
        }.items():
            self.register_buffer(name, value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.whole += 1
        self.waves *= 1j
        self.flags.logical_not_()
        self.expanded[:1, :1].add_(1)
        return self.layer(x) * self.part.sum()


class Tied(nn.Module):
    def __init__(self, is_tied: bool) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
        if is_tied:
            self.two.weight = self.one.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(self.one(x))


class Scaled(nn.Parameter):
    pass


class ByHand(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = Scaled(torch.ones(3, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


class Extra(nn.Module):
    """Its extra state has no size before the first step, as in TransformerEngine."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scales = nn.Linear(3, 2), []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.scales.append(float(x.abs().max()))
        return self.layer(x) * sum(self.scales)

    def get_extra_state(self) -> torch.Tensor:
        return torch.tensor(self.scales, dtype=torch.float64)

    def set_extra_state(self, content: torch.Tensor) -> None:
        self.scales = content.tolist()


class Growing(nn.Module):
    """A buffer that gets longer, and a loading rule that allows it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.register_buffer("seen", torch.zeros(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = torch.cat([self.seen, x.detach().mean().view(1)])
        return self.layer(x) * self.seen.sum()

    def _load_from_state_dict(self, content: Any, prefix: str, *rest: Any) -> None:
        self.seen = torch.zeros_like(content[f"{prefix}seen"])
        super()._load_from_state_dict(content, prefix, *rest)


class Renamed(nn.Module):
    """After the resume its layer has another name, and a hook that knows the earlier one."""

    def __init__(self, is_resumed: bool) -> None:
        super().__init__()
        self.name = "projection" if is_resumed else "fc"
        self.add_module(self.name, nn.Linear(3, 2))
        self.register_load_state_dict_pre_hook(self.rename)

    @staticmethod
    def rename(module: Any, content: Any, prefix: str, *_: Any) -> None:
        for key in [k for k in content if k.startswith(f"{prefix}fc.")]:
            content[key.replace("fc.", f"{module.name}.", 1)] = content.pop(key)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return getattr(self, self.name)(x)


def pruned() -> nn.Module:
    model = net()
    prune.l1_unstructured(model[0], "weight", 0.5)
    return model


def observed() -> nn.Module:
    import torch.ao.quantization as quantization

    model = nn.Sequential(nn.Linear(3, 4)).train()
    model.qconfig = quantization.get_default_qat_qconfig("x86")
    return quantization.prepare_qat(model)


def normed(wrap: Callable[[nn.Module], nn.Module]) -> nn.Module:
    return nn.Sequential(wrap(nn.Linear(3, 4)), nn.Linear(4, 2))


state("tied weights")(with_model(lambda _: Tied(True)))
state("tied weights, resumed untied")(with_model(lambda is_resumed: Tied(not is_resumed)))
state("untied weights, resumed tied")(with_model(lambda is_resumed: Tied(is_resumed)))
state("a class whose only child is called `module`")(with_model(lambda _: EveryTimeStep()))
state("buffers: expanded, empty, bool, complex, float8, sharing memory")(
    with_model(lambda _: Buffers())
)
state("a subclass of `nn.Parameter`")(with_model(lambda _: ByHand()))
state("lazy layers")(with_model(lambda _: nn.Sequential(nn.LazyLinear(4), nn.LazyLinear(2))))
state("extra state of a size that changes")(with_model(lambda _: Extra()))
state("a buffer that grows, with its own loading rule")(with_model(lambda _: Growing()))
state("a hook that renames keys")(with_model(Renamed))
state("observers of quantization-aware training")(with_model(lambda _: observed()))
state("`weight_norm` as a parametrization")(
    with_model(lambda _: normed(nn.utils.parametrizations.weight_norm))
)
state("`spectral_norm` as a parametrization")(
    with_model(lambda _: normed(nn.utils.parametrizations.spectral_norm))
)
state("pruning masks")(with_model(lambda _: pruned()))
state("weights of complex numbers")(
    with_model(lambda _: nn.Sequential(nn.Linear(3, 2), Rotation()))
)


class Rotation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.turn = nn.Parameter(torch.ones(2, dtype=torch.complex64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.turn


@state("float32 weights, resumed in bfloat16")
def other_dtype(is_resumed: bool) -> Played:
    model = nn.Linear(3, 2).to(torch.bfloat16 if is_resumed else torch.float32)
    return Played({"model": model}, lambda step: None)


@state("a model on the meta device")
def without_memory(is_resumed: bool) -> Played:
    with torch.device("meta" if is_resumed else "cpu"):
        model = nn.Linear(3, 2)
    return Played({"model": model}, lambda step: None)


# --- plain data ---


def shift(value: Any, step: int) -> None:
    value += step


def draw(value: Any, step: int) -> None:
    value.random()


def extend(value: Any, step: int) -> None:
    value.append(step)


state("a `torch.Generator`")(
    with_plain(lambda: torch.Generator().manual_seed(3), lambda g, _: torch.rand(2, generator=g))
)
state("generators of `random` and NumPy")(
    with_plain(
        lambda: [random.Random(1), np.random.default_rng(1), np.random.RandomState(1)],
        lambda value, step: [draw(generator, step) for generator in value],
    )
)
state("NumPy arrays, also strided ones")(
    with_plain(lambda: np.zeros((4, 3), np.float16)[:, 1], shift)
)
state("masked arrays")(with_plain(lambda: np.ma.array([1.0, 2.0], mask=[0, 1]), shift))
state("a strided view of a tensor")(with_plain(lambda: torch.zeros(3, 3)[:, 1], shift))
state("`deque`")(with_plain(lambda: collections.deque([9], maxlen=3), extend))
state("a list of named tuples")(
    with_plain(list, lambda value, step: value.append(Point(step, [step])))
)
state("a member of an `Enum`, and as a key")(
    with_plain(
        lambda: {Phase.COLD: Phase.WARM}, lambda value, step: value.update({Phase.WARM: step})
    )
)
state("complex numbers, sets, bytearrays, tuples as keys")(
    with_plain(
        lambda: {"c": 1j, "s": {1}, "b": bytearray(b"a"), (1, "k"): frozenset({2})},
        lambda value, step: (value["s"].add(step), value["b"].append(step)),
    )
)
state("`OrderedDict`, `defaultdict`, `Counter`")(
    with_plain(
        lambda: (collections.OrderedDict(), collections.defaultdict(list), collections.Counter()),
        lambda value, step: [
            value[0].update({step: 1}),
            value[1][step].append(step),
            value[2].update("ab"),
        ],
    )
)
state("a sparse tensor")(with_plain(lambda: torch.eye(3).to_sparse(), lambda value, step: None))
state("a quantized tensor")(
    with_plain(
        lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        lambda value, step: None,
    )
)
state("a nested tensor")(
    with_plain(
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        lambda value, step: None,
    )
)
state("`np.matrix`")(with_plain(lambda: np.ones((2, 2)).view(np.matrix), lambda value, step: None))
state("a function")(with_plain(lambda: len, lambda value, step: None))


# --- playing ---


def play(part: str, names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Play one part of each row in this process; runs are in the working folder.

    Returns:
        By row: `bytes`, the digest of the state at the end; `exact`, the verdict; or `refused`.
    """
    warnings.filterwarnings("ignore")
    found = {}
    for name in names:
        number = [*STATES].index(name)
        torch.manual_seed(number)
        random.seed(number)
        np.random.seed(number)
        played = STATES[name](part == "rest")
        try:
            found[name] = _play(part, number, played)
        except (TypeError, ValueError) as error:
            found[name] = {"refused": f"{type(error).__name__}: {error}"}
    return found


def _play(part: str, number: int, played: Played) -> dict[str, str]:
    if part == "whole":
        for step in range(STEPS):
            played.advance(step)
        return {"bytes": digest(played.state)}
    name, resume = f"state-{number}", "never" if part == "first" else "must"
    with mt.start_run(experiment="states", run_name=name, resume=resume, backend="local") as run:
        checkpoints = run.checkpoints()
        if part == "first":
            for step in range(SAVED + 1):
                played.advance(step)
            checkpoints.save(SAVED, played.state)
            run.finish("KILLED")
            return {}
        for step in range(checkpoints.restore(played.state), STEPS):
            played.advance(step)
        if checkpoints.report is None:
            return {"refused": "there is no checkpoint"}
        verdict = checkpoints.report.verdict.removeprefix("exact: ")
    return {"bytes": digest(played.state), "exact": verdict}


def digest(content: Any) -> str:
    """The sha256 of all bytes and names of a state; it knows nothing of how checkpoints do it."""
    found = hashlib.sha256()
    for piece in _pieces(content):
        found.update(piece)
    return found.hexdigest()


def _pieces(value: Any) -> Iterable[bytes]:
    if hasattr(value, "state_dict"):
        # Wrappers and new names make no difference.
        content = value.state_dict()
        is_of_names = isinstance(value, nn.Module | Average)
        yield from _pieces(_leaves(content) if is_of_names else content)
        return
    yield type(value).__name__.encode()
    if isinstance(value, torch.Tensor) and (value.is_sparse or value.is_quantized):
        yield repr(value).encode()
    elif isinstance(value, torch.Tensor) and value.is_nested:
        yield from _pieces(value.unbind())
    elif isinstance(value, torch.Tensor):
        yield f"{value.dtype}{[*value.shape]}".encode()
        flat = value.detach().resolve_conj().contiguous().view(-1)
        yield (flat.view(torch.uint8) if flat.numel() else flat).numpy().tobytes()
    elif isinstance(value, np.ma.MaskedArray):
        yield from _pieces([value.filled(), np.ma.getmaskarray(value)])
    elif isinstance(value, np.ndarray):
        yield f"{value.dtype}{value.shape}".encode() + value.tobytes()
    elif isinstance(value, torch.Generator):
        yield from _pieces(value.get_state())
    elif isinstance(value, random.Random):
        yield repr(value.getstate()).encode()
    elif isinstance(value, np.random.RandomState):
        yield from _pieces(value.get_state(legacy=False))
    elif isinstance(value, np.random.Generator):
        yield from _pieces(value.bit_generator.state)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield repr(key).encode()
            yield from _pieces(item)
    elif isinstance(value, list | tuple | collections.deque):
        for item in value:
            yield from _pieces(item)
    elif isinstance(value, set | frozenset):
        yield repr(sorted(value)).encode()
    else:
        yield repr(value).encode()


def _leaves(content: Any) -> list[Any]:
    if not isinstance(content, dict):
        return [content]
    return [leaf for item in content.values() for leaf in _leaves(item)]


def outcome(whole: dict[str, str], first: dict[str, str], rest: dict[str, str]) -> str:
    """The cell of a row: exact, or why not."""
    for part, words in ((first, "refused at the save"), (rest, "refused at the resume")):
        if "refused" in part:
            return f"{words}: {_short(part['refused'])}"
    if whole["bytes"] != rest["bytes"]:
        is_said = rest["exact"] != "yes"
        return f"differs, and says so: exact: {rest['exact']}" if is_said else "DIFFERS"
    return (
        "exact"
        if rest["exact"] == "yes"
        else f"the same bytes; the report says exact: {rest['exact']}"
    )


def _short(words: str) -> str:
    before = "step-000000002 does not match the state; nothing was loaded: "
    return words.replace(before, "").replace("|", "\\|")


def page(outcomes: dict[str, str]) -> str:
    lines = [f"| {words} | {result} |" for words, result in outcomes.items()]
    exact = sum(result == "exact" for result in outcomes.values())
    return "\n".join([HEAD.format(count=len(outcomes), exact=exact), *lines, ""])


HEAD = """# What a checkpoint can hold

Each row is trained for 6 steps by one process. Another process trains 3 and saves, a third one
restores and trains the rest: *exact* means that both ends have the same bytes, weights, moments,
generators and all, and that the report says `exact: yes`. What is refused is refused by these
words, and nothing is changed before. `python docs/make_states.py` writes this page; `make tables`
plays every row. {exact} of {count} are exact.

| state | a resumed process |
|---|---|"""


def outcomes_of(parts: dict[str, dict[str, dict[str, str]]]) -> dict[str, str]:
    """The cell of every row that was played."""
    names = parts["whole"]
    return {name: outcome(*(parts[part][name] for part in PARTS)) for name in names}


def main() -> None:
    if len(sys.argv) > 1:
        part, *names = sys.argv[1:]
        print(json.dumps(play(part, names or STATES)))
        return
    played = {}
    with tempfile.TemporaryDirectory() as folder:
        for part in PARTS:
            done = subprocess.run(
                [sys.executable, os.path.abspath(__file__), part],
                cwd=folder,
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
            played[part] = json.loads(done.stdout.splitlines()[-1])
    PAGE.write_text(page(outcomes_of(played)), encoding="utf-8")


if __name__ == "__main__":
    main()
