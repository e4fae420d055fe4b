"""Every run as a file of JSON lines, in its own folder or in MLFLOW_TRACK_JSONL_FOLDER."""

import json
from pathlib import Path
from typing import Any

from mlflow_track.backends.protocol import Backend, MetricPoint, Opened, RunRecord


class JsonlBackend(Backend):
    def open(self, run: RunRecord, known_id: str | None) -> Opened:
        folder = Path(self.options.get("folder") or run.path / "jsonl")
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{run.id}.jsonl"
        self._file = path.open("ab+", buffering=0)
        self._file.seek(0)
        size, position = 0, ""
        for line in self._file:
            if not line.endswith(b"\n"):
                break  # a kill cut it
            size += len(line)
            position = json.loads(line).get("position", position)
        self._file.truncate(size)
        return Opened(run.id, str(path), position)

    def describe(self, run: RunRecord) -> list[tuple[str, str]]:
        self._write([{"name": run.name, "params": run.params, "tags": run.tags}])
        return []

    def log_metrics(self, points: list[MetricPoint]) -> list[tuple[str, str]]:
        self._write([point._asdict() for point in points])
        return []

    def close(self, status: str, ended: float) -> None:
        self._write([{"status": status, "ended": ended}])

    def _write(self, entries: list[dict[str, Any]]) -> None:
        data = "".join(json.dumps(entry) + "\n" for entry in entries).encode()
        while data:
            data = data[self._file.write(data) :]
