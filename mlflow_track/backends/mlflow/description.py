"""Describes a run to the server: its params, tags and datasets."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from mlflow_track.backends.mlflow.server_run import RENAMED_TAG, Memory, ServerRun
from mlflow_track.backends.mlflow.values import Target, clean, shortened
from mlflow_track.backends.protocol import Refused, RunRecord
from mlflow_track.record import layout
from mlflow_track.record.rows import read_last_steps
from mlflow_track.record.schema import Input
from mlflow_track.record.tags import (
    ATTEMPTS_TAG,
    ERROR_TAG,
    LATEST_CHECKPOINT_TAG,
    PARENT_TAG,
    RECORD_TAG,
    context_tags,
    record_tags,
)

# The whole name of a run, where the server has its beginning only.
NAME_TAG = "mlflow_track.run_name"
# What MLflow's tables hold of a value; the rest of a longer one is in the record only.
_MOST_PARAM_VALUE, _MOST_TAG_VALUE = 6000, 8000
HEARTBEAT_TAG = "mlflow_track.heartbeat"
_OWN_TAGS = "mlflow_track."
_CHANGED_ELSEWHERE = (HEARTBEAT_TAG, ATTEMPTS_TAG)


class Description:
    """Sends params, tags and datasets as they change."""

    def __init__(self, there: ServerRun, own_tags: set[str]) -> None:
        self._there = there
        # Tags that MLflow itself has given the run, as `mlflow run` does: they stay.
        self._own_tags = own_tags
        self._rewound_from: dict[str, int] = {}
        self._refused: list[tuple[str, str]] = []
        # Whether the run has a parent that the server does not have yet.
        self.awaits_parent = False

    def send(self, run: RunRecord) -> list[tuple[str, str]]:
        """Send the changes; returns the items that were refused permanently."""
        self._refused = []
        params = run.params
        self._send_params(params)
        there = self._there
        context = context_tags(run)
        known = there.memory.tags
        tags = {k: v for k, v in context.items() if k not in self._own_tags or k in known}
        tags |= {there.name_of("tags", k, lambda: run.tags): v for k, v in run.tags.items()}
        if PARENT_TAG in tags:
            tags |= self._parent_tag(tags.pop(PARENT_TAG), run)
        tags |= self._our_tags(run, params)
        self._refused += there.set_tags(tags)
        if ERROR_TAG not in tags:
            # The attempt before failed; this one has not.
            there.remove_tag(ERROR_TAG)
        self._send_inputs(run.inputs)
        return self._refused

    def _send_params(self, params: Mapping[str, str]) -> None:
        there, memory = self._there, self._there.memory
        new = {k: v for k, v in params.items() if k not in memory.params}
        if not new:
            return
        at_server = {there.name_of("params", k, lambda: params): v for k, v in new.items()}
        self._refused += there.store.log_params(there.id, at_server)
        memory.params |= new
        there.save()

    def _parent_tag(self, parent: str, run: RunRecord) -> dict[str, str]:
        """The server knows the parent by another id; until it has the parent, there is no tag."""
        known = self._there.memory.tags.get(PARENT_TAG)
        if known is None:
            found = self._there.store.find(run.experiment, {RECORD_TAG: parent})
            if found:
                known = found[0].run_id
            elif not (run.path.parent / parent / layout.RUN).exists():
                # The tag names a run of the server.
                known = parent
        self.awaits_parent = known is None
        return {PARENT_TAG: known} if known is not None else {}

    def _our_tags(self, run: RunRecord, params: Mapping[str, str]) -> dict[str, str]:
        tags = record_tags(run, run.config)
        steps = [layout.step_of_folder(name) or 0 for name in run.uploaded]
        if steps:
            tags[LATEST_CHECKPOINT_TAG] = layout.folder_of_step(max(steps))
        if run.rewinds:
            tags["mlflow_track.rewinds"] = self._describe_rewinds(run)
        tags |= own_tags(self._there)
        cut = [k for k, v in params.items() if len(v) > _MOST_PARAM_VALUE]
        cut += [f"tag {k}" for k, v in run.tags.items() if len(v) > _MOST_TAG_VALUE]
        if shortened(run.name) != run.name:
            cut.append("the run's name")
            tags[NAME_TAG] = run.name
        if cut:
            tags["mlflow_track.cut"] = json.dumps(
                {"whole in": "record/", "cut here": cut}, ensure_ascii=False
            )
        return tags

    def _describe_rewinds(self, run: RunRecord) -> str:
        rewinds = [
            {
                "attempt": r.attempt,
                "from_step": self._from_step(run, r.file),
                "to_step": r.step,
                "rows": r.rows + (r.long.rows if r.long else 0),
            }
            for r in run.rewinds
        ]
        return json.dumps({"rewinds": rewinds, "largest_difference": run.differences})

    def _from_step(self, run: RunRecord, file: str) -> int:
        """The step that the run had reached before the rewind."""
        if file not in self._rewound_from:
            steps = read_last_steps(run.path / file)
            self._rewound_from[file] = max(steps.values(), default=-1)
        return self._rewound_from[file]

    def _send_inputs(self, inputs: Sequence[Input]) -> None:
        there = self._there
        for item in inputs[there.memory.inputs :]:
            try:
                there.store.log_input(there.id, item)
            except Refused as error:
                self._refused.append((f"dataset {item.name!r}", str(error)))
            there.memory.inputs += 1
            there.save()


def missing_description(memory: Memory, target: Target) -> set[str]:
    """The params and tags that were sent, and are not at the server, or as they were before.

    Of a user's own tag any value counts: a person may have changed it there.
    """
    missing = {
        f"{kind[:-1]} {name!r}"
        for kind, sent, found in (
            ("params", memory.params, target.params),
            ("tags", memory.tags, target.tags),
        )
        for name in sent
        if name not in found and memory.renamed.get(kind, {}).get(name, name) not in found
    }
    return missing | {
        f"tag {name!r}"
        for name, value in memory.tags.items()
        if name.startswith(_OWN_TAGS)
        and name not in _CHANGED_ELSEWHERE
        and target.tags.get(name) != clean(value)[:_MOST_TAG_VALUE]
    }


def own_tags(there: ServerRun) -> dict[str, str]:
    """Tags about values that the server could not store unchanged."""
    tags: dict[str, str] = {}
    renamed = {kind: names for kind, names in there.memory.renamed.items() if names}
    if renamed:
        tags[RENAMED_TAG] = json.dumps(renamed, ensure_ascii=False)
    if there.memory.infinite:
        tags["mlflow_track.infinite"] = json.dumps(
            {
                "metrics, by the first step that is infinite": there.memory.infinite,
                "shown as": "the largest finite number, where the store has no infinity",
            },
            ensure_ascii=False,
        )
    return tags
