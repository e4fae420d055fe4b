"""What `run.checkpoints(...)` was given: one value, checked at birth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from mlflow_track.checkpoint.decision import Limits
from mlflow_track.checkpoint.policy.retention import Keep
from mlflow_track.checkpoint.policy.schedule import SavePolicy


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `run.checkpoints(...)` was given.

    Attributes:
        save: When to save; None saves only at `save()`.
        keep: What to keep; None keeps all.
        must_match: Shell patterns of params without which a resume makes no sense.
        free: Shell patterns of params that may differ and leave the continuation exact.
        limits: What ends the run.
    """

    save: SavePolicy | None = None
    keep: Keep | None = None
    must_match: Sequence[str] = ()
    free: Sequence[str] = ()
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if self.save is not None and not isinstance(self.save, SavePolicy):
            raise TypeError(f"save is {self.save!r}; it takes a policy, like mt.EverySteps(100)")
        if self.keep is not None and not isinstance(self.keep, Keep):
            raise TypeError(f"keep is {self.keep!r}; it takes mt.Keep(last=2)")
        for name in ("must_match", "free"):
            if isinstance(getattr(self, name), str):
                raise TypeError(f"{name} is a string; it takes a list of names")
