"""What a resume in the middle of the data keeps: `resumable` beside other ways, as one table.

Each way trains in processes of its own: one that is not interrupted, and one that ends inside an
epoch, with what is needed saved as its documentation says, and is continued by a fresh process. All
of them save the generators of Python, NumPy and torch, too, and put them back before the loop, as
every trainer does. Compared per batch: which samples, their augmentation, and a number that the
loop draws from torch (dropout). A way that is not installed is listed as not run here.
Run: python benchmarks/resuming.py   (a minute; pip install torchdata accelerate for all rows)
"""

from __future__ import annotations

import itertools
import multiprocessing
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

import mlflow_track as mt

SAMPLES, BATCH_SIZE, PER_EPOCH, STEPS = 40, 4, 10, 30
# In the middle of the first epoch, in that of the second, and at the last batch of the first.
MIDDLE, LATER, END = 4, 14, 10
FORK = multiprocessing.get_context("fork")


class Data(Dataset):
    """Sample i, augmented; each read is noted."""

    def __init__(self, reads: Path) -> None:
        self.reads = reads

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> torch.Tensor:
        with open(self.reads, "a") as file:
            file.write(f"{index}\n")
        return torch.tensor([float(index), random.random(), np.random.rand(), torch.rand(())])


def loader(reads: Path, workers: int) -> DataLoader:
    return DataLoader(Data(reads), batch_size=BATCH_SIZE, shuffle=True, num_workers=workers)


class Skipping:
    """The bare DataLoader: made again, and the batches before dropped."""

    def __init__(self, reads: Path, workers: int) -> None:
        self.data: Any = loader(reads, workers)

    def save(self, folder: Path) -> None:
        torch.save(None, folder / "data.pt")

    def load(self, folder: Path) -> None:
        pass

    def batches(self, done: int) -> Iterator[torch.Tensor]:
        yield from islice(self.data, done % PER_EPOCH, None)
        while True:
            yield from self.data


class Resumable(Skipping):
    """`mt.resumable`, as an entry of the state."""

    def __init__(self, reads: Path, workers: int) -> None:
        self.data = mt.resumable(loader(reads, workers))

    def save(self, folder: Path) -> None:
        torch.save(self.data.state_dict(), folder / "data.pt")

    def load(self, folder: Path) -> None:
        self.data.load_state_dict(torch.load(folder / "data.pt"))

    def batches(self, done: int) -> Iterator[torch.Tensor]:
        while True:
            yield from self.data


class Stateful(Resumable):
    """`StatefulDataLoader` of torchdata, as its documentation has it."""

    def __init__(self, reads: Path, workers: int) -> None:
        from torchdata.stateful_dataloader import StatefulDataLoader

        named: dict[str, Any] = {"shuffle": True, "num_workers": workers}
        self.data = StatefulDataLoader(Data(reads), batch_size=BATCH_SIZE, **named)

    def load(self, folder: Path) -> None:
        self.data.load_state_dict(torch.load(folder / "data.pt", weights_only=False))


class Accelerated(Skipping):
    """`save_state`, `load_state` and `skip_first_batches` of accelerate, as in its examples."""

    is_stateful = False

    def __init__(self, reads: Path, workers: int) -> None:
        from accelerate import Accelerator
        from accelerate.utils import DataLoaderConfiguration

        settings = DataLoaderConfiguration(
            use_seedable_sampler=True, use_stateful_dataloader=self.is_stateful
        )
        self.accelerator = Accelerator(cpu=True, dataloader_config=settings)
        self.data = self.accelerator.prepare(loader(reads, workers))

    def save(self, folder: Path) -> None:
        self.accelerator.save_state(str(folder / "accelerate"))

    def load(self, folder: Path) -> None:
        self.accelerator.load_state(str(folder / "accelerate"))

    def batches(self, done: int) -> Iterator[torch.Tensor]:
        first, skipped = divmod(done, PER_EPOCH)
        for epoch in itertools.count(first):
            data = self.data
            if epoch == first and skipped and not self.is_stateful:
                data = self.accelerator.skip_first_batches(data, skipped)
            # Its Trainer does; its examples do not.
            data.set_epoch(epoch)
            yield from data


class AcceleratedStateful(Accelerated):
    """Accelerate over torchdata's loader, which skips by itself."""

    is_stateful = True


WAYS: dict[str, tuple[str, Callable[[Path, int], Skipping]]] = {
    "DataLoader, skipping in the loop": ("torch", Skipping),
    "`mt.resumable`": ("torch", Resumable),
    "`StatefulDataLoader`": ("torchdata", Stateful),
    "accelerate, `skip_first_batches`": ("accelerate", Accelerated),
    "accelerate, `use_stateful_dataloader`": ("accelerate", AcceleratedStateful),
}
NOT_TRIED = {"Lightning": "lightning", "Mosaic `StreamingDataLoader`": "mosaicml-streaming"}


def train(name: str, folder: Path, reads: Path, workers: int, done: int, last: int) -> list[Any]:
    """Batches `done` to `last`; saves there. Runs in a process that has drawn nothing yet."""
    torch.set_num_threads(1)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    way = WAYS[name][1](reads, workers)
    if done:
        way.load(folder)
        saved = torch.load(folder / "generators.pt", weights_only=False)
        random.setstate(saved[0])
        np.random.set_state(saved[1])
        torch.set_rng_state(saved[2])
    seen = []
    for batch in islice(way.batches(done), last - done):
        seen.append((batch[:, 0].tolist(), batch[:, 1:].tolist(), float(torch.rand(()))))
        if done + len(seen) == last and last < STEPS:
            way.save(folder)
            saved = (random.getstate(), np.random.get_state(), torch.get_rng_state())
            torch.save(saved, folder / "generators.pt")
    return seen


def in_a_process(*arguments: Any) -> list[Any]:
    ours, theirs = FORK.Pipe(duplex=False)

    def work() -> None:
        try:
            theirs.send(train(*arguments))
        except Exception as error:
            theirs.send(error)

    process = FORK.Process(target=work)
    process.start()
    theirs.close()
    try:
        answer = ours.recv()
    except EOFError:
        answer = RuntimeError("the process ended")
    process.join()
    if isinstance(answer, Exception):
        raise answer
    return answer


def resumed(name: str, cut: int, workers: int, after: int) -> str:
    """What is the same after a resume at batch `cut`, in words."""
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        whole = in_a_process(name, folder, folder / "whole", workers, 0, STEPS)
        in_a_process(name, folder, folder / "first", workers, 0, cut)
        try:
            rest = in_a_process(name, folder, folder / "rest", after, cut, STEPS)
        except Exception as error:
            return f"refused: {type(error).__name__}"
        read = len((folder / "rest").read_text().splitlines())
    names = ("order", "augmentation", "dropout")
    other = [
        part
        for index, part in enumerate(names)
        if [x[index] for x in rest] != [x[index] for x in whole[cut:]]
    ]
    most = (STEPS - cut + 2 * after) * BATCH_SIZE
    words = [*(f"other {part}" for part in other)]
    if "order" in other:
        # Other samples are augmented otherwise.
        words = [word for word in words if word != "other augmentation"]
    if read > most:
        words.append(f"{read - most} needless reads")
    return ", ".join(words) or "same"


def main() -> None:
    cases = {
        "first epoch": (MIDDLE, 0, 0),
        "second epoch": (LATER, 0, 0),
        "last batch of an epoch": (END, 0, 0),
        "2 workers": (LATER, 2, 2),
        "2 workers, then 1": (LATER, 2, 1),
    }
    print(f"| way | version | {' | '.join(cases)} |\n|---|---|{'---|' * len(cases)}")
    for name, (package, _) in WAYS.items():
        try:
            number = version(package)
        except PackageNotFoundError:
            print(f"| {name} | not run here |{' |' * len(cases)}")
            continue
        cells = [resumed(name, *case) for case in cases.values()]
        print(f"| {name} | {number} | {' | '.join(cells)} |", flush=True)
    for name in NOT_TRIED:
        print(f"| {name} | not run here |{' |' * len(cases)}")


if __name__ == "__main__":
    sys.exit(main())
