"""Images, texts and histograms of foreign runs, under the names that a live run gives them."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import numpy

from mlflow_track import checks
from mlflow_track.importers.source import ForeignFile, ForeignMedia, made_file
from mlflow_track.record import layout
from mlflow_track.record.files import legible
from mlflow_track.record.media.index import MediaEntry
from mlflow_track.wording import shown, value_error


def placed_media(
    media: Iterable[ForeignMedia], tell: Callable[[str], None]
) -> dict[str, tuple[MediaEntry, ForeignFile]]:
    """Each item of a run, by its file below artifacts/.

    Args:
        media: The items, in the order in which they were logged: of those of the same kind, key and
            step the last counts.
        tell: Takes a readable line about what is left out.
    """
    newest = {(item.kind, item.key, item.step): item for item in media}
    placed: dict[str, tuple[MediaEntry, ForeignFile]] = {}
    root = Path("/", layout.ARTIFACTS)
    for number, item in enumerate(newest.values()):
        try:
            ending, step = layout.MEDIA_ENDINGS[item.kind][0], checks.step_number(item.step)
            folder = checks.artifact_path(root, legible(item.key)).relative_to(root)
            file = _free(folder, step, ending, placed)
            key = folder.as_posix()
            entry = MediaEntry(
                number=number, kind=item.kind, key=key, step=step, time=item.time, file=file
            )
        except (TypeError, ValueError) as error:
            tell(f"left out {item.kind} {shown(item.key)} of step {item.step}: {error}")
            continue
        placed[file] = entry, ForeignFile(file, item.version, item.save)
    return placed


def media_of(kind: str, key: str, step: int, time: float, content: bytes) -> ForeignMedia:
    """An item whose file has this content; see `ForeignMedia`."""
    return ForeignMedia(kind, key, step, time, *made_file(key, content)[1:])


def histogram_json(edges: Any, counts: Any) -> bytes:
    """The content of a histogram's file.

    Raises:
        ValueError: They are not numbers, or there is not one edge more than counts.
    """
    try:
        edges, counts = (numpy.asarray(column, dtype="float64") for column in (edges, counts))
    except (TypeError, ValueError) as error:
        raise ValueError(f"a histogram has edges or counts that are not numbers: {error}") from None
    if edges.ndim != 1 or counts.ndim != 1 or len(edges) != len(counts) + 1:
        raise value_error(
            "a histogram", "one edge more than counts", f"{edges.size} and {counts.size}"
        )
    if not (numpy.isfinite(edges).all() and numpy.isfinite(counts).all()):
        raise ValueError("a histogram has edges or counts that are not finite")
    whole = numpy.rint(counts)
    counted = (whole.astype("int64") if (whole == counts).all() else counts).tolist()
    return json.dumps({"edges": edges.tolist(), "counts": counted}).encode()


def _free(folder: Path, step: int, ending: str, taken: Collection[str]) -> str:
    number = 1
    while (name := (folder / layout.media_file(step, ending, number)).as_posix()) in taken:
        number += 1
    return name
