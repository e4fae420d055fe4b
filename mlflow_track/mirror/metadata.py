"""What the server is told about a run beside its numbers and files: params, tags, datasets."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from mlflow_track.backends.protocol import Refused
from mlflow_track.mirror.state import Ledger, MirrorState, name_at_server
from mlflow_track.record import layout
from mlflow_track.record.info import read_config
from mlflow_track.record.params import flatten, param_text
from mlflow_track.record.rows import read_last_steps
from mlflow_track.record.schema import Config, Input, RunInfo
from mlflow_track.record.tags import ERROR_TAG, PARENT_TAG, RECORD_TAG, context_tags, record_tags

# What MLflow's tables take of a value; the rest of a longer one is in the record only.
_MOST_PARAM_VALUE, _MOST_TAG_VALUE = 6000, 8000


class Description:
    """Sends params, tags and datasets as they change."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        # What MLflow itself said of the run, as `mlflow run` does, stays.
        self.own_tags: set[str] = set()
        self._rewound_from: dict[str, int] = {}

    def send(self, info: RunInfo) -> None:
        config = read_config(self._ledger.path)
        params = {k: param_text(v) for k, v in flatten(config.params).items()}
        self._send_params(params)
        context = context_tags(info)
        known = self._ledger.state.tags
        tags = {k: v for k, v in context.items() if k not in self.own_tags or k in known}
        tags |= {self._tag_name(k, info.tags): v for k, v in info.tags.items()}
        if PARENT_TAG in tags:
            tags |= self._parent_tag(tags.pop(PARENT_TAG), info.experiment)
        tags |= self._our_tags(info, config, params)
        self._ledger.set_tags(tags)
        if ERROR_TAG not in tags:
            # The attempt before failed; this one has not.
            self._ledger.remove_tag(ERROR_TAG)
        self._send_inputs(info.inputs)

    def _send_params(self, params: Mapping[str, str]) -> None:
        ledger, state = self._ledger, self._ledger.state
        new = {k: v for k, v in params.items() if k not in state.params}
        if not new:
            return
        at_server = {name_at_server(ledger, "params", k, params): v for k, v in new.items()}
        ledger.note_refused(ledger.sink.log_params(ledger.run_id, at_server))
        state.params |= new
        ledger.save()

    def _tag_name(self, name: str, others: Mapping[str, str]) -> str:
        return name_at_server(self._ledger, "tags", name, others)

    def _parent_tag(self, parent: str, experiment: str) -> dict[str, str]:
        """The server knows the parent by another id; until it has the parent, there is no tag."""
        ledger = self._ledger
        known = ledger.state.tags.get(PARENT_TAG)
        if known is None:
            state = MirrorState.read(ledger.path.parent / parent)
            if state.run_id and state.tracking_uri == ledger.tracking_uri:
                known = state.run_id
            elif (ledger.path.parent / parent / layout.RUN).exists():
                found = ledger.sink.find(experiment, {RECORD_TAG: parent})
                known = found[0].run_id if found else None
            else:
                # Whoever set the tag meant a run of the server.
                known = parent
        return {PARENT_TAG: known} if known is not None else {}

    def _our_tags(self, info: RunInfo, config: Config, params: Mapping[str, str]) -> dict[str, str]:
        state = self._ledger.state
        tags = record_tags(info, config)
        if info.rewinds:
            tags["mlflow_track.rewinds"] = self._describe_rewinds(info)
        if any(state.renamed.values()):
            renamed = {kind: names for kind, names in state.renamed.items() if names}
            tags["mlflow_track.renamed"] = json.dumps(renamed, ensure_ascii=False)
        if state.infinite:
            tags["mlflow_track.infinite"] = json.dumps(
                {
                    "metrics, by the first step that is infinite": state.infinite,
                    "shown as": "the largest finite number, where the store has no infinity",
                },
                ensure_ascii=False,
            )
        cut = [k for k, v in params.items() if len(v) > _MOST_PARAM_VALUE]
        cut += [f"tag {k}" for k, v in info.tags.items() if len(v) > _MOST_TAG_VALUE]
        if cut:
            tags["mlflow_track.cut"] = json.dumps(
                {"whole in": "record/", "cut here": cut}, ensure_ascii=False
            )
        return tags

    def _describe_rewinds(self, info: RunInfo) -> str:
        rewinds = [
            {
                "attempt": r.attempt,
                "from_step": self._from_step(r.file),
                "to_step": r.step,
                "rows": r.rows + (r.long.rows if r.long else 0),
            }
            for r in info.rewinds
        ]
        differences = self._ledger.state.differences
        return json.dumps({"rewinds": rewinds, "largest_difference": differences})

    def _from_step(self, file: str) -> int:
        """The step that the run had reached before the rewind."""
        if file not in self._rewound_from:
            steps = read_last_steps(self._ledger.path / file)
            self._rewound_from[file] = max(steps.values(), default=-1)
        return self._rewound_from[file]

    def _send_inputs(self, inputs: Sequence[Input]) -> None:
        for item in inputs[self._ledger.state.inputs :]:
            try:
                self._ledger.sink.log_input(self._ledger.run_id, item)
            except Refused as error:
                self._ledger.state.refuse([f"dataset {item.name!r}"], str(error))
            self._ledger.state.inputs += 1
            self._ledger.save()
