"""What a record says of its run as MLflow tags: the same words at a server and in the local UI."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

RECORD_TAG = "mlflow_track.run_id"
PARENT_TAG = "mlflow.parentRunId"
ERROR_TAG = "mlflow_track.error"
LATEST_CHECKPOINT_TAG = "mlflow_track.latest_checkpoint"


def context_tags(info: Mapping[str, Any]) -> dict[str, str]:
    """What MLflow's own client would say of user, source and commit; `info`: run.json."""
    provenance = info.get("provenance") or {}
    git = provenance.get("git") or {}
    tags = {
        "mlflow.user": provenance.get("user"),
        "mlflow.source.name": provenance.get("script"),
        "mlflow.source.type": "LOCAL" if provenance else None,
        "mlflow.source.git.commit": git.get("commit"),
        "mlflow.source.git.branch": git.get("branch"),
    }
    return {key: value for key, value in tags.items() if value}


def record_tags(info: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, str]:
    """What happened to a run, beside the tags that it was given; `config`: config.json."""
    attempts = info.get("attempts") or []
    tags = {
        RECORD_TAG: info["id"],
        "mlflow_track.attempts": str(len(attempts)),
        "mlflow_track.name_given": str(info.get("name_given", True)).lower(),
    }
    if config.get("changes"):
        tags["mlflow_track.param_changes"] = json.dumps(config["changes"])
    if attempts and attempts[-1].get("error"):
        tags[ERROR_TAG] = str(attempts[-1]["error"])
    return tags
