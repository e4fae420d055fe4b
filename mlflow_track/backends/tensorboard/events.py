"""What a run logs, as events: scalars, images, texts and histograms, each with its position.

The position in the record is the `node_name` of a value, an old field that no page shows: so the
files say themselves how much of the record they hold.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import groupby, pairwise
from typing import Any

from mlflow_track.backends.protocol import MediaItem, MetricPoint
from mlflow_track.backends.tensorboard.description import END_TAG
from mlflow_track.backends.tensorboard.protos import (
    Event,
    Histogram,
    SessionLog,
    Summary,
    Value,
    event,
    shown_by,
)
from mlflow_track.record.files import legible

_METRIC = "metric"
_SYSTEM_PREFIX = "system/"
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_SIZE = struct.Struct(">II")
_RGB = 3


class Held:
    """What event files hold.

    Attributes:
        position, media_position: The position of the last point, and of the last other item, each
            "" without one.
        media: Tag and step of each image, text and histogram.
        last: The last event; empty without one.
    """

    def __init__(self) -> None:
        self.position = self.media_position = ""
        self.media: set[tuple[str, int]] = set()
        self.last = b""
        self._kinds: dict[str, str] = {}

    def add(self, data: bytes) -> None:
        """An event follows."""
        self.last = data
        found = Event.FromString(data)
        for value in found.summary.value:
            kind = _kind_of(value)
            self._kinds.setdefault(value.tag, kind)
            if kind == _METRIC:
                self.position = value.node_name or self.position
            elif value.node_name:
                self.media_position = value.node_name
                self.media.add((value.tag, found.step))

    def tag_of(self, key: str, kind: str = _METRIC) -> str:
        """The tag for a name: TensorBoard shows one kind of values under a tag, the first."""
        tag = legible(key)
        while self._kinds.setdefault(tag, kind) != kind:
            tag = f"{tag} ({kind})"
        return tag


def _kind_of(value: Any) -> str:
    held = value.WhichOneof("value")
    return {"simple_value": _METRIC, "image": "image", "histo": "histogram"}.get(held, "text")


def scalar_events(points: Sequence[MetricPoint], held: Held) -> list[bytes]:
    """Points as events: one for those of a step that were logged at once, in float32."""
    events = []
    for (step, timestamp), group in groupby(points, lambda point: (point.step, point.timestamp)):
        same = list(group)
        tagged = [(held.tag_of(point.key), point.value) for point in same]
        values = [Value(tag=tag, simple_value=value) for tag, value in tagged]
        values[-1].node_name = same[-1].position
        events.append(event(timestamp / 1000, values, step))
    return events


def media_event(item: MediaItem, content: bytes, held: Held) -> bytes:
    """An image, text or histogram as an event.

    Args:
        item: The item.
        content: That of its file.
        held: What the files hold.

    Raises:
        ValueError: The content is not of the item's kind.
    """
    tag = held.tag_of(item.key, item.kind)
    if item.kind == "image":
        if content[: len(_PNG)] != _PNG or len(content) < 24:
            raise ValueError("it is not a PNG")
        width, height = _PNG_SIZE.unpack_from(content, 16)
        image = Summary.Image(
            width=width, height=height, colorspace=_RGB, encoded_image_string=content
        )
        value = Value(tag=tag, image=image)
    elif item.kind == "histogram":
        value = Value(tag=tag, histo=_histogram(content))
    else:
        value = shown_by("text", tag, texts=[content.decode("utf-8", "replace")])
    value.node_name = item.position
    return event(item.timestamp / 1000, [value], item.step)


def place_of(item: MediaItem, held: Held) -> tuple[str, int]:
    """The tag and the step of an item, as `Held.media` has them."""
    return held.tag_of(item.key, item.kind), item.step


def _histogram(content: bytes) -> Any:
    try:
        parsed = json.loads(content)
        edges, counts = parsed["edges"], parsed["counts"]
        bins = list(zip(pairwise(edges), counts, strict=True))
        middles = [(left / 2 + right / 2, count) for (left, right), count in bins]
        return Histogram(
            min=edges[0],
            max=edges[-1],
            num=sum(counts),
            sum=sum(middle * count for middle, count in middles),
            sum_squares=sum(middle * middle * count for middle, count in middles),
            bucket_limit=edges[1:],
            bucket=counts,
        )
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise ValueError(f"it is not a histogram: {error}") from error


# --- rewinds ---


def is_restart(data: bytes) -> bool:
    """Whether an event is that of `protos.restart_event`."""
    return Event.FromString(data).session_log.status == SessionLog.START


def without_steps_after(events: Iterable[bytes], step: int) -> Iterator[bytes]:
    """The events that a rewind to `step` leaves: no later steps, and no end of the run.

    The machine's own metrics stay: no attempt logs them again.
    """
    for data in events:
        found = Event.FromString(data)
        tags = [value.tag for value in found.summary.value]
        is_of_machine = all(tag.startswith(_SYSTEM_PREFIX) for tag in tags)
        if tags and tags != [END_TAG] and (found.step <= step or is_of_machine):
            yield data


def without_media(events: Iterable[bytes], removed: Collection[tuple[str, int]]) -> Iterator[bytes]:
    """All that the run has logged, but for images, texts and histograms by tag and step."""
    for data in events:
        found = Event.FromString(data)
        values = found.summary.value
        is_removed = any(
            _kind_of(value) != _METRIC and (value.tag, found.step) in removed for value in values
        )
        if values and not is_removed:
            yield data
