"""Removes rows of earlier attempts that a resumed run logs again."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from mlflow_track.media.log import MediaLog
from mlflow_track.record.append_file import EarlierRow, Positions
from mlflow_track.record.directory import RunDirectory
from mlflow_track.record.metrics import MetricsFile
from mlflow_track.record.rows import read_last_steps
from mlflow_track.record.uninterruptible import undisturbed

_NOWHERE = 1 << 62
_MOST_CALLS = 10_000


class RepeatedSteps:
    """Watches the rows of a run until it is known where it continues.

    Args:
        directory: The run's folder.
        metrics: Its rows; those in it now are of earlier attempts.
        media: Its images, texts and histograms; the same holds for them.
        is_resumed: Whether there was an earlier attempt at all.

    Attributes:
        may_come: Whether an earlier row may still have to give way.
        is_settled: Whether it is known where the run continues, so that earlier rows count.
    """

    def __init__(
        self, directory: RunDirectory, metrics: MetricsFile, media: MediaLog, *, is_resumed: bool
    ) -> None:
        self._directory, self._metrics, self._media = directory, metrics, media
        self._earlier, self._earlier_media = metrics.positions(), media.position
        self._earlier_steps: dict[str, int] | None = None
        self._behind: list[EarlierRow] = []
        self._calls = 0
        self._lock = threading.Lock()
        self.may_come = is_resumed
        self.is_settled = not is_resumed

    def place_is_known(self) -> None:
        """A checkpoint was restored, or there is none: the rows have been rewound to the place."""
        self.may_come, self.is_settled = False, True

    def expect(self, behind: Sequence[EarlierRow]) -> None:
        """After a restore: rows that stay, such as an evaluation of the restored step."""
        self._behind, self._calls = [*behind], 0
        self.may_come = bool(behind)

    def give_way(self, names: tuple[str, ...], step: int) -> None:
        """Move earlier rows aside if `step` repeats one of them; call it before the row is written.

        A new metric at old steps, as an evaluation adds it to a run that has ended, repeats none.
        """
        if self.is_settled:
            # A loop that repeats some of them does it at its start.
            self._calls += 1
            self.may_come = bool(self._behind) and self._calls < _MOST_CALLS
            if any(row.step == step and row.names.issubset(names) for row in self._behind):
                undisturbed(lambda: self._give_way_behind(names, step))
        elif self._may_repeat(names, step):
            undisturbed(lambda: self._give_way(names, step))

    def _give_way_behind(self, names: tuple[str, ...], step: int) -> None:
        with self._lock:
            # From the last one on, so that the others stay where they are.
            for row in sorted(self._behind, key=lambda row: row.begin, reverse=True):
                if row.step != step or not row.names.issubset(names):
                    continue
                begin, end = Positions(row.begin, _NOWHERE), Positions(row.end, _NOWHERE)
                if row.is_long:
                    begin, end = Positions(_NOWHERE, row.begin), Positions(_NOWHERE, row.end)
                size = self._metrics.positions()
                self._directory.rewind(self._metrics, -1, end, begin)
                now = self._metrics.positions()
                gone = size.long - now.long if row.is_long else size.wide - now.wide
                self._behind.remove(row)
                self._behind = [
                    other._replace(begin=other.begin - gone, end=other.end - gone)
                    if other.is_long == row.is_long and other.begin > row.begin
                    else other
                    for other in self._behind
                ]

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
                self.place_is_known()
            elif self._may_repeat(names, step):
                # Rows of this attempt stay: a metric that is new may have been logged before.
                media = self._media.plan_rewind(step - 1, before=self._earlier_media)
                self._media.rewind(media)
                self._directory.rewind(
                    self._metrics, step - 1, before=self._earlier, last_kept=media.last_kept
                )
                self.place_is_known()
