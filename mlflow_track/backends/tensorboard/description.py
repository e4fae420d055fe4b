"""The description of a run in TensorBoard: params and status for HPARAMS, the rest as text."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from mlflow_track.backends.protocol import RunRecord
from mlflow_track.backends.tensorboard.protos import (
    event,
    first_event,
    hparams_api,
    hparams_data,
    restart_event,
    shown_by,
)
from mlflow_track.record.files import legible
from mlflow_track.record.params import flatten, param_text
from mlflow_track.record.schema import FINISHED, RUNNING
from mlflow_track.record.tags import context_tags, record_tags

END_TAG = "_hparams_/session_end_info"
_START_TAG = "_hparams_/session_start_info"
# A number that every reader of JSON has exactly.
_MOST_INTEGER = 2**53
_STATUSES = {FINISHED: hparams_api.STATUS_SUCCESS, RUNNING: hparams_api.STATUS_RUNNING}


def description(run: RunRecord, end: Sequence[bytes]) -> list[bytes]:
    """The events that describe a run; `end`: that of its end, where it has one.

    There is no event about the experiment: HPARAMS takes one of all runs for all of them, and makes
    a better one from the params and metrics of each.
    """
    start = hparams_data.SessionStartInfo(start_time_secs=run.created)
    for name, value in flatten(run.config.params).items():
        held = start.hparams[legible(name)]
        if isinstance(value, bool):
            held.bool_value = value
        elif _is_number(value):
            held.number_value = value
        else:
            held.string_value = legible(param_text(value))
    config = json.dumps(run.config.params, indent=4, ensure_ascii=False)
    tags = {**context_tags(run), **record_tags(run, run.config), **run.tags}
    values = [
        _hparams(_START_TAG, session_start_info=start),
        # Indented text is code in Markdown.
        shown_by("text", "run/config", texts=["".join(f"    {x}\n" for x in config.splitlines())]),
        shown_by("text", "run/tags", texts=[_table("tag", "value", tags)]),
    ]
    if run.inputs:
        sums = {f"{item.name} ({item.source or item.context})": item.sha256 for item in run.inputs}
        values.append(shown_by("text", "run/datasets", texts=[_table("dataset", "sha256", sums)]))
    # TensorBoard takes the first restart that it reads for the start; those of rewinds follow.
    return [
        first_event(run.created),
        restart_event(run.created),
        event(run.created, values),
        *end,
    ]


def end_event(status: str, wall_time: float) -> bytes:
    """The event with which HPARAMS shows how a run ended.

    Args:
        status: That of the run; RUNNING of one that was continued.
        wall_time: The end; the start of the attempt where it is running.
    """
    end = hparams_data.SessionEndInfo(status=_STATUSES.get(status, hparams_api.STATUS_FAILURE))
    if status != RUNNING:
        end.end_time_secs = wall_time
    return event(wall_time, [_hparams(END_TAG, session_end_info=end)])


def _hparams(tag: str, **content: Any) -> Any:
    data = hparams_data.HParamsPluginData(version=0, **content)
    return shown_by("hparams", tag, data.SerializeToString(deterministic=True))


def _table(name: str, value: str, rows: Mapping[str, str]) -> str:
    lines = [(name, value), ("---", "---"), *sorted(rows.items())]
    return "".join(f"| {_cell(first)} | {_cell(second)} |\n" for first, second in lines)


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", "<br>")


def _is_number(value: Any) -> bool:
    if isinstance(value, int):
        return abs(value) <= _MOST_INTEGER
    return isinstance(value, float) and math.isfinite(value)
