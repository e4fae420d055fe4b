"""System metrics: MLflow's names, a separate file, and never a reason to stop training."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import mlflow_track as mt
from mlflow_track.record.rows import iterate_rows
from mlflow_track.record.system import Machine
from mlflow_track.settings import read_settings


def rows_of(run: mt.Run) -> list:
    return list(iterate_rows(run.path / "system_metrics.csv"))


def wait_for_rows(run: mt.Run, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(rows_of(run)) < count and time.monotonic() < deadline:
        time.sleep(0.02)


def test_samples_lie_in_a_separate_file_and_a_resumed_run_continues_counting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACK_SYSTEM_METRICS", "0.05")
    with mt.start_run() as run:
        wait_for_rows(run, 2)
        run.finish("FAILED")
    first = rows_of(run)
    with mt.start_run(resume=run.id) as run:
        pass
    steps = [row.step for row in rows_of(run)]
    assert len(first) >= 3 and len(steps) > len(first)
    assert steps == list(range(len(steps)))
    assert "system" not in (run.path / "metrics.csv").read_text()
    values = first[-1].values
    assert 0 <= values["system/cpu_utilization_percentage"] <= 100
    assert 0 < values["system/system_memory_usage_percentage"] < 100


def test_a_run_shorter_than_the_interval_has_one_sample() -> None:
    with mt.start_run() as run:
        pass
    assert len(rows_of(run)) == 1


@pytest.mark.parametrize("off", ["0", "0.0"])
def test_zero_seconds_is_off(off: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACK_SYSTEM_METRICS", off)
    with mt.start_run() as run:
        pass
    assert not (run.path / "system_metrics.csv").exists()


@pytest.mark.parametrize(
    ("variables", "seconds"),
    [
        ({}, 10),
        ({"MLFLOW_TRACK_SYSTEM_METRICS": "2.5"}, 2.5),
        ({"MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "false"}, 0),
        ({"MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "true"}, 10),
        ({"MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "3"}, 3),
        (
            {"MLFLOW_TRACK_SYSTEM_METRICS": "4", "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "false"},
            4,
        ),
    ],
)
def test_the_interval_is_ours_then_mlflows(
    variables: dict[str, str], seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert read_settings().system_metrics_seconds == seconds


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MLFLOW_TRACK_SYSTEM_METRICS", "often"),
        ("MLFLOW_TRACK_FINISH_TIMEOUT", "nan"),
        ("MLFLOW_TRACK_MIRROR_LINGER", "1h"),
        ("MLFLOW_TRACK_MIRROR_NICE", "low"),
    ],
)
def test_a_number_that_is_none_is_refused_at_the_start(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"{name} must be .*, got '{value}'"):
        mt.start_run()


class NVMLError(Exception):
    pass


class FakeNvml:
    """The driver of two GPUs, of which the second one tells no power."""

    NVMLError = NVMLError

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:
        return SimpleNamespace(used=20e9, total=80e9)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> SimpleNamespace:
        return SimpleNamespace(gpu=97)

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        if handle == 1:
            raise NVMLError("Not Supported")
        return 350_000

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: int) -> int:
        return 700_000


def test_gpus_are_sampled_where_the_driver_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())  # type: ignore[arg-type]
    sample = Machine(tmp_path).sample()
    gpus = {name: value for name, value in sample.items() if "/gpu_" in name}
    assert gpus == {
        "system/gpu_0_memory_usage_percentage": 25.0,
        "system/gpu_0_memory_usage_megabytes": 20000.0,
        "system/gpu_0_utilization_percentage": 97.0,
        "system/gpu_0_power_usage_watts": 350.0,
        "system/gpu_0_power_usage_percentage": 50.0,
        "system/gpu_1_memory_usage_percentage": 25.0,
        "system/gpu_1_memory_usage_megabytes": 20000.0,
        "system/gpu_1_utilization_percentage": 97.0,
    }


def test_the_names_are_those_of_mlflow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from mlflow.system_metrics.metrics import (
        cpu_monitor,
        disk_monitor,
        gpu_monitor,
        network_monitor,
    )

    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())  # type: ignore[arg-type]
    monkeypatch.setattr(gpu_monitor, "pynvml", FakeNvml(), raising=False)
    theirs: set[str] = set()
    for monitor in (
        cpu_monitor.CPUMonitor(),
        disk_monitor.DiskMonitor(),
        network_monitor.NetworkMonitor(),
        gpu_monitor.GPUMonitor(),
    ):
        monitor.collect_metrics()
        theirs |= {f"system/{name}" for name in monitor.aggregate_metrics()}
    assert set(Machine(tmp_path).sample()) == theirs


def test_a_machine_that_cannot_be_sampled_is_reported_once_and_training_continues(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(self: Machine) -> dict[str, float]:
        raise OSError("no /proc")

    monkeypatch.setattr(Machine, "sample", broken)
    monkeypatch.setenv("MLFLOW_TRACK_SYSTEM_METRICS", "0.01")
    with mt.start_run() as run:
        run.log_metrics({"a": 1.0}, step=0)
    log = (run.path / "training.log").read_text()
    assert len(re.findall("WARNING: no system metrics from here on: .*no /proc", log)) == 1
    assert mt.load_run(run.path).status == "FINISHED"


# --- a source that fails ---

SOURCES = {
    "CPU": ("cpu_percent", "system/cpu_utilization_percentage"),
    "memory": ("virtual_memory", "system/system_memory_usage_percentage"),
    "disk": ("disk_usage", "system/disk_usage_percentage"),
    "network": ("net_io_counters", "system/network_receive_megabytes"),
}


@pytest.mark.parametrize("source", SOURCES)
def test_a_source_that_fails_is_named_once_and_the_others_are_sampled(
    source: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import psutil

    def fail(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "no access to this source")

    function, missing = SOURCES[source]
    monkeypatch.setattr(psutil, function, fail)
    said: list[str] = []
    machine = Machine(tmp_path, said.append)
    samples = [machine.sample() for _ in range(3)]
    expected = {name for other, (_, name) in SOURCES.items() if other != source}
    assert all(expected <= set(sample) and missing not in sample for sample in samples)
    assert len(said) == 1 and f"lack {source}: PermissionError(13, 'no access" in said[0]


def test_a_source_that_works_again_is_sampled_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import psutil

    machine = Machine(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(psutil, "disk_usage", lambda path: 1 / 0)
        assert "system/disk_usage_percentage" not in machine.sample()
    assert "system/disk_usage_percentage" in machine.sample()


def test_a_broken_gpu_takes_neither_the_machine_nor_the_other_gpu_along(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class OneIsLost(FakeNvml):
        def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
            if index == 0:
                raise NVMLError("GPU is lost")
            return index

    monkeypatch.setitem(sys.modules, "pynvml", OneIsLost())  # type: ignore[arg-type]
    said: list[str] = []
    sample = Machine(tmp_path, said.append).sample()
    assert "system/gpu_1_utilization_percentage" in sample
    assert "system/gpu_0_utilization_percentage" not in sample
    assert "system/disk_usage_percentage" in sample
    assert said == ["WARNING: the system metrics lack GPU 0: NVMLError('GPU is lost')"]


def test_a_broken_driver_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(NVMLError=NVMLError))  # type: ignore[arg-type]
    said: list[str] = []
    assert "system/disk_usage_percentage" in Machine(tmp_path, said.append).sample()
    assert len(said) == 1 and "lack GPUs: AttributeError" in said[0]


# --- the memory of a container ---

GROUPS_1 = "5:cpu,cpuacct:/docker/ab\n4:memory:/docker/ab\n0::/docker/ab\n"
NO_LIMIT_1 = 9223372036854771712
GB = 10**9
CONTAINERS = {
    "version 2": (
        "0::/\n",
        {"memory.max": 4 * GB, "memory.current": 3 * GB, "memory.stat": f"inactive_file {GB}"},
        (2 * GB, 4 * GB),
    ),
    "version 2, a group around it is limited": (
        "0::/a.slice/b.scope\n",
        {
            "a.slice/b.scope/memory.max": "max",
            "a.slice/b.scope/memory.current": GB,
            "a.slice/memory.max": 4 * GB,
            "a.slice/memory.current": 2 * GB,
        },
        (2 * GB, 4 * GB),
    ),
    "version 2, two limits": (
        "0::/a/b\n",
        {
            "a/memory.max": 8 * GB,
            "a/memory.current": 7 * GB,
            "a/b/memory.max": 4 * GB,
            "a/b/memory.current": GB,
        },
        (GB, 4 * GB),
    ),
    "version 2, a name of outside": (
        "0::/../../kubepods/pod1/ab\n",
        {"memory.max": 4 * GB, "memory.current": 3 * GB},
        (3 * GB, 4 * GB),
    ),
    "version 1": (
        GROUPS_1,
        {
            "memory/docker/ab/memory.limit_in_bytes": 4 * GB,
            "memory/docker/ab/memory.usage_in_bytes": 3 * GB,
            "memory/docker/ab/memory.stat": f"inactive_file 7\ntotal_inactive_file {GB}",
        },
        (2 * GB, 4 * GB),
    ),
    "version 1, seen from inside": (
        GROUPS_1,
        {"memory/memory.limit_in_bytes": 4 * GB, "memory/memory.usage_in_bytes": 3 * GB},
        (3 * GB, 4 * GB),
    ),
    "version 1 without a limit": (
        GROUPS_1,
        {"memory/memory.limit_in_bytes": NO_LIMIT_1, "memory/memory.usage_in_bytes": GB},
        None,
    ),
    "version 2 without a limit": ("0::/\n", {"memory.max": "max", "memory.current": GB}, None),
    "a limit above the machine": ("0::/\n", {"memory.max": 99 * GB, "memory.current": GB}, None),
    "no limit of this kind": ("0::/\n", {}, None),
    "damaged": ("0::/\n", {"memory.max": "many", "memory.current": "-1"}, None),
    "no groups": ("", {}, None),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_memory_is_that_of_the_container(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import psutil

    groups, files, expected = CONTAINERS[name]
    for path, content in files.items():
        (tmp_path / "mount" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mount" / path).write_text(f"{content}\n")
    (tmp_path / "groups").write_text(groups)
    host = SimpleNamespace(used=16 * GB, total=64 * GB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: host)
    machine = Machine(tmp_path, cgroups=(tmp_path / "groups", tmp_path / "mount"))
    used, total = expected or (16 * GB, 64 * GB)
    sample = machine.sample()
    assert sample["system/system_memory_usage_megabytes"] == used / 1e6
    assert sample["system/system_memory_usage_percentage"] == 100 * used / total
