"""Reads event files as people do: with TensorBoard's own EventAccumulator."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2

from mlflow_track.record import layout


class Scalar(NamedTuple):
    key: str
    step: int
    value: float
    time: float


def event_folder(path: Path) -> Path:
    """The one folder of event files in the run's folder `path`."""
    (folder,) = (path / layout.TENSORBOARD).iterdir()
    return folder


def accumulated(folder: Path) -> EventAccumulator:
    all_of_each = dict.fromkeys(("scalars", "tensors", "images", "histograms"), 0)
    return EventAccumulator(str(folder), all_of_each).Reload()


def scalars_in(folder: Path) -> list[Scalar]:
    """All scalars, but those of the machine."""
    found = accumulated(folder)
    return [
        Scalar(tag, event.step, event.value, event.wall_time)
        for tag in found.Tags()["scalars"]
        if not tag.startswith("system/")
        for event in found.Scalars(tag)
    ]


def texts_in(folder: Path) -> dict[str, str]:
    """The newest text of each tag."""
    found = accumulated(folder)
    return {
        tag: found.Tensors(tag)[-1].tensor_proto.string_val[0].decode()
        for tag in found.PluginTagToContent("text")
    }


def params_in(folder: Path) -> dict[str, object]:
    """The params of the HPARAMS page."""
    content = accumulated(folder).PluginTagToContent("hparams")["_hparams_/session_start_info"]
    params = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    return {name: getattr(held, held.WhichOneof("kind")) for name, held in params.items()}


def status_in(folder: Path) -> str:
    """The status on the HPARAMS page; "" without one."""
    contents = accumulated(folder).PluginTagToContent("hparams")
    if "_hparams_/session_end_info" not in contents:
        return ""
    content = contents["_hparams_/session_end_info"]
    end = plugin_data_pb2.HParamsPluginData.FromString(content).session_end_info
    return api_pb2.Status.Name(end.status)


def as_float32(value: float) -> float:
    with numpy.errstate(over="ignore"):
        return float(numpy.float32(value))
