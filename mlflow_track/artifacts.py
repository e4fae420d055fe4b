"""Writes the artifacts folder of a run: every file is complete or absent."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_track.checks import artifact_path as checked_path
from mlflow_track.record import layout
from mlflow_track.record.files import make_folder, replace_file
from mlflow_track.wording import expected, shown

if TYPE_CHECKING:
    import numpy

_CHANNELS = (1, 3, 4)


class Artifacts:
    """Writes files below `root`, under names that cannot leave it.

    Args:
        root: The folder.
        require_open: Called before anything is written; raises where nothing can be any more.
        is_kept: Whether anything is written; arguments are checked in any case.
    """

    def __init__(
        self, root: Path, require_open: Callable[[], None], *, is_kept: bool = True
    ) -> None:
        self.root = root
        self._require_open = require_open
        self._is_kept = is_kept

    def copy(self, source: str | os.PathLike[str], folder: str | None) -> Path:
        source = Path(source)
        if not source.exists():
            raise FileNotFoundError(f"there is no file or folder {source} to log as an artifact")
        # Not source.name: that of `data/..` is `..`.
        name = os.path.basename(os.path.abspath(source))
        target = self._path(os.path.join(folder or "", name))
        if source.is_dir():
            self._copy_folder(source, target)
        else:
            self._copy_file(source, target)
        return target

    def copy_content(self, source: str | os.PathLike[str], folder: str | None) -> None:
        self._require_open()
        source = Path(source)
        if not source.is_dir():
            raise NotADirectoryError(
                expected("the source", "a folder", str(source))
                + "; log single files with log_artifact"
            )
        self._copy_folder(source, self._path(folder) if folder else self.root)

    def write_text(self, text: str, name: str) -> Path:
        if not isinstance(text, str):
            raise TypeError(expected(f"the text for {name!r}", "a string", type(text).__name__))
        return self._write(name, text.encode())

    def write_json(self, content: Any, name: str) -> Path:
        try:
            text = json.dumps(content, indent=2, ensure_ascii=False)
        except (TypeError, ValueError) as error:
            raise TypeError(
                expected(
                    f"the content for {name!r}",
                    "valid as JSON",
                    f"{type(content).__name__}: {error}",
                )
            ) from None
        return self._write(name, text.encode())

    def write_figure(self, figure: Any, name: str) -> Path:
        if not hasattr(figure, "savefig"):
            raise TypeError(
                expected(f"the figure for {name!r}", "a matplotlib Figure", type(figure).__name__)
            )
        buffer = io.BytesIO()
        kind = Path(name).suffix.lstrip(".") or "png"
        figure.savefig(buffer, format=kind, dpi=150, bbox_inches="tight")
        return self._write(name, buffer.getvalue())

    def write_image(self, image: Any, name: str) -> Path:
        kind = Path(name).suffix.lstrip(".").lower()
        if hasattr(image, "save") and hasattr(image, "mode"):
            buffer = io.BytesIO()
            image.save(buffer, format={"jpg": "jpeg", "": "png"}.get(kind, kind))
            return self._write(name, buffer.getvalue())
        if kind != "png":
            raise ValueError(
                expected("the name of an image of numbers", "one ending in .png", shown(name))
            )
        return self._write(name, _png(_pixels(image)))

    def write_table(self, data: Any, name: str) -> Path:
        columns = _columns(data, name)
        suffix = Path(name).suffix
        if suffix == ".json":
            return self.write_json(columns, name)
        if suffix != ".csv":
            raise ValueError(
                expected("the name of a table", "one ending in .csv or .json", shown(name))
            )
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
        return self._write(name, buffer.getvalue().encode())

    def _path(self, name: str) -> Path:
        self._require_open()
        return checked_path(self.root, name)

    def _write(self, name: str, content: bytes) -> Path:
        path = self._path(name)
        if self._is_kept:
            make_folder(path.parent)
            replace_file(path, content)
        return path

    def _copy_folder(self, source: Path, target: Path) -> None:
        for file in sorted(source.rglob("*")):
            if file.is_file():
                inside = (target / file.relative_to(source)).relative_to(self.root)
                self._copy_file(file, self._path(str(inside)))

    def _copy_file(self, source: Path, target: Path) -> None:
        if self._is_kept:
            _copy_file(source, target)


def _copy_file(source: Path, target: Path) -> None:
    make_folder(target.parent)
    temporary = layout.temporary(target)
    try:
        with open(source, "rb") as original, open(temporary, "xb") as copy:
            shutil.copyfileobj(original, copy, 1 << 20)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _pixels(image: Any) -> numpy.ndarray[Any, Any]:
    """An image as bytes, in rows, columns and channels.

    Raises:
        TypeError, ValueError: It is not one; the message has what was given.
    """
    import numpy

    if hasattr(image, "detach"):
        image = image.detach().cpu().float() if image.is_floating_point() else image.cpu()
    array = numpy.asarray(image)
    if array.dtype.kind not in "buif":
        raise TypeError(
            expected(
                "an image", "a PIL image, or an array or tensor of numbers", type(image).__name__
            )
        )
    if array.ndim == 3 and array.shape[-1] not in _CHANNELS and array.shape[0] in _CHANNELS:
        array = numpy.moveaxis(array, 0, -1)  # As torch has them.
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[-1] not in _CHANNELS or not array.size:
        raise ValueError(
            expected(
                "an image",
                "of rows, columns and 1, 3 or 4 channels",
                f"the shape {tuple(array.shape)}",
            )
        )
    most = 255 if array.dtype.kind in "ui" else 1
    if not (array.min() >= 0 and array.max() <= most):
        raise ValueError(
            expected(
                f"the numbers of an image of {array.dtype}",
                f"from 0 to {most}",
                f"{array.min()} to {array.max()}",
            )
        )
    if most == 1:
        array = numpy.rint(array.astype("float64") * 255)
    return array.astype("uint8")


def _png(pixels: numpy.ndarray[Any, Any]) -> bytes:
    """A PNG file (https://www.w3.org/TR/png-3/), every row without a filter."""
    height, width, channels = pixels.shape
    colour = {1: 0, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def _columns(data: Any, name: str) -> dict[str, list[Any]]:
    if hasattr(data, "to_dict") and hasattr(data, "columns"):
        data = data.to_dict(orient="list")
    if not isinstance(data, Mapping):
        raise TypeError(
            expected(
                f"the table for {name!r}",
                "a mapping of columns or a DataFrame",
                type(data).__name__,
            )
        )
    columns = {str(key): list(column) for key, column in data.items()}
    lengths = {key: len(column) for key, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(expected(f"the columns of {name!r}", "equally long", f"lengths {lengths}"))
    return columns
