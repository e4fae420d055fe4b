"""Describes a run to W&B: its name, config, tags, notes and summary."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from mlflow_track.backends.protocol import RunRecord

# MLflow's own tag for the description of a run.
_NOTE_TAG = "mlflow.note.content"
_MOST_TAG = 64
# W&B's own.
_RESERVED_PARAM = "_wandb"


class Description(NamedTuple):
    """What W&B shows beside the metrics.

    Attributes:
        name, notes, tags: None where W&B's own variable has it.
        config: The params, nested.
        refused: Items that W&B does not take, with the reason.
    """

    name: str | None
    notes: str | None
    tags: tuple[str, ...]
    config: dict[str, Any]
    summary: dict[str, Any]
    refused: list[tuple[str, str]]


def describe(run: RunRecord, *, known_rewinds: int = 0) -> Description:
    """The description of a run, with what W&B's own variables say instead.

    Args:
        run: The record.
        known_rewinds: The number of rewinds before the first row that W&B has got.
    """
    refused: list[tuple[str, str]] = []
    tags = [each.strip() for each in os.environ.get("WANDB_TAGS", "").split(",") if each.strip()]
    for name, value in run.tags.items():
        text = f"{name}: {value}" if value else name
        if name == _NOTE_TAG:
            continue
        if len(text) > _MOST_TAG:
            refused.append((f"tag {name}", f"a tag of W&B has at most {_MOST_TAG} characters"))
        else:
            tags.append(text)
    config = dict(run.config.params)
    if config.pop(_RESERVED_PARAM, None) is not None:
        refused.append((f"param {_RESERVED_PARAM}", "W&B keeps its own data there"))
    is_forked = run.mirror is not None and run.mirror.rewind == "fork"
    if len(run.rewinds) > known_rewinds and not is_forked:
        why = "what was sent before it stays, and those steps are not sent a second time"
        refused.append(("a rewind", why))
    return Description(
        name=None if os.environ.get("WANDB_NAME") else run.name,
        notes=None if os.environ.get("WANDB_NOTES") else run.tags.get(_NOTE_TAG),
        tags=tuple(dict.fromkeys(tags)),
        config=config,
        summary=dict(run.summary),
        refused=refused,
    )
