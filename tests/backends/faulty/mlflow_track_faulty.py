"""Destinations that do not work: one does not return from a call, one is never there."""

import time

from mlflow_track.backends.protocol import Backend, MetricPoint, Opened, RunRecord, Unavailable


class Down(Backend):
    def open(self, run: RunRecord, known_id: str | None) -> Opened:
        raise Unavailable(f"no route to the host with the token {self.options.get('token')}")


class Blocked(Backend):
    def open(self, run: RunRecord, known_id: str | None) -> Opened:
        return Opened(run.id, position="")

    def describe(self, run: RunRecord) -> list[tuple[str, str]]:
        return []

    def log_metrics(self, points: list[MetricPoint]) -> list[tuple[str, str]]:
        time.sleep(60)
        return []

    def close(self, status: str, ended: float) -> None:
        pass
