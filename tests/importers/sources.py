"""Sources of foreign runs for the tests: made in memory, or as other programs write them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mlflow_track.importers.source import ForeignFile, ForeignRun
from mlflow_track.series import Series

STARTED = 1_700_000_000.0


def foreign(identity: str = "a", **fields: Any) -> ForeignRun:
    """A run of two steps."""
    loss = Series("loss", [0, 1], [STARTED + 1, STARTED + 2], [0.5, 0.25])
    return ForeignRun(
        **{"identity": identity, "started": STARTED, "metrics": [loss], "name": identity, **fields}
    )


def artifact(name: str, content: bytes | OSError = b"x") -> ForeignFile:
    def save(target: Path) -> None:
        if isinstance(content, OSError):
            raise content
        target.write_bytes(content)

    return ForeignFile(name, repr(content), save)


def lightning(folder: Path, rows: str, hparams: str | None = None) -> Path:
    """A folder of Lightning's CSVLogger; its lines end as there."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.csv").write_bytes(rows.replace("\n", "\r\n").encode())
    if hparams is not None:
        (folder / "hparams.yaml").write_text(hparams)
    return folder


def content_of(root: Path, but: Callable[[Path], bool] = lambda path: False) -> Mapping[str, Any]:
    """Every file below a folder, with its time."""
    return {
        str(path.relative_to(root)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(root.rglob("*"))
        if path.is_file() and not but(path)
    }
