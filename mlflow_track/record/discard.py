"""A record that keeps nothing: of the backend `off`, and of ranks that do not write.

It is the record in every other respect: it refuses the same arguments with the same messages.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow_track.record.append_file import Positions, Rewind, Rewinds, Span
from mlflow_track.record.device_values import Arriving, LateRows
from mlflow_track.record.directory import RunDirectory
from mlflow_track.record.info import new_content, to_info
from mlflow_track.record.metrics import MetricsFile

NAME = "off"
_MOST_KNOWN = 1024


class DiscardedRecord(RunDirectory):
    """A run that is in memory alone.

    Args:
        is_shown: Whether lines go to the console.
    """

    is_kept = False

    def __init__(self, experiment: str, tags: Mapping[str, str], *, is_shown: bool) -> None:
        self.path = Path(NAME)
        self._content = new_content(NAME, NAME, experiment, tags)
        self.info = to_info(self._content)
        self._config: dict[str, Any] = {"params": {}, "changes": []}
        self._prepare()
        self.is_shown = is_shown

    def open_metrics(self, tell: Callable[[str], None] | None = None) -> MetricsFile:
        return DiscardedMetrics()

    def read_params(self) -> dict[str, Any]:
        return self._config["params"]

    def _config_content(self) -> dict[str, Any]:
        return self._config

    def _store_config(self, config: Mapping[str, Any]) -> None: ...

    def append_log(self, line: str) -> None:
        self.require_open()

    def unpromised(self) -> list[str]:
        return []

    def _store(self, content: Mapping[str, Any]) -> None: ...


class DiscardedMetrics(MetricsFile):
    """Rows that go nowhere."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.known, self.alone = {}, {}
        self._late = LateRows()
        self._why_closed = ""

    def append(self, step: int, names: tuple[str, ...], values: Sequence[float | Arriving]) -> None:
        if self._why_closed:
            raise RuntimeError(self._why_closed)
        if len(self.known) >= _MOST_KNOWN:
            self.known.clear()
        self.known[names] = None

    def sync(self) -> None: ...

    def positions(self, *, are_kept: bool = False) -> Positions:
        return Positions(0, 0)

    def gone(self) -> str:
        return ""

    def close(self, why: str = "the metrics file is closed") -> None:
        self._forget(why)

    def abandon(self, why: str) -> None:
        self.lock = threading.RLock()
        self._forget(why)

    def plan_rewind(self, span: Span) -> Rewinds:
        return Rewinds(Rewind(0, []), Rewind(0, []))

    def _forget(self, why: str) -> None:
        self._why_closed, self.known = why, {}
