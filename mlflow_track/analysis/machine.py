"""How much of the machine a run used, from system_metrics.csv."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from mlflow_track.analysis.aggregates import MetricSummary
from mlflow_track.analysis.summary import Summary

_GPU = r"system/gpu_\d+_"


class Usage(NamedTuple):
    """Percentages are from 0 to 100, megabytes 10**6 bytes; None where nothing was sampled.

    Attributes:
        gpu_percentage, gpu_percentage_peak: The utilisation of the GPUs: its mean over samples and
            GPUs, and its largest value on any.
        gpu_memory_megabytes_peak: The most memory in use on one GPU.
        cpu_percentage: The mean utilisation of all cores.
        memory_megabytes_peak: The most memory in use on the machine, by all processes.
    """

    gpu_percentage: float | None = None
    gpu_percentage_peak: float | None = None
    gpu_memory_megabytes_peak: float | None = None
    cpu_percentage: float | None = None
    memory_megabytes_peak: float | None = None


def usage(run: Summary) -> Usage:
    """The usage of the machine during a run, of all processes on it."""
    gpu = _found(run, _GPU + "utilization_percentage")
    cpu = _found(run, "system/cpu_utilization_percentage")
    return Usage(
        _mean(gpu),
        _peak(gpu),
        _peak(_found(run, _GPU + "memory_usage_megabytes")),
        _mean(cpu),
        _peak(_found(run, "system/system_memory_usage_megabytes")),
    )


def usage_text(found: Usage) -> str:
    """As "GPU 83 % (peak 99 %), GPU memory peak 12.1 GB, CPU 40 %"; empty where all is None."""
    parts = []
    if found.gpu_percentage is not None:
        parts.append(f"GPU {found.gpu_percentage:.0f} % (peak {found.gpu_percentage_peak:.0f} %)")
    if found.gpu_memory_megabytes_peak is not None:
        parts.append(f"GPU memory peak {found.gpu_memory_megabytes_peak / 1000:.1f} GB")
    if found.memory_megabytes_peak is not None:
        parts.append(f"memory peak {found.memory_megabytes_peak / 1000:.1f} GB")
    if found.cpu_percentage is not None:
        parts.append(f"CPU {found.cpu_percentage:.0f} %")
    return ", ".join(parts)


def _found(run: Summary, pattern: str) -> list[MetricSummary]:
    return [
        metric
        for name, metric in run.system_metrics.items()
        if metric.finite and re.fullmatch(pattern, name)
    ]


def _mean(metrics: Iterable[MetricSummary]) -> float | None:
    means = [metric.mean for metric in metrics]
    return sum(means) / len(means) if means else None


def _peak(metrics: Iterable[MetricSummary]) -> float | None:
    return max((metric.max for metric in metrics), default=None)
