"""The empty model registry of a folder of records, for MLflow's UI and client."""

from __future__ import annotations

from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED, RESOURCE_DOES_NOT_EXIST
from mlflow.store.entities import PagedList
from mlflow.store.model_registry.abstract_store import AbstractStore

_READING_VERBS = ("get_", "search_", "list_", "find_")


class EmptyRegistry(AbstractStore):
    """No models: every search finds nothing, every write is refused.

    With it the server needs no separate database, whose creation takes seconds.
    """

    def __init__(
        self, store_uri: str | None = None, tracking_uri: str | None = None, **_: Any
    ) -> None:
        super().__init__(store_uri, tracking_uri)

    def search_registered_models(self, *args: Any, **kwargs: Any) -> PagedList[Any]:
        return PagedList([], None)

    def search_model_versions(self, *args: Any, **kwargs: Any) -> PagedList[Any]:
        return PagedList([], None)

    def search_webhooks(self, *args: Any, **kwargs: Any) -> PagedList[Any]:
        return PagedList([], None)

    def list_webhooks(self, *args: Any, **kwargs: Any) -> PagedList[Any]:
        return PagedList([], None)


def _answer(method: str) -> Any:
    def answer(self: EmptyRegistry, *args: Any, **kwargs: Any) -> None:
        if method.startswith(_READING_VERBS):
            raise MlflowException(
                f"{method}: a folder of runs holds no registered models", RESOURCE_DOES_NOT_EXIST
            )
        raise MlflowException(
            f"{method}: a folder of runs has no model registry; use an MLflow server",
            PERMISSION_DENIED,
        )

    answer.__name__ = method
    return answer


for _name, _value in vars(AbstractStore).items():
    if callable(_value) and not _name.startswith("_") and _name not in vars(EmptyRegistry):
        setattr(EmptyRegistry, _name, _answer(_name))
