"""The empty model registry of a folder of records, for MLflow's UI and client."""

from __future__ import annotations

from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED, RESOURCE_DOES_NOT_EXIST
from mlflow.store.entities import PagedList
from mlflow.store.model_registry.abstract_store import AbstractStore

_READING_VERBS = ("get_", "search_", "list_", "find_")
_SEARCHES = (
    *("search_registered_models", "search_model_versions"),
    *("search_webhooks", "list_webhooks"),
)


class EmptyRegistry(AbstractStore):
    """No models: every search finds nothing, every write is refused.

    With it the server needs no separate database, whose creation takes seconds.
    """

    def __init__(
        self, store_uri: str | None = None, tracking_uri: str | None = None, **_: Any
    ) -> None:
        super().__init__(store_uri, tracking_uri)


def _answer(method: str) -> Any:
    def answer(self: EmptyRegistry, *args: Any, **kwargs: Any) -> PagedList[Any]:
        if method in _SEARCHES:
            return PagedList([], None)
        why, code = "has no model registry; use an MLflow server", PERMISSION_DENIED
        if method.startswith(_READING_VERBS):
            why, code = "holds no registered models", RESOURCE_DOES_NOT_EXIST
        raise MlflowException(f"{method}: a folder of runs {why}", code)

    answer.__name__ = method
    return answer


for _name, _value in vars(AbstractStore).items():
    if callable(_value) and not _name.startswith("_") and _name not in vars(EmptyRegistry):
        setattr(EmptyRegistry, _name, _answer(_name))
