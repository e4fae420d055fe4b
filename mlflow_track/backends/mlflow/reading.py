"""Reads all that a tracking store has: its experiments, their runs, the files of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from mlflow.entities import Experiment, Run, ViewType

from mlflow_track.backends.mlflow.errors import translated
from mlflow_track.backends.mlflow.store import MlflowStore

_RUNS_AT_ONCE = 200
# Folders in folders; a broken artifact store may list them endlessly.
_MOST_DEPTH = 50


class StoredFile(NamedTuple):
    """An artifact of a run: its path with slashes, and its size in bytes."""

    name: str
    size: int


class StoreReader(MlflowStore):
    """A tracking store of which everything is read; see `MlflowStore`."""

    def experiments(self) -> list[Experiment]:
        """The experiments that are not deleted, the oldest first."""
        ask, order = self._client.search_experiments, ["creation_time ASC"]
        return list(_pages(ask, view_type=ViewType.ACTIVE_ONLY, order_by=order))

    def runs(self, experiment_id: str) -> Iterator[Run]:
        """The runs of an experiment that are not deleted, the oldest first."""
        return _pages(
            self._client.search_runs,
            experiment_ids=[experiment_id],
            run_view_type=ViewType.ACTIVE_ONLY,
            max_results=_RUNS_AT_ONCE,
            order_by=["attributes.start_time ASC"],
        )

    def run(self, run_id: str) -> Run:
        """A run as it is now."""
        with translated():
            return self._client.get_run(run_id)

    def files(self, run_id: str, folder: str = "", depth: int = 0) -> Iterator[StoredFile]:
        """The artifacts of a run in a folder and below it."""
        with translated():
            found: list[Any] = self._repository(run_id).list_artifacts(folder or None)
        for item in found:
            if not item.is_dir:
                yield StoredFile(item.path, item.file_size or 0)
            elif depth < _MOST_DEPTH and item.path != folder:
                yield from self.files(run_id, item.path, depth + 1)


def _pages(ask: Callable[..., Any], **question: Any) -> Iterator[Any]:
    """All that a store answers, page by page."""
    token = None
    while True:
        with translated():
            page = ask(**question, page_token=token)
        yield from page
        if not (token := page.token or None):
            return
