"""A folder of records as a read-only tracking store of MLflow: for its UI and for its client.

`mlflow-track:///path/of/runs` is a tracking URI like any other once this package is installed. What
is asked for is read from the records at that moment; nothing is written, and nothing is imported.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
from pathlib import Path
from typing import Any

from mlflow.entities import Experiment, Metric, Run, ViewType
from mlflow.entities.metric import MetricWithRunId
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INVALID_PARAMETER_VALUE,
    PERMISSION_DENIED,
    RESOURCE_DOES_NOT_EXIST,
)
from mlflow.store.entities import PagedList
from mlflow.store.tracking import SEARCH_MAX_RESULTS_DEFAULT, SEARCH_MAX_RESULTS_THRESHOLD
from mlflow.store.tracking.abstract_store import AbstractStore
from mlflow.utils.search_utils import SearchExperimentsUtils, SearchUtils

from mlflow_track.analysis.histories import History, HistoryCache, sampled_steps
from mlflow_track.analysis.summary import Summary, SummaryCache
from mlflow_track.record import layout
from mlflow_track.ui.address import experiment_id_of, path_of
from mlflow_track.ui.entities import best_of, experiment_of, metrics_of, run_of
from mlflow_track.wording import expected

_logger = logging.getLogger("mlflow_track")
# What MLflow's requests take as the id of a run.
_RUN_ID = re.compile(r"[a-zA-Z0-9][\w\-]{0,255}")
# How the names of MLflow's methods that write begin.
_WRITING_VERBS = tuple(
    "add_ archive_ attach_ create_ delete_ detach_ finalize_ link_ log_ record_ register_ remove_ "
    "rename_ restore_ set_ start_ unlink_ update_ upsert_".split()
)


class RecordStore(AbstractStore):
    """The tracking store over the records in the folder `mlflow-track:///path/of/runs`."""

    def __init__(self, store_uri: str, artifact_uri: str | None = None) -> None:
        super().__init__()
        try:
            self.root = path_of(store_uri)
        except ValueError as error:
            raise MlflowException(str(error), INVALID_PARAMETER_VALUE) from None
        self._lock = threading.Lock()
        self._summaries = SummaryCache()
        self._histories = HistoryCache()
        # The entity of each summary, as long as the summary and its checkpoints are the same.
        self._runs: dict[str, tuple[Summary, int, Run]] = {}
        self._folders: dict[str, Path] = {}
        self._said: set[str] = set()

    # --- experiments ---

    def search_experiments(
        self,
        view_type: int = ViewType.ACTIVE_ONLY,
        max_results: int = SEARCH_MAX_RESULTS_DEFAULT,
        filter_string: str | None = None,
        order_by: list[str] | None = None,
        page_token: str | None = None,
    ) -> PagedList[Experiment]:
        _check_max_results(max_results)
        found = [] if view_type == ViewType.DELETED_ONLY else self._experiments()
        found = SearchExperimentsUtils.filter(found, filter_string)
        found = SearchExperimentsUtils.sort(
            found, order_by or ["last_update_time DESC", "experiment_id ASC"]
        )
        return PagedList(*SearchUtils.paginate(found, page_token, max_results))

    def get_experiment(self, experiment_id: str) -> Experiment:
        for experiment in self._experiments():
            if experiment.experiment_id == str(experiment_id):
                return experiment
        raise MlflowException(
            f"there is no experiment with id {experiment_id} in {self.root}",
            RESOURCE_DOES_NOT_EXIST,
        )

    def get_experiment_by_name(self, experiment_name: str) -> Experiment | None:
        found = (e for e in self._experiments() if e.name == experiment_name)
        return next(found, None)

    def filter_active_experiment_ids(self, experiment_ids: list[str]) -> list[str]:
        known = {experiment.experiment_id for experiment in self._experiments()}
        return [experiment_id for experiment_id in experiment_ids if experiment_id in known]

    def _experiments(self) -> list[Experiment]:
        by_name: dict[str, list[Summary]] = {}
        for summary in self._scan():
            by_name.setdefault(summary.experiment, []).append(summary)
        return [experiment_of(self.root, runs) for runs in by_name.values()]

    # --- runs ---

    def get_run(self, run_id: str) -> Run:
        return self._run_of(self._summary(run_id))

    def _search_runs(
        self,
        experiment_ids: list[str],
        filter_string: str | None,
        run_view_type: int,
        max_results: int,
        order_by: list[str] | None,
        page_token: str | None,
    ) -> tuple[list[Run], Any]:
        _check_max_results(max_results)
        # Also where nothing is found, a filter or an order that is wrong is an error.
        SearchUtils.parse_search_filter(filter_string)
        for clause in order_by or []:
            SearchUtils.parse_order_by_for_search_runs(clause)
        if run_view_type == ViewType.DELETED_ONLY:
            return [], None
        wanted = set(map(str, experiment_ids))
        found = [
            self._run_of(summary)
            for summary in self._scan()
            if experiment_id_of(summary.experiment) in wanted
        ]
        found = SearchUtils.sort(SearchUtils.filter(found, filter_string), order_by)
        return SearchUtils.paginate(found, page_token, max_results)

    # --- metrics ---

    def get_metric_history(
        self,
        run_id: str,
        metric_key: str,
        max_results: int | None = None,
        page_token: str | None = None,
    ) -> PagedList[Metric]:
        history = self._history(self._summary(run_id), metric_key)
        points = list(metrics_of(metric_key, *history))
        if max_results is None:
            return PagedList(points, None)
        return PagedList(*SearchUtils.paginate(points, page_token, max_results))

    def get_metric_history_bulk_interval(
        self,
        run_ids: list[str],
        metric_key: str,
        max_results: int,
        start_step: int | None,
        end_step: int | None,
    ) -> list[MetricWithRunId]:
        if (start_step is None) != (end_step is None):
            raise MlflowException.invalid_parameter_value(
                "start_step and end_step must be given together"
            )
        histories = [self._history(self._summary(run_id), metric_key) for run_id in run_ids]
        most = max(1, max_results)
        steps = sampled_steps([history.steps for history in histories], most, start_step, end_step)
        points: list[MetricWithRunId] = []
        for run_id, history in zip(run_ids, histories, strict=True):
            rows = [row for row in zip(*history, strict=True) if row[0] in steps]
            indices = self._evenly_spaced_indices(len(rows), max(most, len(steps)))
            chosen = [rows[index] for index in indices]
            if chosen:
                metrics = metrics_of(metric_key, *zip(*chosen, strict=True))
                points += [MetricWithRunId(metric=metric, run_id=run_id) for metric in metrics]
        return points

    def _history(self, summary: Summary, name: str) -> History:
        if name in summary.metrics:
            file = layout.METRICS
        elif name in summary.system_metrics:
            file = layout.SYSTEM_METRICS
        else:
            return _history_of_best(summary, name)
        try:
            return self._histories.read(summary.path / file, name)
        except (OSError, ValueError):
            # The summary, which is newer than the answer here, says why as a tag of the run.
            return History([], [], [])

    # --- requests of the UI for which a folder of records has no data ---

    def search_logged_models(self, *args: Any, **kwargs: Any) -> PagedList[Any]:
        return PagedList([], None)

    search_datasets = search_logged_models

    def search_traces(self, *args: Any, **kwargs: Any) -> tuple[list[Any], None]:
        return [], None

    def _search_datasets(self, *args: Any, **kwargs: Any) -> list[Any]:
        return []

    # --- reading ---

    def _scan(self) -> list[Summary]:
        """All runs; skips unreadable ones, with one warning."""
        with self._lock:
            summaries, skipped = self._summaries.read_all(self.root)
            known: dict[str, Summary] = {}
            problems = [f"{item.path}: {item.reason}" for item in skipped]
            for summary in summaries:
                path, run_id = summary.path, summary.id
                if not _RUN_ID.fullmatch(run_id):
                    problems.append(f"{path}: {run_id!r} is not an id that MLflow accepts")
                elif known.setdefault(run_id, summary) is not summary:
                    problems.append(f"{path}: has the id of {known[run_id].path}")
            self._folders = {run_id: summary.path for run_id, summary in known.items()}
        for problem in problems:
            if problem not in self._said:
                self._said.add(problem)
                _logger.warning("skipped: %s", problem)
        return list(known.values())

    def _summary(self, run_id: str) -> Summary:
        path = self._folders.get(run_id)
        if path is not None:
            with contextlib.suppress(ValueError), self._lock:
                summary = self._summaries.read(path)
                if summary.id == run_id:
                    return summary
        for summary in self._scan():
            if summary.id == run_id:
                return summary
        raise MlflowException(
            f"there is no run with id {run_id} in {self.root}", RESOURCE_DOES_NOT_EXIST
        )

    def _run_of(self, summary: Summary) -> Run:
        try:
            checkpoints = (summary.path / layout.CHECKPOINTS).stat().st_mtime_ns
        except OSError:
            checkpoints = 0
        cached = self._runs.get(summary.id)
        # A run without an end has one as soon as its status changes, which is a new summary.
        if cached is not None and cached[0] is summary and cached[1] == checkpoints:
            return cached[2]
        run = run_of(summary)
        self._runs[summary.id] = (summary, checkpoints, run)
        return run


def _history_of_best(summary: Summary, name: str) -> History:
    of, _, _ = name.rpartition(" ")
    best = best_of(summary, of)
    if best is None or best.key != name:
        return History([], [], [])
    return History([best.step], [best.timestamp / 1000], [best.value])


def _check_max_results(max_results: int | None) -> None:
    if max_results is not None and not 1 <= max_results <= SEARCH_MAX_RESULTS_THRESHOLD:
        raise MlflowException(
            expected("max_results", f"from 1 to {SEARCH_MAX_RESULTS_THRESHOLD}", str(max_results)),
            INVALID_PARAMETER_VALUE,
        )


def _refusal(method: str) -> Any:
    def refuse(self: RecordStore, *args: Any, **kwargs: Any) -> None:
        raise MlflowException(
            f"{method}: this is a read-only view of the runs in {self.root}, which training "
            "writes with mlflow_track; to edit or annotate runs, send them to an MLflow server "
            "with `mlflow-track sync`",
            PERMISSION_DENIED,
        )

    refuse.__name__ = f"refuse {method}"
    return refuse


# Two that MLflow's client calls are not in its base class.
for _name in (*dir(AbstractStore), "delete_tag", "log_logged_model_params"):
    if _name.startswith(_WRITING_VERBS):
        setattr(RecordStore, _name, _refusal(_name))
