"""A run's folder as Python objects and DataFrames, whoever wrote it and whether it still grows."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_track.record.directory import find_runs, true_status
from mlflow_track.record.files import read_json
from mlflow_track.record.metrics import read_header
from mlflow_track.record.params import read_config

if TYPE_CHECKING:
    import pandas

    from mlflow_track.checkpoint.store import Checkpoint


class LoadedRun:
    """A run as it lies on disk.

    Args:
        path: The run's folder.

    Raises:
        FileNotFoundError: There is no run.json in it.
        ValueError: run.json is damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.info: dict[str, Any] = read_json(self.path / "run.json")

    @property
    def id(self) -> str:
        return self.info["id"]

    @property
    def name(self) -> str:
        return self.info["name"]

    @property
    def experiment(self) -> str:
        return self.info["experiment"]

    @property
    def tags(self) -> dict[str, str]:
        return dict(self.info["tags"])

    @property
    def status(self) -> str:
        """RUNNING, FINISHED, FAILED or KILLED; also true after a SIGKILL."""
        return true_status(self.path, self.info)

    @property
    def seconds(self) -> float:
        """From the start to the end; of a run that has none, to its last sign of life."""
        ended = self.info.get("ended")
        if ended is None:
            files = [p for p in (self.path / "metrics.csv", self.path / "run.json") if p.exists()]
            ended = max(file.stat().st_mtime for file in files)
        return ended - self.info["created"]

    @cached_property
    def params(self) -> dict[str, Any]:
        """The params, nested as they were given."""
        return read_config(self.path)["params"]

    @property
    def checkpoints(self) -> list[Checkpoint]:
        """The committed checkpoints, newest last; their content is not looked at."""
        from mlflow_track.checkpoint.store import CheckpointStore

        return CheckpointStore(self.path / "checkpoints").list()

    def metrics(self, file: str = "metrics.csv") -> pandas.DataFrame:
        """One row per step (the index), `time` in Unix seconds, one float column per metric.

        Rows of the same step are merged; where a metric was logged twice the later value counts.
        """
        import pandas

        path = self.path / file
        if not path.exists():
            return pandas.DataFrame(columns=["time"], index=pandas.Index([], name="step"))
        names, _ = read_header(path)
        frame = pandas.read_csv(
            path,
            header=0,
            names=["step", "time", *names],
            # From pandas 3 on every float is read exactly, and asking for it is deprecated.
            float_precision="round_trip" if int(pandas.__version__.split(".")[0]) < 3 else None,
            na_values=["", "nan"],
            keep_default_na=False,
            on_bad_lines="skip",
            dtype=dict.fromkeys(["time", *names], float),
        )
        if not _ends_with_newline(path):
            frame = frame.iloc[:-1]
        frame = frame.astype({"step": "int64"}).set_index("step")
        if frame.index.has_duplicates:
            frame = frame.groupby(level="step").last()
        return frame

    def __repr__(self) -> str:
        return f"<LoadedRun {self.experiment}/{self.name} {self.status} {self.path}>"


def _ends_with_newline(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


def load_run(path: str | os.PathLike[str]) -> LoadedRun:
    """The run in the folder `path`; see `LoadedRun`."""
    return LoadedRun(path)


def load_runs(
    root: str | os.PathLike[str] = "runs", *, experiment: str | None = None
) -> list[LoadedRun]:
    """All runs under `root`, oldest first; folders whose run.json is damaged are passed over."""
    runs = []
    for path in find_runs(Path(root), experiment):
        try:
            runs.append(LoadedRun(path))
        except ValueError:
            continue
    return sorted(runs, key=lambda run: run.info.get("created", 0))
