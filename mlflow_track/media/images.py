"""Turns arrays, tensors and PIL images into PNG files, and figures of matplotlib into files."""

from __future__ import annotations

import io
import struct
import zlib
from typing import TYPE_CHECKING, Any

from mlflow_track.media.values import Encodable, take
from mlflow_track.wording import shown, type_error, value_error

if TYPE_CHECKING:
    import numpy

_CHANNELS = (1, 3, 4)
# The modes of PIL that PNG has; of the others those that have an equivalent in it.
_PNG_MODES = ("1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA")
_AS_PNG_MODE = {
    **dict.fromkeys(("RGBX", "CMYK", "YCbCr", "LAB", "HSV"), "RGB"),
    **dict.fromkeys(("RGBa", "PA"), "RGBA"),
    "La": "LA",
}


def is_pil(image: Any) -> bool:
    """Whether it is an image of PIL."""
    return hasattr(image, "save") and hasattr(image, "mode")


def image_of(image: Any, name: str) -> Encodable:
    """A copy of an image, to become a PNG file.

    Args:
        image: See `Run.log_image`.
        name: The file's name, for a message.

    Raises:
        TypeError, ValueError: It is not an image; the message has what was given.
    """
    name = f"the image for {shown(name)}"
    if is_pil(image):
        return _of_pil(image, name)
    taken = take(image, name, "a PIL image, or an array or tensor of numbers")
    is_channel_first = _channel_axis(taken.shape, name) == 0
    if taken.is_here:
        _require_range(taken.array(), name)

    def encode() -> bytes:
        array = taken.array()
        if not taken.is_here:
            _require_range(array, name)
        return _png(_pixels(array, is_channel_first))

    return Encodable(taken.size_bytes, encode)


def figure_of(figure: Any, name: str, kind: str = "png") -> Encodable:
    """A figure as a file; it is drawn here, as matplotlib allows for one thread only.

    Args:
        figure: A figure of matplotlib.
        name: The file's name, for a message.
        kind: The format: png, svg, pdf.

    Raises:
        TypeError: It is not a figure.
    """
    if not hasattr(figure, "savefig"):
        what = f"the figure for {shown(name)}"
        raise type_error(what, "a matplotlib Figure", type(figure).__name__)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=150, bbox_inches="tight")
    return Encodable(buffer.tell(), buffer.getvalue)


def _of_pil(image: Any, name: str) -> Encodable:
    mode = _AS_PNG_MODE.get(image.mode, image.mode)
    if mode not in _PNG_MODES:
        raise value_error(name, "of a mode that PNG has, like RGB or L", f"{image.mode}")
    if 0 in image.size:
        raise value_error(name, "of one pixel or more", f"the size {image.size}")
    copy = image.copy()

    def encode() -> bytes:
        buffer = io.BytesIO()
        (copy if copy.mode == mode else copy.convert(mode)).save(buffer, format="png")
        return buffer.getvalue()

    return Encodable(image.size[0] * image.size[1] * max(1, len(image.getbands())), encode)


def _channel_axis(shape: tuple[int, ...], name: str) -> int | None:
    """The axis of the channels: the last, or the first, as torch has them; None for two axes."""
    if 0 not in shape:
        if len(shape) == 2:
            return None
        if len(shape) == 3 and shape[2] in _CHANNELS:
            return 2
        if len(shape) == 3 and shape[0] in _CHANNELS:
            return 0
    what = "of rows, columns and 1, 3 or 4 channels"
    raise value_error(name, what, f"the shape {shape}")


def _require_range(array: numpy.ndarray[Any, Any], name: str) -> None:
    if array.dtype == "uint8" or array.dtype == "bool":
        return
    low, high, most = array.min(), array.max(), 255 if array.dtype.kind in "ui" else 1
    if not (low >= 0 and high <= most):
        what = f"{array.dtype} values from 0 to {most}"
        raise value_error(name, what, f"{low} to {high}")


def _pixels(array: numpy.ndarray[Any, Any], is_channel_first: bool) -> numpy.ndarray[Any, Any]:
    """An image as bytes, in rows, columns and channels."""
    import numpy

    if is_channel_first:
        array = numpy.moveaxis(array, 0, -1)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.dtype.kind not in "ui":
        array = numpy.rint(array.astype("float64") * 255)
    return array.astype("uint8")


def _png(pixels: numpy.ndarray[Any, Any]) -> bytes:
    """A PNG file (https://www.w3.org/TR/png-3/), every row without a filter."""
    import numpy

    height, width, channels = pixels.shape
    colour = {1: 0, 3: 2, 4: 6}[channels]
    rows = numpy.zeros((height, 1 + width * channels), "uint8")
    rows[:, 1:] = pixels.reshape(height, -1)
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows.data)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
