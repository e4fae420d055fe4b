"""The sink for MLflow: the only file that talks to an MLflow server."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

# Read by mlflow when it is imported or first used. Seven retries with growing pauses would hold one
# call for minutes (FACTS: 246 s); the mirror itself tries again.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from mlflow_track.mirror.sink import Cell, Gone, Refused, Target, Unavailable
from mlflow_track.settings import mask_password

_MOST_METRICS, _MOST_PARAMS, _MOST_TAGS = 1000, 100, 100
_MOST_KEY, _MOST_PARAM_VALUE, _MOST_TAG_VALUE, _MOST_DIGEST = 250, 6000, 8000, 36
_ILLEGAL = re.compile(r"[^\w./\- :]")
_LARGEST = 1.7976931348623157e308
_FOR_GOOD = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS")
_ACCESS = ("UNAUTHENTICATED", "PERMISSION_DENIED")
_ACCESS_HINT = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
_Item = TypeVar("_Item")


class MlflowSink:
    """A tracking store of MLflow: a server, or a database that this process opens itself."""

    def __init__(self, tracking_uri: str) -> None:
        # Its warnings about single items are told in the record instead.
        logging.getLogger("mlflow").setLevel(logging.ERROR)
        logging.getLogger("alembic").setLevel(logging.ERROR)
        self._uri = tracking_uri
        self._client = MlflowClient(tracking_uri=tracking_uri)

    def find(self, experiment: str, record_id: str) -> Target | None:
        with _translated():
            found = self._client.get_experiment_by_name(experiment)
            if found is None:
                return None
            runs = self._client.search_runs(
                [found.experiment_id],
                f"tags.`mlflow_track.run_id` = '{record_id}'",
                run_view_type=ViewType.ACTIVE_ONLY,
                max_results=1,
            )
        return self._target(runs[0]) if runs else None

    def attach(self, run_id: str) -> Target:
        with _translated(missing=Gone):
            run = self._client.get_run(run_id)
        if run.info.lifecycle_stage != "active":
            raise Gone(f"the MLflow run {run_id} was deleted")
        return self._target(run)

    def create(
        self, experiment: str, *, name: str, start_time: int, tags: Mapping[str, str]
    ) -> Target:
        with _translated():
            run = self._client.create_run(
                self._experiment_id(experiment),
                start_time=start_time,
                run_name=name,
                tags={key: value[:_MOST_TAG_VALUE] for key, value in tags.items()},
            )
        return self._target(run)

    def legal_name(self, name: str) -> str:
        cleaned = _ILLEGAL.sub("_", name)
        parts = [part for part in cleaned.split("/") if part not in ("", ".", "..")]
        return ("/".join(parts) or "_")[:_MOST_KEY].rstrip("/")

    def log_metrics(self, run_id: str, cells: Sequence[Cell]) -> list[tuple[str, str]]:
        def send(batch: Sequence[Cell]) -> None:
            metrics = [Metric(c.key, _storable(c.value), c.timestamp, c.step) for c in batch]
            self._client.log_batch(run_id, metrics=metrics)

        refused = self._send(run_id, cells, _MOST_METRICS, send)
        return [(f"metric {cell.key!r} at step {cell.step}", why) for cell, why in refused]

    def log_params(self, run_id: str, params: Mapping[str, str]) -> list[tuple[str, str]]:
        def send(batch: Sequence[tuple[str, str]]) -> None:
            items = [Param(self.legal_name(k), v[:_MOST_PARAM_VALUE]) for k, v in batch]
            self._client.log_batch(run_id, params=items)

        refused = self._send(run_id, list(params.items()), _MOST_PARAMS, send)
        return [(f"param {item[0]!r}", why) for item, why in refused]

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> list[tuple[str, str]]:
        def send(batch: Sequence[tuple[str, str]]) -> None:
            items = [RunTag(self.legal_name(k), v[:_MOST_TAG_VALUE]) for k, v in batch]
            self._client.log_batch(run_id, tags=items)

        refused = self._send(run_id, list(tags.items()), _MOST_TAGS, send)
        return [(f"tag {item[0]!r}", why) for item, why in refused]

    def log_input(self, run_id: str, description: Mapping[str, Any]) -> None:
        profile = {key: description[key] for key in ("size_bytes", "sha256")}
        dataset = Dataset(
            name=description["name"],
            digest=description["sha256"][:_MOST_DIGEST],
            source_type="local",
            source=json.dumps({"uri": description["source"]}),
            profile=json.dumps(profile),
        )
        tag = InputTag("mlflow.data.context", description["context"])
        with _translated(missing=Gone):
            self._client.log_inputs(run_id, [DatasetInput(dataset, [tag])])

    def upload(self, run_id: str, file: Path, name: str) -> None:
        folder = os.path.dirname(name)
        if os.path.basename(name) != file.name:
            raise Refused(f"the artifact {name} must be called {file.name}")
        if not file.exists():
            raise FileNotFoundError(file)
        with _translated(missing=Gone):
            self._client.log_artifact(run_id, str(file), folder or None)

    def remove(self, run_id: str, name: str) -> None:
        with _translated(missing=Gone):
            artifact_uri = self._client.get_run(run_id).info.artifact_uri
            if artifact_uri is None:
                return
            repository = get_artifact_repository(artifact_uri, tracking_uri=self._uri)
            try:
                if repository.list_artifacts(name):
                    repository.delete_artifacts(name)
            except NotImplementedError:
                raise Refused("this artifact store does not delete") from None

    def set_status(self, run_id: str, status: str, end_time: int | None) -> None:
        with _translated(missing=Gone):
            if status == "RUNNING":
                self._client.update_run(run_id, status=status)
            else:
                self._client.set_terminated(run_id, status, end_time)

    def _send(
        self,
        run_id: str,
        items: Sequence[_Item],
        most: int,
        send: Callable[[Sequence[_Item]], None],
    ) -> list[tuple[_Item, str]]:
        """Send in batches. One bad item rejects its batch: then halves find it."""
        refused: list[tuple[_Item, str]] = []
        batches = [items[at : at + most] for at in range(0, len(items), most)]
        while batches:
            batch = batches.pop(0)
            try:
                with _translated(missing=Gone):
                    send(batch)
            except Refused as error:
                self.attach(run_id)  # raises Gone where the whole run is the reason
                if len(batch) == 1:
                    refused.append((batch[0], str(error)))
                else:
                    middle = len(batch) // 2
                    batches[:0] = [batch[:middle], batch[middle:]]
        return refused

    def _experiment_id(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return self._client.create_experiment(name)
            except MlflowException:
                # Another process was faster.
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        if found.lifecycle_stage != "active":
            raise Unavailable(
                f"experiment {name!r} was deleted at the server; restore it there "
                f"(mlflow experiments restore --experiment-id {found.experiment_id}), or take "
                "another name"
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
        )


@contextlib.contextmanager
def _translated(missing: type[Exception] = Unavailable) -> Iterator[None]:
    """Errors of MLflow as those of the sink; what is unknown counts as an outage."""
    try:
        yield
    except (Unavailable, Gone, Refused, FileNotFoundError):
        raise
    except MlflowException as error:
        text = _first_line(error)
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise missing(text) from error
        if error.error_code in _ACCESS or "401" in text or "403" in text:
            raise Unavailable(f"the server refuses access ({text}); {_ACCESS_HINT}") from error
        if error.error_code in _FOR_GOOD:
            raise Refused(text) from error
        raise Unavailable(text) from error
    except Exception as error:
        raise Unavailable(f"{type(error).__name__}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    """What an error says, short, and without the password that its URI may carry."""
    lines = str(error).splitlines() or [""]
    return mask_password(lines[0])[:300]


def _storable(value: float) -> float:
    """SQL has no infinity; MLflow's own substitute is the largest finite number."""
    return min(max(value, -_LARGEST), _LARGEST) if value == value else value
