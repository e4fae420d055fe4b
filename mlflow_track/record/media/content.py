"""Reads the files of media, each bounded and checked."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import msgspec
from msgspec import Struct

from mlflow_track.record.files import open_regular, read_file
from mlflow_track.record.schema import Count

_MOST_HISTOGRAM_BYTES, _MOST_IMAGE_BYTES = 1 << 20, 64 << 20


class Histogram(Struct, frozen=True, kw_only=True):
    """The values of a step, counted in bins.

    Attributes:
        edges: The ends of the bins, ascending; one more than counts.
        counts: The number of values in each bin.
        nan, inf, minus_inf: The number of values that are in no bin.
    """

    edges: tuple[float, ...]
    counts: tuple[Count, ...]
    nan: Count = 0
    inf: Count = 0
    minus_inf: Count = msgspec.field(default=0, name="-inf")


def read_histogram(path: Path) -> Histogram:
    """The histogram in a JSON file.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not a histogram.
    """
    data = read_file(path, _MOST_HISTOGRAM_BYTES)
    try:
        found = msgspec.json.decode(data, type=Histogram)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise ValueError(f"{path} is not a histogram: {error}") from None
    edges = found.edges
    if len(edges) != len(found.counts) + 1 or not all(map(math.isfinite, edges)):
        raise ValueError(f"{path} is not a histogram: it must have one edge more than counts")
    if len(edges) < 2 or any(low > high for low, high in itertools.pairwise(edges)):
        raise ValueError(f"{path} is not a histogram: its edges must ascend")
    return found


def read_text(path: Path, most_bytes: int) -> str:
    """The beginning of a text, with a sign where it is longer.

    Raises:
        OSError: It cannot be read.
    """
    with open_regular(path) as opened:
        data = opened.read(most_bytes + 1)
    cut = "\n…" if len(data) > most_bytes else ""
    return data[:most_bytes].decode(errors="replace") + cut


def read_image(path: Path) -> bytes:
    """The content of an image of at most 64 MiB.

    Raises:
        OSError, ValueError: It cannot be read, or is larger.
    """
    return read_file(path, _MOST_IMAGE_BYTES)
