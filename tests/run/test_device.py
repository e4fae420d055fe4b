"""Metrics on a CUDA device are logged without waiting for it, and exactly."""

from __future__ import annotations

import json

import numpy
import pytest
import torch
from PIL import Image

import mlflow_track as mt
from mlflow_track.record.device_values import CudaNumber

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@needs_cuda
def test_logging_a_cuda_tensor_does_not_wait_for_the_device_and_keeps_the_value() -> None:
    with mt.start_run() as run:
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")  # any synchronising call raises
        try:
            loss = torch.ones((), device="cuda")
            for step in range(10):
                run.log_metrics({"loss": loss, "bf16": loss.bfloat16()}, step=step)
                loss += 1  # what was logged must not change with it
        finally:
            torch.cuda.set_sync_debug_mode("default")
    frame = mt.load_run(run.path).metrics()
    assert frame["loss"].tolist() == frame["bf16"].tolist() == [float(n) for n in range(1, 11)]


@needs_cuda
def test_an_image_and_a_histogram_on_the_device_do_not_wait_for_it() -> None:
    image = torch.linspace(0, 1, 12, device="cuda").reshape(3, 2, 2)
    with mt.start_run() as run:
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            path = run.log_image(image, "a", step=0)
            counts = run.log_histogram("h", image.bfloat16(), step=0, bins=2)
            image.zero_()  # what was logged must not change with it
        finally:
            torch.cuda.set_sync_debug_mode("default")
    pixels = numpy.asarray(Image.open(path)).transpose(2, 0, 1).ravel() / 255
    assert abs(pixels - numpy.linspace(0, 1, 12)).max() < 1 / 255
    assert json.loads(counts.read_text())["counts"] == [6, 6]


@needs_cuda
def test_what_is_not_one_number_is_refused_at_the_call() -> None:
    with mt.start_run() as run:
        for wrong in (torch.zeros(2), torch.zeros((), dtype=torch.complex64)):
            with pytest.raises(TypeError, match="must be one number"):
                run.log_metrics({"a": wrong.cuda()}, step=0)


@needs_cuda
def test_only_what_policies_watch_is_waited_for() -> None:
    with mt.start_run() as run:
        checkpoints = run.checkpoints(
            save=mt.OnImprovement("val/loss"), stop=mt.EarlyStopping("val/loss", patience=2)
        )
        state, loss = {"w": 1}, torch.ones((), device="cuda")
        checkpoints.step(0, state)
        torch.cuda.synchronize()
        saved, stopped = [], []
        for step in range(1, 9):
            loss += 1
            if step % 2:
                # Without a watched metric nothing waits for the device.
                torch.cuda.set_sync_debug_mode("error")
            else:
                run.log_metrics({"val/loss": (loss - 5).abs()}, step=step)
            try:
                run.log_metrics({"train/loss": loss}, step=step)
                saved.append(checkpoints.step(step, state))
            finally:
                torch.cuda.set_sync_debug_mode("default")
            stopped.append(run.should_stop)
            if stopped[-1]:
                break
    # val/loss is |step - 4|: 2 at step 2, 0 at step 4, 2 at step 6, 4 at step 8.
    assert saved == [False, True, False, True, False, False, False, True]
    assert stopped == [False] * 7 + [True]
    assert mt.load_run(run.path).metrics()["train/loss"].tolist() == [
        float(n) for n in range(2, 10)
    ]


class CudaLike:
    """What CudaNumber asks of a tensor before it needs a device."""

    shape, dtype, is_cuda = (2,), torch.float32, True

    def numel(self) -> int:
        return 2

    def is_complex(self) -> bool:
        return False


def test_the_check_comes_before_the_copy() -> None:
    with pytest.raises(TypeError, match="shape"):
        CudaNumber(CudaLike())
    with (
        mt.start_run() as run,
        pytest.raises(TypeError, match=r"'a' must be one number, got CudaLike.*\(2,\)"),
    ):
        run.log_metrics({"a": CudaLike()}, step=0)  # type: ignore[dict-item]
