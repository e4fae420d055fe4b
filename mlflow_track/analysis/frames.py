"""Metrics files as pandas DataFrames."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy
import pandas

from mlflow_track.record.rows import Piece, parse_columns, read_piece

# From pandas 3 on every float is read exactly, and asking for it is deprecated.
_PRECISION = "round_trip" if int(pandas.__version__.split(".")[0]) < 3 else None


def read_frame(path: Path) -> pandas.DataFrame:
    """One row per step, `time` and a float column per metric; see `LoadedRun.metrics`."""
    piece = _read(path)
    frame = _parse([piece])
    if frame is None:
        frame = _parse_damaged(piece)
    frame = frame.set_index("step")
    if frame.index.has_duplicates:
        return frame.groupby(level="step").last()
    return frame if frame.index.is_monotonic_increasing else frame.sort_index()


def read_frames(paths: Sequence[Path], keys: Sequence[str]) -> pandas.DataFrame:
    """All files in one frame, indexed by key and step; see `load_metrics`."""
    pieces = [_read(path) for path in paths]
    # Files with the same columns are parsed as one: a call of pandas per file costs more than
    # the numbers in it.
    alike: dict[tuple[str, ...], list[int]] = {}
    for number, piece in enumerate(pieces):
        alike.setdefault(piece.names, []).append(number)
    frames = []
    for numbers in alike.values():
        together = _parse([pieces[number] for number in numbers])
        if together is None:
            single = [_parse([pieces[n]]) for n in numbers]
            parts = [
                _parse_damaged(pieces[n]) if part is None else part
                for n, part in zip(numbers, single, strict=True)
            ]
            together = pandas.concat(parts)
            lengths = [len(part) for part in parts]
        else:
            lengths = [pieces[number].body.count(b"\n") for number in numbers]
        frames.append(together.assign(run=numpy.repeat(numbers, lengths)))
    joined = pandas.concat(frames) if frames else _parse_damaged(Piece((), b"", b"")).assign(run=[])
    if len(frames) > 1:
        joined = joined.sort_values("run", kind="stable")
    joined["run"] = pandas.Categorical.from_codes(joined["run"].astype(int), list(keys))
    joined = joined.set_index(["run", "step"])
    if joined.index.has_duplicates:
        return joined.groupby(level=["run", "step"], observed=True).last()
    return joined if joined.index.is_monotonic_increasing else joined.sort_index()


def _read(path: Path) -> Piece:
    try:
        return read_piece(path)
    except FileNotFoundError:
        return Piece((), b"", b"")


def _parse(pieces: Sequence[Piece]) -> pandas.DataFrame | None:
    """The rows of files with the same columns; None where a line of them is no row."""
    names = pieces[0].names
    body = b"".join(piece.body for piece in pieces)
    if not body:
        return None
    try:
        with warnings.catch_warnings():
            # With index_col=False, without which a long first row would become an index, a row
            # with too many cells is cut; that it was is only warned about.
            warnings.simplefilter("error", pandas.errors.ParserWarning)
            frame = pandas.read_csv(
                io.BytesIO(body),
                header=None,
                names=["step", "time", *names],
                float_precision=_PRECISION,
                na_values=["", "nan"],
                keep_default_na=False,
                dtype={"step": "int64", **dict.fromkeys(["time", *names], "float64")},
                index_col=False,
            )
    except (ValueError, OverflowError, pandas.errors.ParserWarning):
        return None
    is_whole = len(frame) == body.count(b"\n") and not frame["time"].isna().any()
    return frame if is_whole else None


def _parse_damaged(piece: Piece) -> pandas.DataFrame:
    columns = parse_columns(piece.names, piece.body)
    data = {"step": numpy.array(columns.steps, "int64"), "time": numpy.array(columns.times, float)}
    data |= {name: numpy.array(values, float) for name, values in columns.values.items()}
    return pandas.DataFrame(data)
