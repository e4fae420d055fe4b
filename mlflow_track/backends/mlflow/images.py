"""Names images of steps as MLflow's client does, so that the run's page shows them in a slider.

MLflow finds them by their names: `images/<key>+step+<step>+timestamp+<ms>+<uuid>.png`, each with a
small twin `…+compressed.webp`. The uuid is made of the item, so that sending it again changes
nothing.
"""

from __future__ import annotations

import hashlib
import io
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from mlflow_track.backends.mlflow.server_run import ServerRun
from mlflow_track.backends.protocol import MediaItem, Refusals, Refused, RunRecord
from mlflow_track.record import layout
from mlflow_track.record.files import read_file
from mlflow_track.record.media.index import entries_of

IMAGES = "images"
# Tells the page of a run that there are some.
_LOGGED_IMAGES = {"mlflow.loggedImages": "True"}
_ILLEGAL = re.compile(r"[^a-zA-Z0-9_\-./ ]")
_MOST_KEY, _LONGEST_SIDE, _MOST_BYTES = 120, 256, 256 << 20


class ServerMedia:
    """Images, texts and histograms of one run at a server; what is not an image is an artifact."""

    def __init__(
        self,
        there: ServerRun,
        run: RunRecord,
        upload: Callable[[Path, str], None],
        remove: Callable[[str], None],
    ) -> None:
        self._there, self._run = there, run
        self._upload, self._remove = upload, remove
        # By key and step the names that are there, without their endings.
        self._stems: dict[str, set[str]] | None = None

    def log(self, items: Sequence[MediaItem]) -> Refusals:
        """See `Backend.log_media`."""
        refused: list[tuple[str, str]] = []
        for item in items:
            try:
                if item.kind == "image":
                    self._log_image(item)
                else:
                    self._upload(item.path, self._artifact(item))
            except Refused as error:
                refused.append((f"{item.kind} {item.key!r} at step {item.step}", str(error)))
        if any(item.kind == "image" for item in items):
            refused += self._there.set_tags(_LOGGED_IMAGES)
        return refused

    def remove(self, items: Sequence[MediaItem]) -> None:
        """See `Backend.remove_media`."""
        for item in items:
            if item.kind == "image":
                prefix = self._prefix(item)
                self._remove_stem(prefix, self._stem(prefix, item))
            else:
                self._remove(self._artifact(item))

    def _log_image(self, item: MediaItem) -> None:
        prefix = self._prefix(item)
        stem = self._stem(prefix, item)
        known = self._known().setdefault(prefix, set())
        for other in known - {stem}:
            # The image of this step that an earlier attempt has sent, maybe from elsewhere.
            self._remove_stem(prefix, other)
        known.add(stem)
        self._upload(item.path, f"{stem}.png")
        with TemporaryDirectory(prefix="mlflow-track-") as folder:
            twin = Path(folder) / "twin.webp"
            twin.write_bytes(_small(item.path))
            self._upload(twin, f"{stem}+compressed.webp")

    def _remove_stem(self, prefix: str, stem: str) -> None:
        for name in (f"{stem}.png", f"{stem}+compressed.webp"):
            self._remove(name)
        self._known().get(prefix, set()).discard(stem)

    def _known(self) -> dict[str, set[str]]:
        if self._stems is None:
            stems: dict[str, set[str]] = {}
            for name, is_folder in self._there.store.list_files(self._there.id, IMAGES):
                prefix, is_image, rest = name.partition("+timestamp+")
                if is_image and not is_folder:
                    stem = f"{prefix}{is_image}{re.sub(r'([+]compressed)?[.][a-z]+$', '', rest)}"
                    stems.setdefault(f"{prefix}+", set()).add(stem)
            self._stems = stems
        return self._stems

    def _prefix(self, item: MediaItem) -> str:
        key = self._there.name_of("images", item.key, self._keys, _legal).replace("/", "~")
        return f"{IMAGES}/{key}+step+{item.step}+"

    def _stem(self, prefix: str, item: MediaItem) -> str:
        own = f"{self._run.id}/{item.key}/{item.step}/{item.timestamp}"
        return f"{prefix}timestamp+{item.timestamp}+{uuid.uuid5(uuid.NAMESPACE_URL, own)}"

    def _keys(self) -> Iterator[str]:
        entries = entries_of(self._run.path / layout.MEDIA)
        return iter(dict.fromkeys(entry.key for entry in entries if entry.kind == "image"))

    def _artifact(self, item: MediaItem) -> str:
        return item.path.relative_to(self._run.path / layout.ARTIFACTS).as_posix()


def _legal(key: str) -> str:
    """The nearest key that MLflow's client would take; of a long one the beginning."""
    legal = _ILLEGAL.sub("_", key)
    if len(legal) > _MOST_KEY:
        end = hashlib.sha256(key.encode()).hexdigest()[:8]
        legal = f"{legal[: _MOST_KEY - 20]}-{end}"
    return legal


def _small(path: Path) -> bytes:
    """An image with its longer side scaled to 256 pixels, as MLflow shows it in the slider."""
    try:
        from PIL import Image
    except ImportError:
        raise Refused("MLflow's slider needs Pillow, which is not installed") from None
    data = read_file(path, _MOST_BYTES)
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            scale = _LONGEST_SIDE / max(image.size)
            width, height = (max(1, int(side * scale)) for side in image.size)
            has_alpha = "A" in image.mode or "transparency" in image.info
            buffer = io.BytesIO()
            small = image.convert("RGBA" if has_alpha else "RGB").resize((width, height))
            small.save(buffer, format="webp")
            return buffer.getvalue()
    except Exception as error:  # Pillow raises many kinds where a file is damaged.
        raise Refused(f"it is not a whole PNG: {type(error).__name__}: {error}") from error
