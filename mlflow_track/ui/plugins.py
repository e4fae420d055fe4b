"""Entry points that MLflow finds by the scheme `mlflow-track:`; see pyproject.toml.

MLflow imports every plugin whenever it is imported itself, in every process: so nothing heavy and
nothing of MLflow is imported here before it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow_track.ui.artifacts import RecordArtifacts
    from mlflow_track.ui.registry import EmptyRegistry
    from mlflow_track.ui.store import RecordStore


def tracking_store(store_uri: str, artifact_uri: str | None = None) -> RecordStore:
    """The runs under the folder that `mlflow-track:///path/of/runs` names."""
    from mlflow_track.ui.store import RecordStore

    return RecordStore(store_uri, artifact_uri)


def artifact_repository(artifact_uri: str, *args: Any, **kwargs: Any) -> RecordArtifacts:
    """The artifacts of the run in the folder that `mlflow-track:///path/of/run` names."""
    from mlflow_track.ui.artifacts import RecordArtifacts

    return RecordArtifacts(artifact_uri, *args, **kwargs)


def registry_store(store_uri: str | None = None, **kwargs: Any) -> EmptyRegistry:
    """The matching registry, without any model."""
    from mlflow_track.ui.registry import EmptyRegistry

    return EmptyRegistry(store_uri, **kwargs)
