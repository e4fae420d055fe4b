"""What `resumable` adds to a DataLoader, per batch, in CPU time of this process and its workers.

The bare loader and the wrapped one take turns, an epoch each; medians with quartiles over ROUNDS.
CPU time, because the time on the clock is that of whatever else the machine does.
Run: python benchmarks/loader.py   (2 minutes)
"""

from __future__ import annotations

import os
import resource
import statistics
from collections.abc import Iterable

import torch
from torch.utils.data import DataLoader, Dataset

import mlflow_track as mt

ROUNDS = int(os.environ.get("ROUNDS", "15"))
BATCHES, BATCH_SIZE = 200, 64


class Rows(Dataset):
    """Rows of a tensor: nothing is cheaper to read."""

    data = torch.randn(BATCHES * BATCH_SIZE, 32)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.data[index]


class Pictures(Rows):
    """Small pictures with augmentation: random crop, flip and noise."""

    data = torch.randint(0, 255, (1000, 3, 72, 72), dtype=torch.uint8)

    def __len__(self) -> int:
        return BATCHES // 10 * BATCH_SIZE

    def __getitem__(self, index: int) -> torch.Tensor:
        top, left, flip = torch.randint(0, 8, (3,)).tolist()
        picture = self.data[index % 1000, :, top : top + 64, left : left + 64].float() / 255
        picture = picture.flip(2) if flip % 2 else picture
        return picture + 0.01 * torch.randn_like(picture)


def cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def per_batch(loader: Iterable[torch.Tensor]) -> float:
    """Microseconds of CPU per batch; the workers of an epoch end with it."""
    began, count = cpu_seconds(), 0
    for _ in loader:
        count += 1
    return (cpu_seconds() - began) / count * 1e6


def main() -> None:
    torch.set_num_threads(1)
    print(f"batches of {BATCH_SIZE}, medians and quartiles of {ROUNDS} epochs each, µs of CPU\n")
    print("| dataset | workers | bare | resumable | added | of bare |\n|---|---|---|---|---|---|")
    for dataset, words in ((Rows(), "rows of 32 floats"), (Pictures(), "pictures, augmented")):
        for workers in (0, 2):
            named = {"batch_size": BATCH_SIZE, "shuffle": True, "num_workers": workers}
            bare = DataLoader(dataset, **named)
            wrapped = mt.resumable(DataLoader(dataset, **named))
            pairs = [(per_batch(bare), per_batch(wrapped)) for _ in range(ROUNDS + 1)][1:]
            cells = []
            for column in (
                *zip(*pairs, strict=True),
                [after - before for before, after in pairs],
            ):
                low, median, high = statistics.quantiles(column, n=4)
                cells.append(f"{median:,.0f} ({low:,.0f}–{high:,.0f})")
            ratio = statistics.median(after / before for before, after in pairs)
            print(f"| {words} | {workers} | {' | '.join(cells)} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
