"""TensorBoard's protocol buffers, and the parts that events are made of."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from mlflow_track.extras import extra
from mlflow_track.record.files import legible

with extra("tensorboard"):
    # The classes in these modules are made when they are imported: no checker of types sees them.
    _event: Any = import_module("tensorboard.compat.proto.event_pb2")
    _summary: Any = import_module("tensorboard.compat.proto.summary_pb2")
    _tensor: Any = import_module("tensorboard.compat.proto.tensor_pb2")
    _tensor_shape: Any = import_module("tensorboard.compat.proto.tensor_shape_pb2")
    types: Any = import_module("tensorboard.compat.proto.types_pb2")
    hparams_api: Any = import_module("tensorboard.plugins.hparams.api_pb2")
    hparams_data: Any = import_module("tensorboard.plugins.hparams.plugin_data_pb2")

Event, SessionLog = _event.Event, _event.SessionLog
Summary, Value, Metadata = _summary.Summary, _summary.Summary.Value, _summary.SummaryMetadata
Histogram = _summary.HistogramProto
TENSOR_CLASS: int = _summary.DATA_CLASS_TENSOR
Tensor = _tensor.TensorProto


def event(wall_time: float, values: Sequence[Any], step: int = 0) -> bytes:
    """An event with values of type `Value`; the time is in Unix seconds."""
    summary = Summary(value=values)
    return Event(wall_time=wall_time, step=step, summary=summary).SerializeToString()


def first_event(wall_time: float) -> bytes:
    """The event that every file begins with."""
    return Event(wall_time=wall_time, file_version="brain.Event:2").SerializeToString()


def restart_event(wall_time: float) -> bytes:
    """The event after which a reader forgets what it has read of steps past 0."""
    log = SessionLog(status=SessionLog.START)
    return Event(wall_time=wall_time, step=1, session_log=log).SerializeToString()


def shown_by(plugin: str, tag: str, content: bytes = b"", texts: Sequence[str] = ()) -> Any:
    """A value that a page of TensorBoard shows, with texts, or nothing but content for the page."""
    data = Metadata.PluginData(plugin_name=plugin, content=content)
    dims = [_tensor_shape.TensorShapeProto.Dim(size=len(texts))]
    tensor = Tensor(
        dtype=types.DT_STRING if texts else types.DT_FLOAT,
        tensor_shape=_tensor_shape.TensorShapeProto(dim=dims),
        string_val=[legible(text).encode() for text in texts],
    )
    return Value(
        tag=tag, metadata=Metadata(plugin_data=data, data_class=TENSOR_CLASS), tensor=tensor
    )
