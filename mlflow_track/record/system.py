"""Samples the machine while a run trains: CPU, memory, disk, network, GPUs.

Names and units are those of MLflow's own system metrics, so that its UI shows them in their tab. A
thread samples, whatever the backend: one sample takes 0.1 ms (and about 1 ms for each GPU) every 10
seconds, while a separate process would cost memory and a start.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from mlflow_track.record.metrics import MetricsFile
from mlflow_track.record.rows import read_last_steps

_MEGABYTE = 1e6
# A driver that hangs must not keep a run from ending.
_END_SECONDS = 5.0


class SystemMonitor:
    """Samples into `path`, a metrics file whose step counts the samples; a later attempt appends.

    The first sample comes after one interval, another one at the end. Nothing here raises into
    training: a sampler that fails is reported once and skipped.

    Args:
        path: The file; made with the first sample.
        interval_seconds: Time between two samples.
        announce: Takes one line of text for the log.
    """

    def __init__(
        self, path: Path, interval_seconds: float, announce: Callable[[str], None]
    ) -> None:
        self._path = path
        self._interval_seconds = interval_seconds
        self._announce = announce
        self._file: MetricsFile | None = None
        self._step = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="system metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take the last sample and end."""
        self._stop.set()
        self._thread.join(_END_SECONDS)

    def _work(self) -> None:
        try:
            machine = Machine(self._path.parent)
            is_last = False
            while not is_last:
                is_last = self._stop.wait(self._interval_seconds)
                self._append(machine.sample())
        except Exception as error:
            self._announce(f"WARNING: no system metrics from here on: {error!r}")
        finally:
            if self._file is not None:
                self._file.close()

    def _append(self, sample: Mapping[str, float]) -> None:
        if self._file is None:
            self._file = MetricsFile(self._path)
            self._step = 1 + max(read_last_steps(self._path).values(), default=-1)
        self._file.append(self._step, tuple(sample), list(sample.values()))
        self._step += 1


class Machine:
    """The machine that this process runs on.

    Args:
        folder: The disk that holds it is the one sampled.
    """

    def __init__(self, folder: Path) -> None:
        import psutil

        self._psutil = psutil
        self._folder = str(folder)
        self._network_before = psutil.net_io_counters()
        # The first call has nothing to compare with.
        psutil.cpu_percent()
        self._gpus = _find_gpus()

    def sample(self) -> dict[str, float]:
        """Values by name: percentages, megabytes (10**6 bytes), watts.

        CPU is the average since the sample before, network the sum since the start.
        """
        memory = self._psutil.virtual_memory()
        disk = self._psutil.disk_usage(self._folder)
        values = {
            "cpu_utilization_percentage": self._psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / _MEGABYTE,
            "system_memory_usage_percentage": 100 * memory.used / memory.total,
            "disk_usage_percentage": disk.percent,
            "disk_usage_megabytes": disk.used / _MEGABYTE,
            "disk_available_megabytes": disk.free / _MEGABYTE,
        }
        network, before = self._psutil.net_io_counters(), self._network_before
        if network is not None and before is not None:
            received, sent = (
                network.bytes_recv - before.bytes_recv,
                network.bytes_sent - before.bytes_sent,
            )
            values["network_receive_megabytes"] = received / _MEGABYTE
            values["network_transmit_megabytes"] = sent / _MEGABYTE
        for index, gpu in enumerate(self._gpus):
            values |= {f"gpu_{index}_{name}": value for name, value in gpu.sample().items()}
        return {f"system/{name}": round(float(value), 1) for name, value in values.items()}


class Gpu:
    """One GPU, sampled through NVML, without values that it does not know."""

    def __init__(self, nvml: Any, index: int) -> None:
        self._nvml = nvml
        self._handle = nvml.nvmlDeviceGetHandleByIndex(index)

    def sample(self) -> dict[str, float]:
        values: dict[str, float] = {}
        for measure in (self._memory, self._utilization, self._power):
            try:
                values |= measure()
            except self._nvml.NVMLError:
                continue
        return values

    def _memory(self) -> dict[str, float]:
        memory = self._nvml.nvmlDeviceGetMemoryInfo(self._handle)
        return {
            "memory_usage_percentage": 100 * memory.used / memory.total,
            "memory_usage_megabytes": memory.used / _MEGABYTE,
        }

    def _utilization(self) -> dict[str, float]:
        rates = self._nvml.nvmlDeviceGetUtilizationRates(self._handle)
        return {"utilization_percentage": rates.gpu}

    def _power(self) -> dict[str, float]:
        milliwatts = self._nvml.nvmlDeviceGetPowerUsage(self._handle)
        most = self._nvml.nvmlDeviceGetEnforcedPowerLimit(self._handle)
        return {
            "power_usage_watts": milliwatts / 1000,
            "power_usage_percentage": 100 * milliwatts / most,
        }


def _find_gpus() -> list[Gpu]:
    """All NVIDIA GPUs of the machine; none where the package or the driver is missing."""
    try:
        nvml = import_module("pynvml")
    except ImportError:
        return []
    try:
        nvml.nvmlInit()
        return [Gpu(nvml, index) for index in range(nvml.nvmlDeviceGetCount())]
    except nvml.NVMLError:
        return []
