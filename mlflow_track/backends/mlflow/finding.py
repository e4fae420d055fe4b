"""Finds the runs of a server that a record can be rebuilt from."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

from mlflow_track.backends.mlflow.description import HEARTBEAT_TAG, NAME_TAG
from mlflow_track.backends.mlflow.linking import SUPERSEDED_TAG
from mlflow_track.backends.mlflow.server_run import Memory, ServerRun
from mlflow_track.backends.mlflow.values import Target
from mlflow_track.backends.protocol import Found, Gone, Query
from mlflow_track.record.tags import NAME_GIVEN_TAG, RECORD_TAG

if TYPE_CHECKING:
    from mlflow_track.backends.mlflow.store import MlflowStore

_MLFLOW_ID = re.compile(r"[0-9a-f]{32}")


def find_runs(store: MlflowStore, query: Query) -> list[Found]:
    """See `Backend.find`."""
    experiment = query.experiment
    if query.experiment_id is not None:
        experiment = store.experiment_named(query.experiment_id)
    if query.id is not None and _MLFLOW_ID.fullmatch(query.id):
        try:
            targets = [store.attach(query.id)]
        except Gone:
            targets = []
    elif query.id is not None:
        targets = store.find(experiment, {RECORD_TAG: query.id})
    else:
        is_named = str(query.run_name is not None).lower()
        targets = store.find(experiment, {NAME_GIVEN_TAG: is_named})
        if query.run_name is not None:
            targets = [
                target
                for target in targets
                if target.tags.get(NAME_TAG, target.name) == query.run_name
            ]
    return [
        _found(store, target)
        for target in targets
        if RECORD_TAG in target.tags and SUPERSEDED_TAG not in target.tags
    ]


def last_steps(there: ServerRun, target: Target) -> dict[str, int]:
    """The last step of each metric, by its name in the record."""
    names = there.original_names()
    return {names.get(key, key): step for key, step in target.metrics.items()}


def _found(store: MlflowStore, target: Target) -> Found:
    there = ServerRun(store, Memory.at_server(target), lambda _: None)
    return Found(
        id=target.run_id,
        record_id=target.tags[RECORD_TAG],
        status=target.status,
        heartbeat=target.tags.get(HEARTBEAT_TAG),
        last_steps=last_steps(there, target),
        page=target.url,
        memory=msgspec.to_builtins(there.memory),
    )
