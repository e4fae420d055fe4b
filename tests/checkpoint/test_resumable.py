"""`mt.resumable`: a resumed loader yields the rest of what it would have, and reads no more."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    get_worker_info,
)

import mlflow_track as mt
from mlflow_track.checkpoint.loader import resumable as loader_module
from tests import campaign


class Augmented(Dataset):
    """Each sample has random numbers of every generator; counts its reads where it is read."""

    def __init__(self, size: int) -> None:
        self.size, self.reads = size, 0
        self.generator = np.random.default_rng(0)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> torch.Tensor:
        self.reads += 1
        drawn = (random.random(), np.random.randn(), float(torch.rand(())), self.generator.random())
        return torch.tensor([index, *drawn], dtype=torch.float64)


class OwnShuffle(Sampler):
    """A sampler without a seed; `draw` returns an order."""

    def __init__(self, size: int, draw: Callable[[int], Any]) -> None:
        self.size, self.draw = size, draw

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        yield from map(int, self.draw(self.size))


class InPlace(Sampler):
    """Shuffles its list once more in each epoch."""

    def __init__(self, size: int) -> None:
        self.order = list(range(size))

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[int]:
        random.shuffle(self.order)
        return iter(self.order)


class Counting(Sampler):
    """Counts its epochs, and has the order of each from that number."""

    def __init__(self, size: int) -> None:
        self.size, self.epoch = size, 0

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        yield from np.random.default_rng(self.epoch).permutation(self.size).tolist()
        self.epoch += 1


class Batches(Sampler):
    """Batches of random sizes, as many as it takes."""

    def __init__(self, size: int) -> None:
        self.size, self.generator = size, np.random.default_rng(7)

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(self.size).tolist()
        while order:
            count = int(self.generator.integers(1, 4))
            yield order[:count]
            del order[:count]


class MyBatches(BatchSampler):
    pass


def permutation_of_python(size: int) -> list[int]:
    return random.sample(range(size), size)


# What a DataLoader of `size` samples in batches of `batch` gets besides the dataset.
KINDS: dict[str, Callable[[int, int], dict[str, Any]]] = {
    "shuffle": lambda size, batch: {"shuffle": True, "batch_size": batch},
    "drop_last": lambda size, batch: {"shuffle": True, "batch_size": batch, "drop_last": True},
    "sequential": lambda size, batch: {"batch_size": batch},
    "generator": lambda size, batch: {
        "shuffle": True,
        "batch_size": batch,
        "generator": torch.Generator().manual_seed(5),
    },
    "single": lambda size, batch: {"shuffle": True, "batch_size": None},
    "list": lambda size, batch: {"sampler": list(range(size))[::-1], "batch_size": batch},
    "replacement": lambda size, batch: {
        "sampler": RandomSampler(range(size), replacement=True, num_samples=2 * size + 33),
        "batch_size": batch,
    },
    "subset": lambda size, batch: {
        "sampler": SubsetRandomSampler(range(0, size, 2)),
        "batch_size": batch,
    },
    "weighted": lambda size, batch: {
        "sampler": WeightedRandomSampler([1.0 + i for i in range(size)], size),
        "batch_size": batch,
    },
    "weighted_generator": lambda size, batch: {
        "sampler": WeightedRandomSampler(
            [1.0] * size, size, replacement=False, generator=torch.Generator()
        ),
        "batch_size": batch,
    },
    "batch_sampler": lambda size, batch: {
        "batch_sampler": BatchSampler(RandomSampler(range(size)), batch, False)
    },
    "batch_subclass": lambda size, batch: {
        "batch_sampler": MyBatches(RandomSampler(range(size)), batch, True)
    },
    "own_torch": lambda size, batch: {
        "sampler": OwnShuffle(size, torch.randperm),
        "batch_size": batch,
    },
    "own_numpy": lambda size, batch: {
        "sampler": OwnShuffle(size, np.random.permutation),
        "batch_size": batch,
    },
    "own_python": lambda size, batch: {
        "sampler": OwnShuffle(size, permutation_of_python),
        "batch_size": batch,
    },
    "in_place": lambda size, batch: {"sampler": InPlace(size), "batch_size": batch},
    "counting": lambda size, batch: {"sampler": Counting(size), "batch_size": batch},
    "batches": lambda size, batch: {"batch_sampler": Batches(size)},
    "distributed": lambda size, batch: {
        "sampler": DistributedSampler(range(size), num_replicas=2, rank=1),  # type: ignore[arg-type]
        "batch_size": batch,
    },
}


def made(kind: str, size: int, batch: int, **named: Any) -> Any:
    torch.manual_seed(3)
    return mt.resumable(DataLoader(Augmented(size), **KINDS[kind](size, batch), **named))


def take(data: Any, count: int) -> tuple[list[torch.Tensor], dict[str, Any]]:
    """Batches over as many epochs as it takes, and the state inside the loop at the last one."""
    taken: list[torch.Tensor] = []
    while True:
        for batch in data:
            taken.append(batch)
            if len(taken) == count:
                return taken, data.state_dict()


def same(some: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return len(some) == len(others) and all(map(torch.equal, some, others))


def generators() -> list[Any]:
    numpy = np.random.get_state()
    assert isinstance(numpy, tuple)
    return [
        random.getstate(),
        [value.tolist() if isinstance(value, np.ndarray) else value for value in numpy],
        torch.get_rng_state().tolist(),
    ]


# --- what it promises ---


@settings(max_examples=60)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    size=st.integers(2, 24),
    batch=st.integers(1, 6),
    count=st.integers(3, 30),
    data=st.data(),
)
def test_a_resumed_loader_yields_the_rest_and_reads_no_more(
    kind: str, size: int, batch: int, count: int, data: st.DataObject
) -> None:
    batch = min(batch, size)
    whole, _ = take(made(kind, size, batch), count)
    cut = data.draw(st.integers(1, count - 1))
    first, state = take(made(kind, size, batch), cut)
    np.random.randn(), random.random()  # the main loop draws as well, and NumPy keeps a number
    resumed = made(kind, size, batch)
    resumed.load_state_dict(state)
    before = generators()
    rest, _ = take(resumed, count - cut)
    assert generators() == before
    assert same(first + rest, whole)
    assert resumed.dataset.reads == sum(len(x) if x.dim() > 1 else 1 for x in rest)
    # The same object as well: what its sampler remembers is brought back.
    resumed.load_state_dict(state)
    assert same(take(resumed, count - cut)[0], rest)


@pytest.mark.parametrize("kind", ["in_place", "counting", "own_torch"])
@pytest.mark.parametrize("most", [2, 4])
def test_a_sampler_that_remembers_is_brought_to_its_epoch(kind: str, most: int) -> None:
    """Also where the loop leaves each epoch, of four batches, after two."""

    def train(data: Any, count: int) -> tuple[list[torch.Tensor], dict[str, Any]]:
        taken: list[torch.Tensor] = []
        while True:
            for batch in data:
                taken.append(batch)
                state = data.state_dict()
                if len(taken) == count:
                    return taken, state
                if state["batch"] == most:
                    break

    whole, _ = train(made(kind, 8, 2), 12)
    assert not torch.equal(whole[0][:, 0], whole[most][:, 0])
    _, state = train(made(kind, 8, 2), 9)
    resumed = made(kind, 8, 2)
    for _ in range(2):  # The second time the sampler is ahead.
        resumed.load_state_dict(state)
        assert same(train(resumed, 3)[0], whole[9:])


def test_an_order_differs_from_epoch_to_epoch_and_from_seed_to_seed() -> None:
    data = made("shuffle", 24, 4)
    epochs = [torch.cat(list(data))[:, 0].tolist() for _ in range(3)]
    assert len({*map(tuple, epochs)}) == 3
    assert all(sorted(epoch) == list(range(24)) for epoch in epochs)
    other = mt.resumable(DataLoader(Augmented(24), batch_size=4, shuffle=True), seed=4)
    assert torch.cat(list(other))[:, 0].tolist() != epochs[0]
    again = mt.resumable(DataLoader(Augmented(24), batch_size=4, shuffle=True), seed=3)
    assert torch.cat(list(again))[:, 0].tolist() == epochs[0]


def test_the_seed_is_that_of_the_sampler_the_generator_or_the_process() -> None:
    torch.manual_seed(11)
    data, generator = Augmented(8), torch.Generator().manual_seed(12)
    shared = DistributedSampler(data, num_replicas=2, rank=0, seed=13)
    seeds = [
        mt.resumable(DataLoader(data, **named)).state_dict()["seed"]
        for named in ({}, {"generator": generator}, {"generator": generator, "sampler": shared})
    ]
    assert seeds == [11, 12, 13]


def test_a_resume_uses_the_saved_seed_whatever_this_process_has() -> None:
    whole, _ = take(made("shuffle", 12, 4), 6)
    _, state = take(made("shuffle", 12, 4), 2)
    other = mt.resumable(DataLoader(Augmented(12), batch_size=4, shuffle=True), seed=99)
    other.load_state_dict(state)
    assert same(take(other, 4)[0], whole[2:])


def test_batches_of_one_epoch_do_not_repeat_what_they_draw() -> None:
    data = made("shuffle", 8, 2)
    drawn = torch.cat([*data, *data])[:, 1:]
    assert len({*map(tuple, drawn.tolist())}) == 16


# --- iterations ---


def test_a_loop_that_is_left_early_ends_its_epoch() -> None:
    data = made("sequential", 8, 2)
    for _ in data:
        break
    assert (data.epoch, data.state_dict()["batch"]) == (1, 0)
    resumed = made("sequential", 8, 2)
    resumed.load_state_dict(data.state_dict())
    assert same(list(data), list(resumed)) and data.epoch == 2


def test_a_state_of_the_last_batch_continues_with_the_next_epoch() -> None:
    for kind in ("shuffle", "own_torch"):
        whole, _ = take(made(kind, 8, 2), 12)
        _, state = take(made(kind, 8, 2), 4)
        resumed = made(kind, 8, 2)
        resumed.load_state_dict(state)
        assert same(list(resumed), whole[4:8])


def test_epochs_gives_the_end_of_an_epoch_its_turn() -> None:
    def train(data: Any, cut: int | None = None) -> Iterator[Any]:
        done = 0
        for epoch in data.epochs(3):
            for batch in data:
                yield batch.tolist()
                if (done := done + 1) == cut:
                    yield data.state_dict()
                    return
            yield f"end of {epoch}"

    for kind in ("shuffle", "own_torch"):
        whole = list(train(made(kind, 8, 2)))
        assert whole[4] == "end of 0" and whole[-1] == "end of 2"
        for cut in (1, 4, 5, 12):
            *first, state = train(made(kind, 8, 2), cut)
            resumed = made(kind, 8, 2)
            resumed.load_state_dict(state)
            assert first + list(train(resumed)) == whole, (kind, cut)


def test_a_loop_continues_where_it_is_taken_back_to() -> None:
    whole, state = take(made("shuffle", 12, 2), 2)
    whole = list(made("shuffle", 12, 2))
    data, seen = made("shuffle", 12, 2), []
    for batch in data:
        seen.append(batch)
        if len(seen) == 5:
            data.load_state_dict(state)
    assert same(seen, whole[:5] + whole[2:])
    # Also where a new iterator is begun, whether the old one is dropped before or not.
    for is_dropped in (True, False):
        iterator = iter(data)
        next(iterator)
        data.load_state_dict(state)
        if is_dropped:
            del iterator
        assert same(list(data), whole[2:])


def test_an_iteration_inside_another_of_the_same_loader_ends_the_outer() -> None:
    data = made("sequential", 8, 2)
    outer = iter(data)
    next(outer)
    assert len(list(data)) == 4
    with pytest.raises(RuntimeError, match="another iteration of this resumable loader has begun"):
        next(outer)
    assert data.epoch == 2


def test_a_batch_that_cannot_be_read_is_not_read_again() -> None:
    class Faulty(Augmented):
        def __getitem__(self, index: int) -> torch.Tensor:
            if index == 2:
                raise OSError("unreadable")
            return super().__getitem__(index)

    data = mt.resumable(DataLoader(Faulty(6), batch_size=2), seed=0)
    before, iterator = generators(), iter(data)
    next(iterator)
    with pytest.raises(OSError, match="unreadable"):
        next(iterator)
    assert generators() == before and data.state_dict()["batch"] == 2
    assert next(iterator)[:, 0].tolist() == [4, 5]


def test_a_resumable_loader_has_the_length_and_attributes_of_its_loader() -> None:
    loader = DataLoader(Augmented(10), batch_size=4, shuffle=True)
    data = mt.resumable(loader)
    assert len(data) == len(loader) == 3
    assert (data.dataset, data.sampler, data.batch_size) == (
        loader.dataset,
        loader.sampler,
        loader.batch_size,
    )
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = data.nothing_like_it


def test_a_resumable_loader_knows_its_own_iterators(monkeypatch: pytest.MonkeyPatch) -> None:
    inner: list[Any] = []
    original = DataLoader.__iter__
    monkeypatch.setattr(
        DataLoader, "__iter__", lambda self: inner.append(original(self)) or inner[-1]
    )
    loader = DataLoader(Augmented(4))
    data = mt.resumable(loader)
    for _ in data:
        assert data.holds_loader_iterator(inner[-1])
        assert not data.holds_loader_iterator(iter(loader))
        assert not data.holds_loader_iterator(None)
        break
    assert not data.holds_loader_iterator(inner[0])


def test_wait_seconds_counts_what_the_loop_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(loader_module.time, "perf_counter", lambda: now[0])

    class Slow(Augmented):
        def __getitem__(self, index: int) -> torch.Tensor:
            now[0] += 1
            return super().__getitem__(index)

    data = mt.resumable(DataLoader(Slow(6), batch_size=2))
    for _ in data:
        now[0] += 100
    assert data.wait_seconds == 6


# --- workers ---


def set_up(worker: int) -> None:
    """As users do: what each worker makes for itself."""
    info = get_worker_info()
    if info is not None and isinstance(info.dataset, Augmented):
        info.dataset.opened = random.random()  # type: ignore[attr-defined]


class Opened(Augmented):
    opened = -1.0

    def __getitem__(self, index: int) -> float:  # type: ignore[override]
        return self.opened


def test_workers_change_nothing_in_the_batches_nor_in_the_generators() -> None:
    whole, _ = take(made("shuffle", 20, 4), 13)
    before = generators()
    data = made("shuffle", 20, 4, num_workers=2, persistent_workers=True, prefetch_factor=3)
    before = generators()
    first, state = take(data, 8)
    assert generators() == before
    resumed = made("shuffle", 20, 4, num_workers=1)
    resumed.load_state_dict(state)
    assert same(first + take(resumed, 5)[0], whole)
    # Workers that stay are taken back.
    data.load_state_dict(state)
    assert same(take(data, 5)[0], whole[8:])


def test_a_worker_init_fn_reaches_the_dataset_of_its_worker() -> None:
    loader = DataLoader(Opened(2), batch_size=2, num_workers=1, worker_init_fn=set_up)
    data, resumed = (mt.resumable(loader, seed=0) for _ in range(2))
    ((first, _),) = data
    resumed.load_state_dict(data.state_dict())
    ((second, _),), ((again, _),) = data, resumed
    assert 0 <= first != second == again


def test_a_dataset_that_reads_many_at_once_is_asked_so() -> None:
    class Many(Augmented):
        def __getitems__(self, indices: list[int]) -> list[int]:
            return [-index for index in indices]

    data = mt.resumable(DataLoader(Many(4), batch_size=2))
    assert [x.tolist() for x in data] == [[0, -1], [-2, -3]]


# --- several ranks ---


def shared(size: int, ranks: int, batch: int, **named: Any) -> list[Any]:
    return [
        mt.resumable(
            DataLoader(
                Augmented(size),
                sampler=DistributedSampler(
                    range(size),  # type: ignore[arg-type]
                    num_replicas=ranks,
                    rank=rank,
                    seed=5,
                    **named,
                ),
                batch_size=batch,
            )
        )
        for rank in range(ranks)
    ]


def dealt(loaders: list[Any], steps: int) -> tuple[list[int], dict[str, Any]]:
    """The samples in the global order: what the ranks read at a step lies interleaved."""
    order: list[int] = []
    iterators = [iter(data) for data in loaders]
    for _ in range(steps):
        batches = [next(iterator, None) for iterator in iterators]
        if batches[0] is None:
            break
        columns = [batch[:, 0].long().tolist() for batch in batches if batch is not None]
        order += chain.from_iterable(zip(*columns, strict=True))
    return order, loaders[0].state_dict()


@settings(max_examples=40)
@given(
    size=st.integers(1, 40),
    before=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    middle=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    after=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    steps=st.tuples(st.integers(1, 5), st.integers(1, 5)),
)
@example(size=24, before=(2, 4), middle=(4, 2), after=(1, 8), steps=(1, 1))
def test_another_number_of_ranks_continues_in_the_same_global_order(
    size: int,
    before: tuple[int, int],
    middle: tuple[int, int],
    after: tuple[int, int],
    steps: tuple[int, int],
) -> None:
    (order, _) = dealt(shared(size, 1, 1), size)
    read: list[int] = []
    state: dict[str, Any] | None = None
    for (ranks, batch), count in zip((before, middle, after), (*steps, 99), strict=True):
        if ranks * batch == 0 or len(read) >= size:
            return  # The epoch is over.
        loaders = shared(size, ranks, batch)
        for data in loaders:
            if state is not None and ranks != state["ranks"]:
                data.load_state_dict(state)
            elif state is not None:
                return  # As many ranks: another batch size is refused.
        samples, state = dealt(loaders, count)
        read += samples
        assert read[:size] == order[: len(read)]
    assert len(read) >= size


def test_ranks_continue_in_the_order_of_the_saved_seed() -> None:
    whole, state = dealt(shared(16, 2, 2), 1)
    whole, _ = dealt(shared(16, 2, 2), 9)
    resumed = shared(16, 2, 2)
    for data in resumed:
        data.sampler.seed = 6
        data.load_state_dict(state)
    assert dealt(resumed, 9)[0] == whole[4:]


def test_ranks_of_one_seed_draw_their_own_numbers() -> None:
    one, other = shared(8, 2, 4)
    assert not {*next(iter(one))[:, 1].tolist()} & {*next(iter(other))[:, 1].tolist()}


# --- in a checkpoint ---


def test_restore_refuses_another_loader_before_anything_is_loaded() -> None:
    def state(size: int) -> dict[str, Any]:
        return {"weight": torch.zeros(2), "loader": made("shuffle", size, 4)}

    with mt.start_run(directory="runs", backend="local", run_name="a") as run:
        checkpoints, saved = run.checkpoints(save=mt.EverySteps(1)), state(12)
        checkpoints.restore(saved)
        saved["weight"] += 1
        next(iter(saved["loader"]))
        checkpoints.save(0, saved)
        checkpoints.wait()
        other = state(13)
        with pytest.raises(ValueError, match="nothing was loaded: 'loader': the data loader diff"):
            checkpoints.restore(other)
        assert other["weight"].sum() == 0
        resumed = state(12)
        checkpoints.restore(resumed)
        assert checkpoints.report is not None and checkpoints.report.is_exact
        assert resumed["loader"].state_dict()["epoch"] == 1  # Its iteration was dropped.


TRAIN = """
import os, signal, sys
import numpy as np, random, torch
from torch.utils.data import DataLoader, Dataset
import mlflow_track as mt

last, workers, name, reads = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]

class Data(Dataset):
    def __len__(self):
        return 40
    def __getitem__(self, index):
        with open(reads, "a") as file:
            file.write(f"{index}\\n")
        return torch.full((4,), index / 40) + random.random() + np.random.rand() + torch.rand(4)

torch.manual_seed(0)
np.random.seed(0)
layers = torch.nn.Linear(4, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1)
model = torch.nn.Sequential(*layers)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
data = mt.resumable(DataLoader(Data(), batch_size=4, shuffle=True, num_workers=workers))
schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
state = {"model": model, "optimizer": optimizer, "schedule": schedule, "data": data}
with mt.start_run(directory="runs", backend="local", run_name=name, resume="auto") as run:
    checkpoints = run.checkpoints(save=mt.EverySteps(1), keep=mt.Keep(last=1))
    step = checkpoints.restore(state)
    if step:
        assert checkpoints.report.is_exact, checkpoints.report
    for epoch in data.epochs(3):
        for x in data:
            loss = model(x).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            values = {"loss": loss, "lr": schedule.get_last_lr()[0], "drawn": np.random.rand()}
            run.log_metrics(values, step=step)
            checkpoints.step(step, state)
            if step == last:
                checkpoints.wait()
                os.kill(os.getpid(), signal.SIGKILL)
            step += 1
        schedule.step()
"""


def rows_of(name: str) -> list[list[str]]:
    (run,) = [r for r in mt.load_runs("runs") if r.name == name]
    lines = (run.path / "metrics.csv").read_text().splitlines()[1:]
    return [line.split(",") for line in lines]


def values_of(name: str) -> list[list[str]]:
    return [[step, *values] for step, _, *values in rows_of(name)]


def reads_of(file: str) -> int:
    return len(Path(file).read_text().splitlines()) if Path(file).exists() else 0


@pytest.mark.faults
@pytest.mark.timeout(3600)
def test_a_killed_run_with_workers_continues_as_if_it_had_not_been_killed(
    run_script: Callable[..., Any],
) -> None:
    """3 epochs of 10 batches of 4, with shuffle, dropout, augmentation and a schedule by epoch."""
    done = run_script(TRAIN, "-1", "2", "whole", "reads")
    assert done.returncode == 0, done.stderr
    whole = values_of("whole")
    assert len(whole) == 30 and reads_of("reads") == 120
    for seed in campaign.seeds(2):
        chosen = random.Random(seed)
        # Often at the end of an epoch, where saves are. Step 0 is not saved.
        last = chosen.choice([9, 19, 29, *range(1, 30)])
        before, after = chosen.choices([0, 1, 2], k=2)
        name, file = f"cut-{seed}", f"reads-{seed}"
        killed = run_script(TRAIN, str(last), str(before), name, "reads-before")
        words = (
            f"after step {last}, {before} and {after} workers: {campaign.again(seed, 'killed_run')}"
        )
        assert killed.returncode == -signal.SIGKILL, (words, killed.stderr)
        resumed = run_script(TRAIN, "-1", str(after), name, file)
        assert resumed.returncode == 0, (words, resumed.stderr)
        assert values_of(name) == whole, words
        assert reads_of(file) == 4 * (29 - last), words


# --- what it refuses ---


class Endless(IterableDataset):
    def __iter__(self) -> Iterator[int]:
        return iter(range(3))


class OwnIteration(DataLoader):
    def __iter__(self) -> Any:
        return super().__iter__()


@pytest.mark.parametrize(
    ("loader", "seed", "error", "words"),
    [
        ([1, 2], None, TypeError, r"loader must be a torch.utils.data.DataLoader, got \[1, 2\]"),
        (DataLoader(Endless()), None, ValueError, "map-style .*, got the IterableDataset Endless"),
        (DataLoader(Endless()), None, ValueError, "StatefulDataLoader of torchdata into state"),
        (OwnIteration([1]), None, TypeError, "a plain DataLoader, got a OwnIteration, which"),  # type: ignore[arg-type]
        (
            DataLoader([1], num_workers=1, in_order=False),  # type: ignore[arg-type]
            None,
            ValueError,
            "in_order of a resumable loader must be True, got False",
        ),
        (DataLoader([1]), -1, ValueError, "seed must be an integer of at least 0, got -1"),  # type: ignore[arg-type]
        (DataLoader([1]), "x", TypeError, "seed must be an integer, got 'x'"),  # type: ignore[arg-type]
    ],
)
def test_resumable_refuses_what_has_no_order_to_continue_in(
    loader: Any, seed: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        mt.resumable(loader, seed=seed)


@pytest.mark.parametrize(
    ("kind", "size", "batch", "words"),
    [
        ("shuffle", 13, 4, "the size of the dataset is 12 there, 13 here"),
        ("shuffle", 12, 3, "batch_size is 4 there, 3 here; the number of batches per epoch is 3"),
        ("sequential", 12, 4, "the sampler is 'RandomSampler' there, 'SequentialSampler' here"),
        ("distributed", 12, 4, "the number of ranks is 0 there, 2 here"),
    ],
)
def test_a_state_of_another_loader_is_refused_by_name(
    kind: str, size: int, batch: int, words: str
) -> None:
    _, state = take(made("shuffle", 12, 4), 2)
    data = made(kind, size, batch)
    before = data.state_dict()
    with pytest.raises(ValueError, match=f"{words}.*make it as it was, or start a new run"):
        data.load_state_dict(state)
    assert data.state_dict() == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch": -1}, "batch of a loader must be an integer of 0 or more, got -1"),
        ({"epoch": "1"}, "epoch of a loader must be an integer of 0 or more, got '1'"),
        ({"seed": None}, "seed of a loader must be an integer"),
    ],
)
def test_a_state_that_is_damaged_is_refused(change: dict[str, Any], words: str) -> None:
    data = made("shuffle", 12, 4)
    with pytest.raises(ValueError, match=words):
        data.load_state_dict({**data.state_dict(), **change})
    with pytest.raises(ValueError, match="the state of a resumable loader must be from one"):
        data.load_state_dict({"epoch": 1})


def test_ranks_with_seeds_of_their_own_are_refused_unless_a_sampler_tells_them_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, state = take(made("shuffle", 12, 4), 2)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    loader = DataLoader(Augmented(12), batch_size=4, shuffle=True)
    with pytest.raises(ValueError, match="of rank 0, and 4 on rank 1; use a DistributedSampler"):
        mt.resumable(loader, seed=4).load_state_dict(state)
    mt.resumable(loader, seed=3).load_state_dict(state)
