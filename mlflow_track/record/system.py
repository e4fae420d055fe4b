"""Samples the machine while a run trains: CPU, memory, disk, network, GPUs.

Each is a source by itself: one that fails is named once and left out of the sample. In a container
with a limit of memory the memory is the container's.

Names and units are those of MLflow's own system metrics, so that its UI shows them in their tab. A
thread samples, whatever the backend: one sample takes 0.2 ms (and about 1 ms for each GPU) every 10
seconds, while a separate process would cost memory and a start.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from mlflow_track.record.metrics import MetricsFile
from mlflow_track.record.rows import read_last_steps

_MEGABYTE = 1e6
# A driver that hangs must not keep a run from ending.
_END_SECONDS = 5.0
# Of each version the files with the limit and the use, and the key of what can be dropped.
_GROUP_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_GROUP_2 = ("memory.max", "memory.current", "inactive_file")
_Group = tuple[Path, tuple[str, str, str]]


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
            machine = Machine(self._path.parent, self._announce)
            is_last = False
            while not is_last:
                is_last = self._stop.wait(self._interval_seconds)
                if sample := machine.sample():
                    self._append(sample)
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
        announce: Takes a line about a source that fails.
        cgroups: The arguments of `memory_groups`.
    """

    def __init__(
        self,
        folder: Path,
        announce: Callable[[str], None] = lambda line: None,
        cgroups: Sequence[Path] = (),
    ) -> None:
        import psutil

        self._psutil = psutil
        self._folder = str(folder)
        self._announce = announce
        self._groups = memory_groups(*cgroups)
        self._named: set[str] = set()
        self._network_before: Any = None
        self._sources: dict[str, Callable[[], Mapping[str, float]]] = {
            "CPU": self._cpu,
            "memory": self._memory,
            "disk": self._disk,
            "network": self._network,
        }
        # The first call of these has nothing to compare with.
        self._values_of("CPU")
        self._values_of("network")
        try:
            self._sources |= {f"GPU {n}": gpu.sample for n, gpu in enumerate(_find_gpus())}
        except Exception as error:
            self._name("GPUs", error)

    def sample(self) -> dict[str, float]:
        """Values by name: percentages, megabytes (10**6 bytes), watts.

        CPU is the average since the sample before, network the sum since the start.
        """
        sample: dict[str, float] = {}
        for name in self._sources:
            sample |= self._values_of(name)
        return sample

    def _values_of(self, source: str) -> dict[str, float]:
        try:
            values = self._sources[source]()
            return {f"system/{name}": round(float(value), 1) for name, value in values.items()}
        except Exception as error:
            # Of any kind: it comes from a driver, or from the files of another system.
            self._name(source, error)
            return {}

    def _name(self, source: str, error: Exception) -> None:
        if source not in self._named:
            self._named.add(source)
            self._announce(f"WARNING: the system metrics lack {source}: {error!r}")

    def _cpu(self) -> dict[str, float]:
        return {"cpu_utilization_percentage": self._psutil.cpu_percent()}

    def _memory(self) -> dict[str, float]:
        memory = self._psutil.virtual_memory()
        whole = (memory.total, memory.used)
        total, used = min(memory_of_groups(self._groups, memory.total), default=whole)
        return {
            "system_memory_usage_megabytes": used / _MEGABYTE,
            "system_memory_usage_percentage": 100 * used / total,
        }

    def _disk(self) -> dict[str, float]:
        disk = self._psutil.disk_usage(self._folder)
        return {
            "disk_usage_percentage": disk.percent,
            "disk_usage_megabytes": disk.used / _MEGABYTE,
            "disk_available_megabytes": disk.free / _MEGABYTE,
        }

    def _network(self) -> dict[str, float]:
        network = self._psutil.net_io_counters()
        before = self._network_before = self._network_before or network
        if network is None:
            return {}
        return {
            "network_receive_megabytes": (network.bytes_recv - before.bytes_recv) / _MEGABYTE,
            "network_transmit_megabytes": (network.bytes_sent - before.bytes_sent) / _MEGABYTE,
        }


def memory_groups(
    groups: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")
) -> list[_Group]:
    """The control groups that may limit the memory of this process, each with its files' names.

    The group itself and those around it, of both versions
    (https://docs.kernel.org/admin-guide/cgroup-v2.html).

    Args:
        groups: The file that names the control groups of this process.
        mount: Where the groups are mounted.
    """
    found: list[_Group] = []
    for line in _text_of(groups).splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            tops, names = [mount, mount / "unified"], _GROUP_2
        elif "memory" in controllers.split(","):
            tops, names = [mount / "memory", mount / controllers], _GROUP_1
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        # A container often sees its own group as the top, under the name that it has outside.
        folders = {top.joinpath(*parts[:n]) for top in tops for n in range(len(parts) + 1)}
        found += [(folder, names) for folder in folders if (folder / names[0]).exists()]
    return found


def memory_of_groups(groups: Sequence[_Group], most: int) -> list[tuple[int, int]]:
    """The memory, in bytes, that each group with a limit may use, and uses.

    What is used is without the files that the kernel can drop, as it is for the whole machine.

    Args:
        groups: See `memory_groups`.
        most: The memory of the machine: a limit above it limits nothing.
    """
    found = (_memory_of_group(folder, most, *names) for folder, names in groups)
    return list(filter(None, found))


def _memory_of_group(
    folder: Path, below: int, limit: str, use: str, key: str
) -> tuple[int, int] | None:
    """The limit of a group and what it uses; None for a limit of `below` or more."""
    most = _text_of(folder / limit).strip()
    if not (most.isdecimal() and 0 < int(most) < below):
        return None
    used = _text_of(folder / use).strip()
    pairs = (line.partition(" ") for line in _text_of(folder / "memory.stat").splitlines())
    dropped = next((int(value) for name, _, value in pairs if name == key), 0)
    return (int(most), max(0, int(used) - dropped)) if used.isdecimal() else None


def _text_of(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


class Gpu:
    """One GPU, sampled through NVML, without values that it does not know."""

    def __init__(self, nvml: Any, index: int) -> None:
        self._nvml = nvml
        self._index = index
        self._handle: Any = None

    def sample(self) -> dict[str, float]:
        if self._handle is None:
            self._handle = self._nvml.nvmlDeviceGetHandleByIndex(self._index)
        values: dict[str, float] = {}
        for measure in (self._memory, self._utilization, self._power):
            try:
                values |= measure()
            except self._nvml.NVMLError:
                continue
        return {f"gpu_{self._index}_{name}": value for name, value in values.items()}

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
        count = nvml.nvmlDeviceGetCount()
    except nvml.NVMLError:
        return []
    return [Gpu(nvml, index) for index in range(count)]
