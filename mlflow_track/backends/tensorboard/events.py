"""The events that TensorBoard reads: scalars, text, and what its HPARAMS page shows."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from itertools import groupby
from typing import Any

from mlflow_track.backends.protocol import MetricPoint, RunRecord
from mlflow_track.extras import extra
from mlflow_track.record.params import flatten, param_text
from mlflow_track.record.schema import FINISHED, RUNNING
from mlflow_track.record.tags import context_tags, record_tags

with extra("tensorboard"):
    # The classes in these modules are made when they are imported: no checker of types sees them.
    _event: Any = import_module("tensorboard.compat.proto.event_pb2")
    _summary: Any = import_module("tensorboard.compat.proto.summary_pb2")
    _tensor: Any = import_module("tensorboard.compat.proto.tensor_pb2")
    _tensor_shape: Any = import_module("tensorboard.compat.proto.tensor_shape_pb2")
    _types: Any = import_module("tensorboard.compat.proto.types_pb2")
    _hparams_api: Any = import_module("tensorboard.plugins.hparams.api_pb2")
    _hparams_data: Any = import_module("tensorboard.plugins.hparams.plugin_data_pb2")

_Event, _SessionLog = _event.Event, _event.SessionLog
_Summary, _Metadata = _summary.Summary, _summary.SummaryMetadata
_Tensor = _tensor.TensorProto
_SYSTEM_PREFIX = "system/"
_SESSION_START = "_hparams_/session_start_info"
_SESSION_END = "_hparams_/session_end_info"
# A number that every reader of JSON has exactly.
_MOST_INTEGER = 2**53
_STATUSES = {FINISHED: _hparams_api.STATUS_SUCCESS, RUNNING: _hparams_api.STATUS_RUNNING}


def first_event(wall_time: float) -> bytes:
    """The event that every file begins with."""
    return _Event(wall_time=wall_time, file_version="brain.Event:2").SerializeToString()


def restart_event(wall_time: float) -> bytes:
    """The event after which a reader forgets what it has read of steps past 0."""
    log = _SessionLog(status=_SessionLog.START)
    return _Event(wall_time=wall_time, step=1, session_log=log).SerializeToString()


def is_restart(data: bytes) -> bool:
    """Whether an event is one of `restart_event`."""
    return _Event.FromString(data).session_log.status == _SessionLog.START


def scalar_events(points: Sequence[MetricPoint]) -> list[bytes]:
    """Points as events: one for those of a step that were logged at once, in float32.

    The position of the last point of an event is its `node_name`, which no page shows.
    """
    events = []
    for (step, timestamp), group in groupby(points, lambda point: (point.step, point.timestamp)):
        held = list(group)
        values = [
            _Summary.Value(tag=legible(point.key), simple_value=point.value) for point in held
        ]
        values[-1].node_name = held[-1].position
        events.append(_as_bytes(timestamp / 1000, values, step))
    return events


def position_of(data: bytes) -> str:
    """The position in the record that an event has brought; "" where it has none."""
    values = _Event.FromString(data).summary.value
    return values[-1].node_name if values else ""


def without_steps_after(events: Iterable[bytes], step: int) -> Iterator[bytes]:
    """The events that a rewind to `step` leaves: no later steps, and no end of the run.

    The machine's own metrics stay: no attempt logs them again.
    """
    for data in events:
        event = _Event.FromString(data)
        if event.HasField("file_version") or event.HasField("session_log"):
            continue
        tags = [value.tag for value in event.summary.value]
        is_of_machine = all(tag.startswith(_SYSTEM_PREFIX) for tag in tags)
        if tags != [_SESSION_END] and (event.step <= step or is_of_machine):
            yield data


def description(run: RunRecord, end: Sequence[bytes]) -> list[bytes]:
    """What describes a run: its params for HPARAMS, config, tags and datasets as text.

    Args:
        run: The run.
        end: The event of its end, where it has one.
    """
    start = _hparams_data.SessionStartInfo(start_time_secs=run.created)
    for name, value in flatten(run.config.params).items():
        held = start.hparams[legible(name)]
        if isinstance(value, bool):
            held.bool_value = value
        elif _is_number(value):
            held.number_value = value
        else:
            held.string_value = legible(param_text(value))
    values = [_hparams(_SESSION_START, session_start_info=start)]
    config = json.dumps(run.config.params, indent=4, ensure_ascii=False)
    values.append(_text("run/config", "".join(f"    {line}\n" for line in config.splitlines())))
    tags = {**context_tags(run), **record_tags(run, run.config), **run.tags}
    values.append(_text("run/tags", _table("tag", "value", tags)))
    if run.inputs:
        sums = {f"{item.name} ({item.source or item.context})": item.sha256 for item in run.inputs}
        values.append(_text("run/datasets", _table("dataset", "sha256", sums)))
    return [first_event(run.created), _as_bytes(run.created, values), *end]


def end_event(status: str, wall_time: float) -> bytes:
    """The event with which HPARAMS shows how a run ended.

    Args:
        status: That of the run; of a run that was continued RUNNING.
        wall_time: The end; the start of the attempt where it is running.
    """
    end = _hparams_data.SessionEndInfo(status=_STATUSES.get(status, _hparams_api.STATUS_FAILURE))
    if status != RUNNING:
        end.end_time_secs = wall_time
    return _as_bytes(wall_time, [_hparams(_SESSION_END, session_end_info=end)])


def legible(text: str) -> str:
    """The text as UTF-8 has it: half a surrogate becomes an escape."""
    return text.encode("utf-8", "backslashreplace").decode()


def _as_bytes(wall_time: float, values: Sequence[Any], step: int = 0) -> bytes:
    summary = _Summary(value=values)
    return _Event(wall_time=wall_time, step=step, summary=summary).SerializeToString()


def _hparams(tag: str, **content: Any) -> Any:
    data = _hparams_data.HParamsPluginData(version=0, **content)
    # Nothing but the metadata is read.
    nothing = _Tensor(dtype=_types.DT_FLOAT, tensor_shape=_shape(0))
    return _Summary.Value(
        tag=tag,
        metadata=_metadata("hparams", data.SerializeToString(deterministic=True)),
        tensor=nothing,
    )


def _text(tag: str, markdown: str) -> Any:
    content = [legible(markdown).encode()]
    tensor = _Tensor(dtype=_types.DT_STRING, string_val=content, tensor_shape=_shape(1))
    return _Summary.Value(tag=tag, metadata=_metadata("text"), tensor=tensor)


def _metadata(plugin: str, content: bytes = b"") -> Any:
    data = _Metadata.PluginData(plugin_name=plugin, content=content)
    tensor = _summary.DATA_CLASS_TENSOR
    return _Metadata(plugin_data=data, data_class=tensor)


def _shape(*sizes: int) -> Any:
    dims = [_tensor_shape.TensorShapeProto.Dim(size=size) for size in sizes]
    return _tensor_shape.TensorShapeProto(dim=dims)


def _table(name: str, value: str, rows: Mapping[str, str]) -> str:
    lines = [(name, value), ("---", "---"), *sorted(rows.items())]
    return "".join(f"| {_cell(first)} | {_cell(second)} |\n" for first, second in lines)


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", "<br>")


def _is_number(value: Any) -> bool:
    if isinstance(value, int):
        return abs(value) <= _MOST_INTEGER
    return isinstance(value, float) and math.isfinite(value)
