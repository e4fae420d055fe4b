"""The checkpoints of a rank above 0: it decides nothing, gives its generators, gets its state."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_track import checks
from mlflow_track.checkpoint.decision import agree, stop_words
from mlflow_track.checkpoint.early_stopping import settle_directions
from mlflow_track.checkpoint.ranks import Ranks
from mlflow_track.record.metric import Directions
from mlflow_track.stop import StopRequest

if TYPE_CHECKING:
    from mlflow_track.checkpoint.follower import Follower


from mlflow_track.checkpoint import randomness
from mlflow_track.checkpoint.disk.store import Checkpoint, CorruptCheckpointError
from mlflow_track.checkpoint.state import load


class Follower:
    """Has the methods of `Checkpointer`, each of which is a collective with the one on rank 0.

    Args:
        ranks: The job; this process is not its first.
        stop: What signals ask of this process.
    """

    def __init__(self, ranks: Ranks, stop: StopRequest) -> None:
        self._ranks, self._stop = ranks, stop
        stop.share()

    def step(
        self, step: int, state: Mapping[str, Any], metrics: Mapping[str, float] | None = None
    ) -> bool:
        code, is_saving = agree(self._ranks, self._stop, 0, False)
        if code:
            self._stop.agree(stop_words(code, ""))
        if is_saving:
            self._ranks.gather(randomness.capture())
        return is_saving

    def save(
        self, step: int, state: Mapping[str, Any], metrics: Mapping[str, float] | None = None
    ) -> None:
        self._ranks.gather(randomness.capture())

    def restore(self, state: MutableMapping[str, Any], step: int | None = None) -> int:
        answer = self._ranks.same(None)
        if "error" in answer:
            raise CorruptCheckpointError(f"rank 0 could not restore: {answer['error']}")
        if answer["next_step"]:
            name = Checkpoint(Path(answer["name"]), answer["next_step"] - 1)
            load.load_into(state, answer["state"], name, answer["classes"])
            randomness.restore_rank(answer["random"], self._ranks.rank)
        return answer["next_step"]

    def list(self) -> list[Checkpoint]:
        return []

    def wait(self) -> None: ...

    def close(self) -> None: ...


class NoCheckpoints:
    """Checkpoints of a run that writes nothing: nothing is saved, training begins at step 0.

    Args:
        ranks: The job, whose ranks stop together.
        stop: What signals ask of this process.
        directions: What the run says of its metrics.
    """

    def __init__(self, ranks: Ranks, stop: StopRequest, directions: Directions) -> None:
        self._ranks, self._stop, self._directions = ranks, stop, directions
        if not ranks.is_alone:
            stop.share()

    def restore(self, state: MutableMapping[str, Any], step: int | None = None) -> int:
        settle_directions(state, self._directions)
        return 0

    def step(
        self, step: int, state: Mapping[str, Any], metrics: Mapping[str, float] | None = None
    ) -> bool:
        checks.step_and_state(step, state)
        settle_directions(state, self._directions)
        checks.metric_numbers(metrics)
        code, _ = agree(self._ranks, self._stop, 0, False)
        if code:
            self._stop.agree(stop_words(code, ""))
        return False

    def save(
        self, step: int, state: Mapping[str, Any], metrics: Mapping[str, float] | None = None
    ) -> None: ...

    def wait(self) -> None: ...

    def list(self) -> list[Any]:
        return []
