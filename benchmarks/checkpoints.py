"""Saving and loading beside torch.save, safetensors, DCP and Lightning.

Measures the stall of the loop, the time until the save is durable, training time lost, memory.
All ways take turns in one process, in another order each round, on the same state; every row is a
median over the rounds with its quartiles. "Durable" ways hash with sha256, fsync and rename.
Files lie in BENCH_DIR (default: here) and are deleted. Needs the extra `bench`.
Run: python benchmarks/checkpoints.py      (ROUNDS=7 SIZES=small,100MB,1GB are the defaults)
"""

from __future__ import annotations

import gc
import hashlib
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")

import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from torch import nn

from mlflow_track.checkpoint.disk.store import CheckpointStore
from mlflow_track.checkpoint.state import load
from mlflow_track.checkpoint.state.flatten import SaveRequest
from mlflow_track.checkpoint.writer.saver import Saver
from mlflow_track.record.metrics import MetricsFile

warnings.filterwarnings("ignore")
ROUNDS = int(os.environ.get("ROUNDS", "7"))
SIZES = os.environ.get("SIZES", "small,100MB,1GB").split(",")
THREADS = 1  # The other core is the writer's, as it is beside a training process.
OURS = "mlflow_track"


# --- states ---


def trained(parameters: int, layers: int) -> dict[str, Any]:
    """A model with AdamW moments: three tensors a layer of `parameters / layers` numbers each."""
    width = int((parameters / layers) ** 0.5)
    model = nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-9)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return {"model": model, "optimizer": optimizer}


STATES: dict[str, Callable[[], dict[str, Any]]] = {
    "small": lambda: {"tensors": {f"layers.{i}.weight": torch.randn(1024) for i in range(5000)}},
    "100MB": lambda: trained(8_600_000, 50),
    "1GB": lambda: trained(87_000_000, 100),
}


def plain(state: dict[str, Any]) -> dict[str, Any]:
    return {k: v.state_dict() if hasattr(v, "state_dict") else v for k, v in state.items()}


def tensors_of(value: Any, path: str = "state") -> dict[str, torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return {path: value.detach()}
    items = value.items() if isinstance(value, dict) else ()
    return {k: t for key, v in items for k, t in tensors_of(v, f"{path}.{key}").items()}


def total_bytes(state: dict[str, Any]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors_of(plain(state)).values())


# --- ways of saving: each returns (seconds of stall, seconds until it is on disk) ---


class HashingFile:
    """A file that hashes what is written to it."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "wb", buffering=0)  # noqa: SIM115
        self._hash = hashlib.sha256()

    def write(self, data: Any) -> int:
        self._hash.update(data)
        self._file.write(data)
        return len(data)

    def flush(self) -> None: ...

    def close(self) -> str:
        os.fsync(self._file.fileno())
        self._file.close()
        return self._hash.hexdigest()


def publish(temporary: Path, final: Path, digest: str) -> None:
    final.with_suffix(".sha256").write_text(digest)
    os.rename(temporary, final)
    descriptor = os.open(final.parent, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


class Ways:
    def __init__(self, state: dict[str, Any], folder: Path) -> None:
        self.state, self.folder, self.number = state, folder, 0
        self.store = CheckpointStore(folder / "ours")
        self.metrics, self.announce = MetricsFile(folder / "metrics.csv"), print
        self.saver = Saver(self.store, self.metrics, self.announce)
        self.saver.prepare(state)
        # Large ones first, so that none begins at an odd address: the quickest copy there is.
        self.tensors = sorted(tensors_of(plain(state)).values(), key=lambda t: -t.numel())
        sizes = [t.numel() * t.element_size() for t in self.tensors]
        warm = torch.zeros(sum(sizes), dtype=torch.uint8)
        self.warm = [
            piece.view(t.dtype).view(t.shape)
            for piece, t in zip(warm.split(sizes), self.tensors, strict=True)
        ]
        self.async_io: Any = None

    def copy(self) -> tuple[float, float]:
        """The limit: all tensors into warm memory, by one call of torch."""
        began = time.perf_counter()
        torch._foreach_copy_(self.warm, self.tensors)
        seconds = time.perf_counter() - began
        return seconds, seconds

    def ours(self) -> tuple[float, float]:
        self.number += 1
        stall = self.saver.save(SaveRequest(step=self.number, state=self.state))
        self.saver.wait()
        (outcome,) = self.saver.outcomes()
        assert outcome.error is None, outcome.error
        for older in self.store.list()[:-1]:
            self.store.remove(older)
        return stall, outcome.durable_seconds

    def torch_save(self) -> tuple[float, float]:
        began = time.perf_counter()
        temporary = self.folder / "torch.tmp"
        file = HashingFile(temporary)
        torch.save(plain(self.state), file)  # type: ignore[arg-type]
        publish(temporary, self.folder / "torch.pt", file.close())
        seconds = time.perf_counter() - began
        return seconds, seconds

    def safetensors(self) -> tuple[float, float]:
        began = time.perf_counter()
        temporary = self.folder / "safe.tmp"
        file = HashingFile(temporary)
        file.write(safetensors.torch.save(tensors_of(plain(self.state))))
        publish(temporary, self.folder / "safe.safetensors", file.close())
        seconds = time.perf_counter() - began
        return seconds, seconds

    def dcp_save(self) -> tuple[float, float]:
        shutil.rmtree(self.folder / "dcp", ignore_errors=True)
        began = time.perf_counter()
        dcp.save(plain(self.state), checkpoint_id=str(self.folder / "dcp"), no_dist=True)
        seconds = time.perf_counter() - began
        return seconds, seconds

    def dcp_async(self) -> tuple[float, float]:
        shutil.rmtree(self.folder / "dcp_async", ignore_errors=True)
        began = time.perf_counter()
        future = dcp.async_save(
            plain(self.state), checkpoint_id=str(self.folder / "dcp_async"), no_dist=True
        )
        stall = time.perf_counter() - began
        future.result()  # type: ignore[union-attr]
        return stall, time.perf_counter() - began

    def fabric(self) -> tuple[float, float]:
        from lightning.fabric.plugins.io import TorchCheckpointIO

        began = time.perf_counter()
        TorchCheckpointIO().save_checkpoint(plain(self.state), self.folder / "fabric.ckpt")
        seconds = time.perf_counter() - began
        return seconds, seconds

    def fabric_async(self) -> tuple[float, float]:
        from lightning.fabric.plugins.io import TorchCheckpointIO
        from lightning.pytorch.plugins.io import AsyncCheckpointIO

        writer = AsyncCheckpointIO(TorchCheckpointIO())  # type: ignore[arg-type]
        began = time.perf_counter()
        writer.save_checkpoint(plain(self.state), self.folder / "fabric_async.ckpt")
        stall = time.perf_counter() - began
        writer.teardown()
        return stall, time.perf_counter() - began

    def all(self) -> dict[str, Callable[[], tuple[float, float]]]:
        return {
            "one copy into warm memory": self.copy,
            OURS: self.ours,
            "torch.save, durable": self.torch_save,
            "safetensors, durable": self.safetensors,
            "dcp.save": self.dcp_save,
            "dcp.async_save": self.dcp_async,
            "Lightning Fabric": self.fabric,
            "Lightning AsyncCheckpointIO": self.fabric_async,
        }


# --- tables ---


def quartiles(values: list[float]) -> tuple[float, float, float]:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def milliseconds(values: list[float]) -> str:
    low, middle, high = (1000 * v for v in quartiles(values))
    digits = 1 if middle < 100 else 0
    return f"{middle:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def ratio(values: list[float], to: list[float]) -> str:
    return f"{statistics.median(a / b for a, b in zip(values, to, strict=True)):.2f}"


def saving_table(name: str, ways: Ways) -> None:
    arms = ways.all()
    stalls: dict[str, list[float]] = {arm: [] for arm in arms}
    durable: dict[str, list[float]] = {arm: [] for arm in arms}
    for arm in arms:  # Every buffer that is kept is warm, every import done.
        arms[arm]()
    for number in range(ROUNDS):
        order = [*list(arms)[number % len(arms) :], *list(arms)[: number % len(arms)]]
        for arm in order:
            gc.collect()
            stall, until = arms[arm]()
            stalls[arm].append(stall)
            durable[arm].append(until)
    copy, reference = stalls["one copy into warm memory"], durable["torch.save, durable"]
    print(
        f"\n### {name}: {len(ways.tensors)} tensors, {total_bytes(ways.state) / 1e6:.0f} MB; "
        f"{ROUNDS} rounds\n\n"
        "| way | stall, ms (quartiles) | stall / one copy | on disk after, ms (quartiles) | "
        "/ durable torch.save |\n|---|---|---|---|---|"
    )
    for arm in arms:
        until = ("–", "–") if arm == "one copy into warm memory" else (
            milliseconds(durable[arm]), ratio(durable[arm], reference)
        )  # fmt: skip
        print(
            f"| {arm} | {milliseconds(stalls[arm])} | {ratio(stalls[arm], copy)} | "
            f"{until[0]} | {until[1]} |",
            flush=True,
        )


def loading_table(name: str, ways: Ways) -> None:
    """Our verified load into live objects beside torch.load, which verifies and fills nothing."""
    ways.ours()
    ways.torch_save()
    checkpoint, path = ways.store.list()[-1], ways.folder / "torch.pt"

    def ours() -> None:
        found = ways.store.expected(checkpoint.step)
        load.load_into(ways.state, load.read(found)["state"], found)

    def unverified() -> None:
        torch.load(path, weights_only=True)

    def filling() -> None:
        loaded = torch.load(path, weights_only=True)
        for key, target in ways.state.items():
            if hasattr(target, "load_state_dict"):
                target.load_state_dict(loaded[key])
            else:
                ways.state[key] = loaded[key]

    arms = {
        f"{OURS}, every byte verified, into the live objects": ours,
        "torch.load(weights_only=True), nothing verified": unverified,
        "the same and load_state_dict": filling,
    }
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    torch.set_num_threads(os.cpu_count() or 1)
    for number in range(-1, ROUNDS):
        for arm in [*list(arms)[number % 3 :], *list(arms)[: number % 3]]:
            gc.collect()
            began = time.perf_counter()
            arms[arm]()
            if number >= 0:
                seconds[arm].append(time.perf_counter() - began)
    torch.set_num_threads(THREADS)
    reference = seconds["torch.load(weights_only=True), nothing verified"]
    print(f"\n### Loading {name} (files in the page cache, all cores)\n")
    print("| way | ms (quartiles) | / torch.load |\n|---|---|---|")
    for arm, values in seconds.items():
        print(f"| {arm} | {milliseconds(values)} | {ratio(values, reference)} |", flush=True)


def lost_table(ways: Ways) -> None:
    """How much longer the same training steps take when a save happens among them."""
    model = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512))
    data = torch.randn(256, 512)

    def train(seconds_of_steps: int) -> float:
        began = time.perf_counter()
        for _ in range(seconds_of_steps):
            model(data).sum().backward()
        return time.perf_counter() - began

    def saver_begin() -> Callable[[], None]:
        ways.number += 1
        ways.saver.save(SaveRequest(step=ways.number, state=ways.state))

        def end() -> None:
            ways.saver.wait()
            assert all(outcome.error is None for outcome in ways.saver.outcomes())
            for older in ways.store.list()[:-1]:
                ways.store.remove(older)

        return end

    def dcp_begin() -> Callable[[], None]:
        shutil.rmtree(ways.folder / "dcp_async", ignore_errors=True)
        future = dcp.async_save(
            plain(ways.state), checkpoint_id=str(ways.folder / "dcp_async"), no_dist=True
        )
        return lambda: future.result()  # type: ignore[union-attr, return-value]

    def torch_begin() -> Callable[[], None]:
        ways.torch_save()
        return lambda: None

    arms = {OURS: saver_begin, "torch.save, durable": torch_begin, "dcp.async_save": dcp_begin}
    lost: dict[str, list[float]] = {arm: [] for arm in arms}
    train(50)
    steps = int(4 * 50 / train(50))  # About four seconds: longer than any save takes.
    for _ in range(ROUNDS):
        for arm, begin in arms.items():
            without = train(steps)
            began = time.perf_counter()
            end = begin()
            train(steps)
            lost[arm].append(time.perf_counter() - began - without)
            end()
    print(f"\n### Training time lost per save of {total_bytes(ways.state) / 1e6:.0f} MB\n")
    print(f"One training thread, {os.cpu_count()} cores, steps beside the save.\n")
    print("| way | ms lost (quartiles) |\n|---|---|")
    for arm, values in lost.items():
        print(f"| {arm} | {milliseconds(values)} |", flush=True)


# --- memory ---


def resident_bytes(writer_pid: int | None) -> int:
    """Memory of this process, and what the writer process has besides the memory they share."""
    used = _rollup("self")["Rss"]
    if writer_pid is not None:
        writer = _rollup(writer_pid)
        used += writer["Pss"] - writer["Pss_Shmem"]
    return used


def _rollup(pid: int | str) -> dict[str, int]:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {line.split(":")[0]: 1024 * int(line.split()[1]) for line in lines}


def memory_table(state: dict[str, Any], folder: Path) -> None:
    """The most that a save adds to what the process had: the writer process counts, too."""
    arms = ["dcp.async_save", "Lightning AsyncCheckpointIO", OURS]
    print(f"\n### Extra memory of a save of {total_bytes(state) / 1e6:.0f} MB\n")
    print("| way | / the state |\n|---|---|")
    for arm in arms:
        gc.collect()
        before = resident_bytes(None)
        ways = Ways.__new__(Ways)
        ways.state, ways.folder, ways.number = state, folder / arm.split()[0], 0
        ways.folder.mkdir()
        ways.store = CheckpointStore(ways.folder / "ours")
        ways.metrics, ways.announce = MetricsFile(ways.folder / "metrics.csv"), print
        ways.saver = Saver(ways.store, ways.metrics, ways.announce)
        call = {OURS: ways.ours, arms[0]: ways.dcp_async, arms[1]: ways.fabric_async}[arm]
        most, is_done = [0], threading.Event()

        def watch(ways: Ways = ways, most: list[int] = most, done: Any = is_done) -> None:
            while not done.wait(0.02):
                pid = getattr(ways.saver._writer, "pid", None)
                try:
                    most[0] = max(most[0], resident_bytes(pid))
                except OSError:
                    pass

        watcher = threading.Thread(target=watch)
        watcher.start()
        call()
        call()
        is_done.set()
        watcher.join()
        ways.saver.close()
        shutil.rmtree(ways.folder)
        print(f"| {arm} | {(most[0] - before) / total_bytes(state):.2f} |", flush=True)


def main() -> None:
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {os.cpu_count()} cores, {THREADS} thread for the stall")
    base = Path(os.environ.get("BENCH_DIR", "."))
    with tempfile.TemporaryDirectory(dir=base, prefix="bench-") as name:
        for size in SIZES:
            folder = Path(name) / size
            folder.mkdir()
            state = STATES[size]()
            if size == "1GB":
                memory_table(state, folder)
            ways = Ways(state, folder)
            saving_table(size, ways)
            loading_table(size, ways)
            if size == "1GB":
                lost_table(ways)
            ways.saver.close()
            del ways, state
            gc.collect()
            shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
