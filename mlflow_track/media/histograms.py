"""Counts values in bins of the same width."""

from __future__ import annotations

import json
import operator
import sys
from typing import TYPE_CHECKING, Any

from mlflow_track.media.values import Encodable, take
from mlflow_track.wording import shown, type_error, typed, value_error

if TYPE_CHECKING:
    import numpy

_MOST_BINS = 4096
# The least width of a bin, of the largest value and at all: edges must be different floats.
_LEAST_RELATIVE_WIDTH, _LEAST_WIDTH = 2.0**-50, 1e-300
_LARGEST = sys.float_info.max


def histogram_of(values: Any, bins: Any, name: str) -> Encodable:
    """A copy of values, to become the JSON of a histogram.

    Args:
        values: See `Run.log_histogram`.
        bins: The number of bins.
        name: The histogram's name, for a message.

    Raises:
        TypeError, ValueError: The values are not numbers, or there are none; `bins` is invalid.
    """
    try:
        count = 0 if isinstance(bins, bool) else operator.index(bins)
    except TypeError:
        raise type_error("bins", "an integer", typed(bins)) from None
    if not 1 <= count <= _MOST_BINS:
        raise value_error("bins", f"an integer from 1 to {_MOST_BINS}", shown(bins))
    name = f"the values of histogram {shown(name)}"
    taken = take(values, name, "numbers: an array, a tensor or a list")
    if 0 in taken.shape:
        raise value_error(name, "one number or more", f"the shape {taken.shape}")
    return Encodable(taken.size_bytes, lambda: json.dumps(counted(taken.array(), count)).encode())


def counted(values: numpy.ndarray[Any, Any], bins: int) -> dict[str, Any]:
    """The histogram of some numbers.

    Args:
        values: Numbers of any shape.
        bins: The number of bins.

    Returns:
        "edges", one more than "counts", of the finite values; the number of those that are "nan",
        "inf" and "-inf". Without a finite value all counts are 0, from 0 to 1.
    """
    import numpy

    values = values.reshape(-1).astype("float64", copy=False)
    finite = values[numpy.isfinite(values)]
    # The distance of two floats may be more than the largest float.
    scale = 0.25 if numpy.abs(finite).max(initial=0) > _LARGEST / 4 else 1.0
    finite = finite * scale
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    least = bins * max(_LEAST_RELATIVE_WIDTH * max(abs(low), abs(high)), _LEAST_WIDTH)
    if low == high or high - low < least:
        pad = max(least, 0.5 if low == high else 0.0)
        low, high = low - pad, high + pad
    counts, edges = numpy.histogram(finite, bins, (low, high))
    infinite = values[numpy.isinf(values)]
    return {
        "edges": (edges.clip(-_LARGEST * scale, _LARGEST * scale) / scale).tolist(),
        "counts": counts.tolist(),
        "nan": int(numpy.isnan(values).sum()),
        "inf": int((infinite > 0).sum()),
        "-inf": int((infinite < 0).sum()),
    }
