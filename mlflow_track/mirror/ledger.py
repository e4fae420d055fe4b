"""What the parts of the mirror share: the run's folder, the server, and what it acknowledged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow_track.backends.protocol import Sink
from mlflow_track.mirror.state import MirrorState
from mlflow_track.record.info import read_info


class Ledger:
    """One run on its way to one server.

    Args:
        path: The run's folder.
        sink: The server.
        tracking_uri: Its name, without a password.

    Attributes:
        state: What the server has acknowledged; `save` writes it down.
    """

    def __init__(self, path: Path, sink: Sink, tracking_uri: str) -> None:
        self.path = path
        self.sink = sink
        self.tracking_uri = tracking_uri
        self.state = MirrorState.read(path)

    @property
    def run_id(self) -> str:
        return self.state.run_id

    def save(self) -> None:
        self.state.write(self.path)

    def read_info(self) -> dict[str, Any]:
        """run.json as it is now; see `record.info.read_info`."""
        return read_info(self.path)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Send the tags that are not at the server yet."""
        changed = {k: v for k, v in tags.items() if self.state.tags.get(k) != v}
        if changed:
            self.note_refused(self.sink.set_tags(self.run_id, changed))
            self.state.tags |= changed
            self.save()

    def remove_tag(self, name: str) -> None:
        if name in self.state.tags:
            self.sink.remove_tag(self.run_id, name)
            del self.state.tags[name]
            self.save()

    def note_refused(self, refused: list[tuple[str, str]]) -> None:
        for item, why in refused:
            self.state.refuse([item], why)

    def last_sign_of_life(self) -> float:
        """When something was last written, in Unix seconds."""
        files = (self.path / "metrics.csv", self.path / "run.json")
        return max(file.stat().st_mtime for file in files if file.exists())
