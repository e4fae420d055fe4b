"""The only file that talks to an MLflow server."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

# Read by mlflow when it is imported or first used. Seven retries with growing pauses would hold one
# call for minutes (246 s measured), and a `create_run` that is repeated unseen makes two runs; the
# mirror itself tries again.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    Experiment,
    InputTag,
    Metric,
    Param,
    Run,
    RunTag,
    ViewType,
)
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from mlflow_track.backends.mlflow.answers import listen
from mlflow_track.backends.mlflow.batches import Batches
from mlflow_track.backends.mlflow.creation import one_at_a_time, require_own_schema
from mlflow_track.backends.mlflow.errors import translated
from mlflow_track.backends.mlflow.paths import called, legal_path, quoted
from mlflow_track.backends.mlflow.patience import patient, without_retries
from mlflow_track.backends.mlflow.values import Target, as_logged, clean, shortened, storable
from mlflow_track.backends.protocol import Gone, MetricPoint, Refused, Unavailable
from mlflow_track.record.schema import Input

_MOST_METRICS, _MOST_TEXTS = 1000, 100
_MOST_KEY, _MOST_PARAM_VALUE, _MOST_TAG_VALUE, _MOST_DIGEST = 250, 6000, 8000, 36
_MOST_DATASET_NAME = 500
_ILLEGAL = re.compile(r"[^\w./\- :]")


class MlflowStore:
    """A tracking store of MLflow: a server, or a database that this process opens itself.

    Raises:
        Unavailable: MLflow cannot open this URI: a scheme that it does not know, a driver that is
            not installed, a database that does not answer.
    """

    def __init__(self, tracking_uri: str) -> None:
        # Read at each call: the environment may have been changed since the import.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        # Its warnings about single items are told in the record instead.
        logging.getLogger("mlflow").setLevel(logging.ERROR)
        logging.getLogger("alembic").setLevel(logging.ERROR)
        self._uri = tracking_uri
        listen()
        with translated(), one_at_a_time(tracking_uri):
            require_own_schema(tracking_uri)
            self._client = MlflowClient(tracking_uri=tracking_uri)
        self._repositories: dict[str, ArtifactRepository] = {}
        self._batches = Batches(self._client, self.attach)

    def check(self) -> None:
        with translated():
            self._client.search_experiments(max_results=1)

    # --- runs ---

    def find(self, experiment: str, tags: Mapping[str, str]) -> list[Target]:
        wanted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        # An answer that was truncated inside its headers looks like an empty one. So
        # an empty answer counts only if a question with a known answer is answered in between.
        for _ in range(2):
            with translated():
                found = self._experiment(experiment)
                if found is None:
                    return []
                runs = self._client.search_runs(
                    [found.experiment_id],
                    wanted,
                    run_view_type=ViewType.ACTIVE_ONLY,
                    order_by=["attributes.start_time DESC"],
                )
            if runs:
                break
        return [self._target(run) for run in runs]

    def experiment_named(self, experiment_id: str) -> str:
        """The name of the experiment with an id, as MLFLOW_EXPERIMENT_ID gives it."""
        with translated():
            return self._client.get_experiment(experiment_id).name

    def attach(self, run_id: str) -> Target:
        with translated(missing=Gone):
            run = self._client.get_run(run_id)
        _believe(run.info.run_id == run_id)
        if run.info.lifecycle_stage != "active":
            raise Gone(f"the MLflow run {run_id} was deleted")
        return self._target(run)

    def create(
        self, experiment: str, *, name: str, start_time: int, tags: Mapping[str, str]
    ) -> Target:
        with translated(), without_retries():
            run = self._client.create_run(
                self._experiment_id(experiment),
                start_time=start_time,
                run_name=shortened(name),
                tags={key: clean(value)[:_MOST_TAG_VALUE] for key, value in tags.items()},
            )
        _believe(bool(run.info.run_id))
        return self._target(run)

    def discard(self, run_id: str) -> None:
        with translated():
            self._client.delete_run(run_id)

    def set_status(self, run_id: str, status: str, end_time: int | None) -> None:
        def send() -> None:
            if status == "RUNNING":
                self._client.update_run(run_id, status=status)
            else:
                self._client.set_terminated(run_id, status, end_time)

        self._batches.send_one(run_id, send)

    # --- the content of a run ---

    def legal_name(self, name: str) -> str:
        cleaned = _ILLEGAL.sub("_", name)
        parts = [part for part in cleaned.split("/") if part not in ("", ".", "..")]
        legal = "/".join(parts) or "_"
        if legal.startswith(".."):
            # MLflow sees a way out of the folder in it, whatever follows.
            legal = "_" + legal[1:]
        return legal[:_MOST_KEY].rstrip("/")

    def log_metrics(self, run_id: str, cells: Sequence[MetricPoint]) -> list[tuple[str, str]]:
        def send(batch: Sequence[MetricPoint]) -> None:
            metrics = [Metric(c.key, storable(c.value), c.timestamp, c.step) for c in batch]
            self._client.log_batch(run_id, metrics=metrics)

        refused = self._batches.send(run_id, "metrics", cells, _MOST_METRICS, send)
        return [(self.item_of(cell), why) for cell, why in refused]

    def item_of(self, point: MetricPoint) -> str:
        """What a point is called where it is refused."""
        return f"metric {point.key!r} at step {point.step}"

    def log_params(self, run_id: str, params: Mapping[str, str]) -> list[tuple[str, str]]:
        return self._log_texts(run_id, "params", params, Param, _MOST_PARAM_VALUE)

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> list[tuple[str, str]]:
        return self._log_texts(run_id, "tags", tags, RunTag, _MOST_TAG_VALUE)

    def _log_texts(
        self, run_id: str, kind: str, texts: Mapping[str, str], make: Callable[..., Any], most: int
    ) -> list[tuple[str, str]]:
        def send(batch: Sequence[tuple[str, str]]) -> None:
            made: dict[str, Any] = {kind: [make(key, clean(text)[:most]) for key, text in batch]}
            self._client.log_batch(run_id, **made)

        refused = self._batches.send(run_id, kind, list(texts.items()), _MOST_TEXTS, send)
        return [(f"{kind[:-1]} {item[0]!r}", why) for item, why in refused]

    def touch(self, run_id: str, name: str, value: str) -> None:
        """Set one tag, from any thread."""
        self._client.set_tag(run_id, name, value)

    def remove_tag(self, run_id: str, name: str) -> None:
        run = self.attach(run_id)
        if name in run.tags:
            self._batches.send_one(run_id, lambda: self._client.delete_tag(run_id, name))

    def log_input(self, run_id: str, item: Input) -> None:
        profile = {"size_bytes": item.size_bytes, "sha256": item.sha256}
        dataset = Dataset(
            name=clean(item.name)[:_MOST_DATASET_NAME],
            digest=item.sha256[:_MOST_DIGEST],
            source_type="local",
            source=json.dumps({"uri": item.source}),
            profile=json.dumps(profile),
        )
        tag = InputTag("mlflow.data.context", clean(item.context))
        inputs = [DatasetInput(dataset, [tag])]
        self._batches.send_one(run_id, lambda: self._client.log_inputs(run_id, inputs))

    def history(self, run_id: str, key: str) -> list[MetricPoint]:
        with translated(missing=Gone):
            points = self._client.get_metric_history(run_id, key)
        _believe(bool(points))
        return [MetricPoint(key, as_logged(p.value), p.timestamp, p.step) for p in points]

    # --- files ---

    def legal_path(self, run_id: str, name: str) -> str:
        """The nearest name of an artifact that the run's artifact store keeps as it is."""
        with translated(missing=Gone):
            is_asked_by_url = self._is_asked_by_url(run_id)
        return legal_path(name, is_asked_by_url=is_asked_by_url)

    def upload(self, run_id: str, file: Path, name: str) -> None:
        """Send a file as the artifact `name`, a result of `legal_path`."""
        with open(file, "rb") as content:
            size = os.fstat(content.fileno()).st_size

        def send() -> None:
            repository = self._repository(run_id)
            path = quoted(name) if self._is_asked_by_url(run_id) else name
            with called(file, os.path.basename(path)) as source:
                repository.log_artifact(str(source), os.path.dirname(path) or None)

        with patient(size):
            self._batches.send_one(run_id, send)

    def list_files(self, run_id: str, folder: str) -> list[tuple[str, bool]]:
        with translated():
            found = self._repository(run_id).list_artifacts(folder or None)
        return [(item.path, bool(item.is_dir)) for item in found]

    def download(self, run_id: str, name: str, folder: Path) -> None:
        sizes = {item.path: item.file_size or 0 for item in self._listed_beside(run_id, name)}
        if name not in sizes:
            raise FileNotFoundError(name)
        folder.mkdir(parents=True, exist_ok=True)
        with translated(), patient(sizes[name]):
            self._repository(run_id)._download_file(name, str(folder / os.path.basename(name)))

    def remove(self, run_id: str, name: str) -> None:
        with translated(missing=Gone):
            repository = self._repository(run_id)
            try:
                if repository.list_artifacts(name) or any(
                    item.path == name for item in self._listed_beside(run_id, name)
                ):
                    repository.delete_artifacts(name)
                    if repository.list_artifacts(name):
                        raise Unavailable(f"{name} was to be removed, and is there", is_answer=True)
            except NotImplementedError:
                raise Refused("this artifact store does not delete") from None

    # --- inside ---

    def _repository(self, run_id: str) -> ArtifactRepository:
        if run_id not in self._repositories:
            run = self._client.get_run(run_id)
            _believe(run.info.run_id == run_id)
            uri = run.info.artifact_uri
            if uri is None:
                raise Refused("the run has no artifact location")
            self._repositories[run_id] = get_artifact_repository(uri, tracking_uri=self._uri)
        return self._repositories[run_id]

    def _is_asked_by_url(self, run_id: str) -> bool:
        """Whether names of artifacts are part of a URL, which the client does not quote."""
        uri = self._repository(run_id).artifact_uri
        return uri.startswith(("http://", "https://", "mlflow-artifacts:"))

    def _listed_beside(self, run_id: str, name: str) -> list[Any]:
        with translated():
            return self._repository(run_id).list_artifacts(os.path.dirname(name) or None)

    def _experiment(self, name: str) -> Experiment | None:
        found = self._client.get_experiment_by_name(name)
        _believe(found is None or found.name == name)
        return found

    def _experiment_id(self, name: str) -> str:
        found = self._experiment(name)
        if found is None:
            # Another process may be faster; else the next question says why.
            with contextlib.suppress(MlflowException):
                self._client.create_experiment(name)
            found = self._experiment(name)
        if found is None:
            raise Unavailable(f"experiment {name!r} cannot be created", is_answer=True)
        if found.lifecycle_stage != "active":
            raise Unavailable(
                f"experiment {name!r} was deleted at the server; restore it there (mlflow "
                f"experiments restore --experiment-id {found.experiment_id}), or choose another "
                "name",
                is_answer=True,
            )
        return found.experiment_id

    def _target(self, run: Run) -> Target:
        info = run.info
        page = f"/#/experiments/{info.experiment_id}/runs/{info.run_id}"
        return Target(
            experiment_id=info.experiment_id,
            run_id=info.run_id,
            url=self._uri.rstrip("/") + page if self._uri.startswith("http") else None,
            params=run.data.params,
            tags=run.data.tags,
            status=info.status,
            # The latest of a metric is the one with the largest step.
            metrics={metric.key: metric.step for metric in run.data._metric_objs},
            name=info.run_name or "",
        )


def _believe(is_whole: bool) -> None:
    """MLflow's client takes a cut answer for an empty one."""
    if not is_whole:
        raise Unavailable("the server's response was truncated")


def experiment_name(tracking_uri: str, experiment_id: str) -> str | None:
    """The name of an experiment of which only the id is known; None where the server has none."""
    with contextlib.suppress(MlflowException):
        return MlflowClient(tracking_uri=tracking_uri).get_experiment(experiment_id).name
    return None
