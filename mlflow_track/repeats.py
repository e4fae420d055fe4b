"""Removes rows of earlier attempts that a resumed run logs again."""

from __future__ import annotations

import threading

from mlflow_track.record.directory import RunDirectory
from mlflow_track.record.metrics import MetricsFile
from mlflow_track.record.rows import read_last_steps
from mlflow_track.record.uninterruptible import undisturbed


class RepeatedSteps:
    """Watches the rows of a run until it is known where it continues.

    Args:
        directory: The run's folder.
        metrics: Its rows; those in it now are of earlier attempts.
        is_resumed: Whether there was an earlier attempt at all.

    Attributes:
        may_come: Whether an earlier row may still have to give way.
    """

    def __init__(self, directory: RunDirectory, metrics: MetricsFile, *, is_resumed: bool) -> None:
        self._directory, self._metrics = directory, metrics
        self._earlier = metrics.positions()
        self._earlier_steps: dict[str, int] | None = None
        self._lock = threading.Lock()
        self.may_come = is_resumed

    def place_is_known(self) -> None:
        """A checkpoint was restored, or there is none: the rows have been rewound to the place."""
        self.may_come = False

    def give_way(self, names: tuple[str, ...], step: int) -> None:
        """Move earlier rows aside if `step` repeats one of them; call it before the row is written.

        A new metric at old steps, as an evaluation adds it to a run that has ended, repeats none.
        """
        if self._may_repeat(names, step):
            undisturbed(lambda: self._give_way(names, step))

    def _may_repeat(self, names: tuple[str, ...], step: int) -> bool:
        earlier = self._earlier_steps
        return earlier is None or any(earlier.get(name, -1) >= step for name in names)

    def _give_way(self, names: tuple[str, ...], step: int) -> None:
        with self._lock:
            if not self.may_come:
                return
            if self._earlier_steps is None:
                self._earlier_steps = read_last_steps(self._directory.metrics_path)
            if step > max(self._earlier_steps.values(), default=-1):
                self.may_come = False
            elif self._may_repeat(names, step):
                # Rows of this attempt stay: a metric that is new may have been logged before.
                self._directory.rewind(self._metrics, step - 1, before=self._earlier)
                self.may_come = False
