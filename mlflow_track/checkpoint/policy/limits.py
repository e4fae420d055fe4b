"""What ends a run beside its own loop, and the save of its last step."""

from __future__ import annotations

from dataclasses import dataclass

from mlflow_track.checkpoint.policy.history import Moment
from mlflow_track.checkpoint.policy.save_policy import Ask
from mlflow_track.checks import require_int


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits that end a run beside its own loop.

    Attributes:
        max_steps: Steps of the whole run, so that the last one is saved; None where unknown.
        deadline: Unix time by which the process must have ended.
        replay_step: Save at this step alone, and stop: a replay is checked against it.
    """

    max_steps: int | None = None
    deadline: float | None = None
    replay_step: int | None = None

    def __post_init__(self) -> None:
        if self.max_steps is not None:
            require_int("max_steps", self.max_steps, at_least=1)

    @property
    def last_step(self) -> int | None:
        """The last step of the run; None where unknown."""
        return None if self.max_steps is None else self.max_steps - 1

    def amended(self, asks: tuple[Ask, ...], now: Moment) -> tuple[Ask, ...]:
        """What asks for a save at `now`: the policies whose requests are `asks`, and these."""
        if self.replay_step is not None:
            return ()
        # No step comes to which a save that may wait could wait.
        if now.step == self.last_step and all(ask.may_wait for ask in asks):
            return (*asks, Ask("LastStep", "the last step", is_milestone=True))
        return asks
