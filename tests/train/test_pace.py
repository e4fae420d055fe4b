"""Are the figures of a job those of its clock, its memory and its device?"""

from __future__ import annotations

import mmap
import re

import pytest
import torch

from train import hardware, pace
from train.hardware import Hardware, peak_flops
from train.model import Shape, Transformer
from train.pace import Pace, flops_per_token, peak_resident_bytes

CPU = Hardware(torch.device("cpu"), is_bf16=False)
H100, L4 = "NVIDIA H100 80GB HBM3", "NVIDIA L4"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, as its only item."""
    now = [100.0]
    monkeypatch.setattr(pace.time, "perf_counter", lambda: now[0])
    return now


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The name of the device, as its only item; this machine need not have one."""
    name = [H100]
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name[0])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3_000_000)
    return name


def take_steps(clock: list[float], job: Pace, count: int) -> None:
    """Steps of 2 s, of which 0.5 s are for data, then 1 s of evaluating and 5 s of a save."""
    for _ in range(count):
        for part, seconds in (("data", 0.5), ("step", 1.5), ("evaluate", 1), ("save", 5)):
            clock[0] += seconds
            job.lap(part)
        job.count()


def test_speed_leaves_out_evaluating_and_saving_and_shares_are_of_all(clock):
    job = Pace(1000, 1e6, CPU, 1)
    take_steps(clock, job, 3)
    assert job.metrics() == {"perf/tokens_per_second": 500.0, "perf/step_ms": 2000.0}
    assert job.shares() == {"perf/data_share": 0.5 / 8, "perf/save_share": 5 / 8}
    clock[0] += 4
    job.lap("step")
    job.count()
    assert job.metrics()["perf/tokens_per_second"] == 250.0  # Since the row before.


def test_summary_is_of_the_whole_attempt(clock):
    job = Pace(1000, 1e6, CPU, 1)
    assert job.summary() == ""
    take_steps(clock, job, 1)
    assert job.summary().startswith("1 step in 8.0 s, 500 tokens/s: waiting for data 6.2%")
    take_steps(clock, job, 1249)
    line = r"1,250 steps in 10,000.0 s, 500 tokens/s: waiting for data 6.2%, evaluating 12.5%, "
    assert re.fullmatch(line + r"stalled by saves 62.5%, peak memory [\d,]+ MB", job.summary())


def test_mfu_is_of_the_peak_of_all_devices(clock, gpu):
    device = Hardware(torch.device("cuda"), is_bf16=True)
    job = Pace(1000, 989.4e12 / 4000, device, 2)
    take_steps(clock, job, 1)
    assert job.shares()["perf/mfu"] == pytest.approx(500 / 4000 / 2)
    assert job.memory()["perf/peak_cuda_memory_mb"] == 3.0
    assert job.summary().endswith(" MB, on the GPU 3 MB, MFU 6.2%")


@pytest.mark.parametrize(
    ("name", "is_bf16", "peak"),
    [
        (H100, True, 989.4e12),
        (H100, False, 66.9e12),
        (L4, True, 121e12),
        ("Tesla T4", False, 8.1e12),
        ("Tesla T4", True, None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", True, None),
        ("NVIDIA GeForce RTX 9999", True, None),
    ],
)
def test_peak_flops_is_never_guessed(name, is_bf16, peak, gpu, clock):
    gpu[0] = name
    device = Hardware(torch.device("cuda", 0), is_bf16)
    assert peak_flops(device) == pytest.approx(peak)
    job = Pace(1000, 1e6, device, 1)
    take_steps(clock, job, 1)
    assert ("perf/mfu" in job.shares()) is (peak is not None)
    assert ("MFU" in job.summary()) is (peak is not None)


def test_peak_flops_is_unknown_for_a_processor():
    assert peak_flops(CPU) is None and peak_flops(Hardware(CPU.device, is_bf16=True)) is None


def test_peaks_in_bf16_are_above_those_in_fp32():
    for in_bf16, in_fp32 in hardware._PEAKS.values():
        assert 5 < in_fp32 < 100 and (in_bf16 is None or in_fp32 < in_bf16 < 1000)


@pytest.mark.parametrize(
    ("changes", "tables"),
    [
        ({}, 11 * 8),
        ({"tie_embeddings": True}, 0),
        ({"position": "learned"}, 11 * 8 + 6 * 8),
    ],
    ids=str,
)
def test_flops_per_token_are_those_of_the_weights_that_are_multiplied_with(changes, tables):
    shape = Shape(11, 6, d_model=8, num_layers=2, num_heads=2, d_ff=12)._replace(**changes)
    model = Transformer(shape)
    matrices = sum(p.numel() for p in model.parameters() if p.dim() == 2)
    assert flops_per_token(model) == 6 * (matrices - tables) + 12 * 2 * 8 * 6


def test_peak_resident_bytes_grows_with_use_and_stays():
    before = peak_resident_bytes()
    with mmap.mmap(-1, size := 64 << 20) as memory:
        memory.write(b"x" * size)
    assert peak_resident_bytes() - before > size // 2


def test_peak_resident_bytes_is_known_without_proc(monkeypatch):
    before = peak_resident_bytes()
    monkeypatch.setattr(pace.Path, "read_text", lambda self: "no such line")
    assert abs(peak_resident_bytes() - before) < before / 2 + (64 << 20)
