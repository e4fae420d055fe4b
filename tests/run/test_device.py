"""Metrics on a CUDA device are logged without waiting for it, and exactly."""

from __future__ import annotations

import pytest
import torch

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
def test_what_is_not_one_number_is_refused_at_the_call() -> None:
    with mt.start_run() as run:
        for wrong in (torch.zeros(2), torch.zeros((), dtype=torch.complex64)):
            with pytest.raises(TypeError, match="not one number"):
                run.log_metrics({"a": wrong.cuda()}, step=0)


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
    with mt.start_run() as run, pytest.raises(TypeError, match=r"'a' is CudaLike.*\(2,\)"):
        run.log_metrics({"a": CudaLike()}, step=0)  # type: ignore[dict-item]
