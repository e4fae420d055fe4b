"""Writes a run as MLflow tags: the same at a server and in the local UI."""

from __future__ import annotations

import json

import msgspec

from mlflow_track.record.schema import Config, Git, RunInfo

RECORD_TAG = "mlflow_track.run_id"
PARENT_TAG = "mlflow.parentRunId"
SUMMARY_TAG = "mlflow_track.summary"
ERROR_TAG = "mlflow_track.error"
ATTEMPTS_TAG = "mlflow_track.attempts"
NAME_GIVEN_TAG = "mlflow_track.name_given"
LATEST_CHECKPOINT_TAG = "mlflow_track.latest_checkpoint"


def context_tags(info: RunInfo) -> dict[str, str]:
    """The tags of MLflow's own client for user, source and commit; `info`: run.json."""
    provenance = info.provenance
    git = provenance.git or Git()
    tags = {
        "mlflow.user": provenance.user,
        "mlflow.source.name": provenance.script,
        "mlflow.source.type": "LOCAL" if provenance.script is not None else None,
        "mlflow.source.git.commit": git.commit,
        "mlflow.source.git.branch": git.branch,
    }
    return {key: value for key, value in tags.items() if value}


def record_tags(info: RunInfo, config: Config) -> dict[str, str]:
    """The tags of the run's history, beside its own tags; `config`: config.json."""
    tags = {
        RECORD_TAG: info.id,
        ATTEMPTS_TAG: str(len(info.attempts)),
        NAME_GIVEN_TAG: str(info.name_given).lower(),
    }
    if config.changes:
        tags["mlflow_track.param_changes"] = json.dumps(msgspec.to_builtins(config.changes))
    if info.summary:
        tags[SUMMARY_TAG] = json.dumps(info.summary, ensure_ascii=False)
    if info.newest.error:
        tags[ERROR_TAG] = info.newest.error
    return tags
