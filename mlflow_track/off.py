"""The backend `off`: the whole interface of a run, and nothing written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_track import checks
from mlflow_track.checkpoint.ranks import Ranks
from mlflow_track.record.console import say
from mlflow_track.record.metric import Directions
from mlflow_track.run import Run
from mlflow_track.stop import StopRequest

if TYPE_CHECKING:
    import pandas

    from mlflow_track.checkpoint.follower import Follower, NoCheckpoints


class OffRun(Run):
    """A run that checks what it is given, as every run does, and keeps none of it.

    Args:
        is_follower: This is a rank above 0 of a job whose rank 0 writes: it says nothing, and
            takes part in checkpoints.
    """

    def __init__(self, *, is_follower: bool = False) -> None:
        self._is_follower = is_follower
        self.id = self.name = "off"
        self.directory = Path("off")
        self._stop = StopRequest()
        self._directions = Directions({}, lambda changed: None, self.print)

    def log_metrics(self, metrics: Mapping[str, float], *, step: int) -> None:
        checks.step_number(step)
        for name, value in metrics.items():
            checks.metric_value(checks.metric_name(name), value)

    def define_metric(self, name: str, *, mode: str) -> None:
        claim = checks.metric_definition(name, mode)
        if not self._is_follower:
            self._directions.settle(f"define_metric {name}", [claim])

    def log_params(self, params: Any) -> None:
        checks.params(params)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        checks.tags(tags)

    def log_input(self, name: str, **description: Any) -> None: ...

    def log_artifact(self, path: Any, artifact_path: str | None = None) -> Path:
        return Path(path)

    def log_artifacts(self, folder: Any, artifact_path: str | None = None) -> None: ...

    def log_text(self, text: str, artifact_file: str) -> Path:
        return self._nowhere(artifact_file)

    def log_dict(self, content: Any, artifact_file: str) -> Path:
        return self._nowhere(artifact_file)

    def log_figure(self, figure: Any, artifact_file: str) -> Path:
        return self._nowhere(artifact_file)

    def log_table(self, data: Any, artifact_file: str) -> Path:
        return self._nowhere(artifact_file)

    def print(self, message: str, *, is_shown: bool = True) -> None:
        if is_shown and not self._is_follower:
            say(message)

    def checkpoints(self, **plan: Any) -> Follower | NoCheckpoints:
        self._stop.listen()
        from mlflow_track.checkpoint.decision import Plan
        from mlflow_track.checkpoint.follower import Follower, NoCheckpoints

        ranks = Ranks.here()
        if self._is_follower and not ranks.is_alone:
            return Follower(ranks, self._stop)
        Plan(save=plan.get("save"), keep=plan.get("keep")).resolved(self._directions)
        return NoCheckpoints(ranks, self._stop, self._directions)

    @property
    def should_stop(self) -> bool:
        self._stop.listen()
        return self._stop.reason is not None

    @property
    def url(self) -> None:
        return None

    def sync_status(self) -> None:
        return None

    def metrics(self) -> pandas.DataFrame:
        import pandas

        return pandas.DataFrame(columns=["time"], index=pandas.Index([], name="step"))

    def finish(self, status: str = "FINISHED", error: str | None = None) -> None:
        self._stop.ignore()

    def __exit__(self, *_: object) -> None:
        self.finish()

    def _nowhere(self, name: str) -> Path:
        return checks.artifact_path(self.directory, name)
