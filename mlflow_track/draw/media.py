"""The images, texts and histograms of runs over steps, as strips in a report."""

from __future__ import annotations

import base64
import contextlib
import io
from html import escape
from pathlib import Path

from mlflow_track.draw.page import Page, table
from mlflow_track.record.media.content import Histogram, read_histogram, read_image, read_text
from mlflow_track.record.media.index import MediaEntry, file_of, read_media
from mlflow_track.wording import count_text

# A report is sent by mail.
_MOST_RUNS, _MOST_KEYS, _MOST_STEPS = 12, 8, 8
_MOST_BYTES, _MOST_TEXT_BYTES = 6 << 20, 800
_SIDE, _MOST_PIXELS = 160, 100_000_000
_WIDTH, _HEIGHT = 160, 60
_TITLES = {"image": "Images", "text": "Texts", "histogram": "Histograms"}


def media_as_html(page: Page) -> str:
    """A table for each name: a row for each of the first runs, some steps side by side."""
    found: dict[tuple[str, str], dict[int, dict[int, MediaEntry]]] = {}
    for number in page.order[:_MOST_RUNS]:
        with contextlib.suppress(OSError):
            for entry in read_media(page.runs[number].path):
                by_run = found.setdefault((entry.kind, entry.key), {})
                by_run.setdefault(number, {})[entry.step] = entry
    strip = _Strip()
    parts = []
    for kind, title in _TITLES.items():
        keys = [key for of_kind, key in found if of_kind == kind]
        for key in keys[:_MOST_KEYS]:
            by_run = found[kind, key]
            steps = _some({step for entries in by_run.values() for step in entries})
            rows = []
            for number, entries in by_run.items():
                path = page.runs[number].path
                cells = "".join(f"<td>{strip.cell(path, entries.get(s))}</td>" for s in steps)
                rows.append(f"<tr><td>{page.label(number)}</td>{cells}</tr>")
            head = ["run", *(f"step {step}" for step in steps)]
            parts.append(f"<h3>{escape(key)}</h3>{table(head, rows)}")
        if len(keys) > _MOST_KEYS:
            more = f"{len(keys) - _MOST_KEYS} more"
            parts.append(f"<p>{escape(title)} of {more} names are in the runs' folders.</p>")
    if not parts:
        return ""
    note = page.limited(_MOST_RUNS)
    if strip.left_out:
        count = count_text(strip.left_out, "image")
        note += f"<p>{count} left out: the page would be too large.</p>"
    return f"<h2>Over steps</h2>{''.join(parts)}{note}"


class _Strip:
    """Makes cells; of images only as many as a page can hold."""

    def __init__(self) -> None:
        self.left_out = 0
        self._bytes = 0

    def cell(self, run: Path, entry: MediaEntry | None) -> str:
        if entry is None:
            return ""
        file = file_of(run, entry)
        if file is None:
            return "(its file is gone)"
        try:
            if entry.kind == "text":
                text = escape(read_text(file, _MOST_TEXT_BYTES))
                return f'<pre style="min-width:16rem;max-width:24rem">{text}</pre>'
            if entry.kind == "histogram":
                return histogram_as_svg(read_histogram(file))
            return self._image(file, f"{entry.key} at step {entry.step}")
        except (OSError, ValueError) as error:
            return f"(cannot be shown: {escape(str(error))})"

    def _image(self, file: Path, name: str) -> str:
        if self._bytes > _MOST_BYTES:
            self.left_out += 1
            return ""
        data = base64.b64encode(_small(read_image(file))).decode()
        self._bytes += len(data)
        return f'<img alt="{escape(name)}" src="data:image/webp;base64,{data}">'


def histogram_as_svg(histogram: Histogram) -> str:
    """A histogram as bars, with its ends below."""
    highest, width = max(*histogram.counts, 1), _WIDTH / len(histogram.counts)
    bars = "".join(
        f"M{number * width:.4g} {_HEIGHT}v{-_HEIGHT * count / highest:.4g}h{width:.4g}V{_HEIGHT}"
        for number, count in enumerate(histogram.counts)
        if count
    )
    counts = {"NaN": histogram.nan, "inf": histogram.inf, "-inf": histogram.minus_inf}
    odd = [f"{count} {name}" for name, count in counts.items() if count]
    ends = f"{histogram.edges[0]:.4g} … {histogram.edges[-1]:.4g}"
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}">'
        f'<path d="{bars}" fill="#4477aa"/></svg><br>{escape(", ".join([ends, *odd]))}'
    )


def _some(steps: set[int]) -> list[int]:
    """The first step, the last, and some between them, evenly by their order."""
    ordered = sorted(steps)
    count = min(_MOST_STEPS, len(ordered))
    if count < 2:
        return ordered
    return [ordered[round(n * (len(ordered) - 1) / (count - 1))] for n in range(count)]


def _small(data: bytes) -> bytes:
    """An image that is not larger than it is shown; raises ValueError where it is not a PNG."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.size[0] * image.size[1] > _MOST_PIXELS:
                raise ValueError(f"it has {image.size[0]} × {image.size[1]} pixels")
            has_alpha = "A" in image.mode or "transparency" in image.info
            small = image.convert("RGBA" if has_alpha else "RGB")
            small.thumbnail((_SIDE, _SIDE))
            buffer = io.BytesIO()
            small.save(buffer, format="webp")
            return buffer.getvalue()
    except Exception as error:  # Pillow raises many kinds where a file is damaged.
        raise ValueError(f"it is not a whole PNG: {error}") from None
