"""Which run of the server receives the record: found by tag, attached to, or made."""

from __future__ import annotations

from mlflow_track.backends.protocol import Gone, Target
from mlflow_track.mirror.state import Ledger, MirrorState
from mlflow_track.record.info import is_held
from mlflow_track.record.schema import KILLED, RUNNING, MirrorSettings, RunInfo
from mlflow_track.record.tags import PARENT_TAG, RECORD_TAG, context_tags

SUPERSEDED_TAG = "mlflow_track.superseded_by"
_SUPERSEDES_TAG = "mlflow_track.supersedes"


def link(ledger: Ledger, info: RunInfo) -> Target:
    """Connect the ledger with its run at the server, and bring that back to RUNNING if it does.

    Raises:
        Gone: The run was deleted there.
    """
    wanted = info.mirror or MirrorSettings()
    attach = wanted.attach if wanted.tracking_uri == ledger.tracking_uri else None
    if attach in ledger.state.gone or attach in ledger.state.superseded:
        attach = None
    parent = None
    if attach and ledger.state.run_id != attach and _is_of_another(ledger, info, attach):
        # One job, several runs: the first has the run that the job was given.
        attach, parent = None, attach
    if ledger.state.tracking_uri != ledger.tracking_uri:
        _begin_anew(ledger)
    elif attach and ledger.state.run_id != attach:
        _begin_anew(ledger, superseding=ledger.state.run_id)
    target = _target(ledger, info, attach, parent)
    _adopt(ledger, target)
    _tell_superseded(ledger)
    if target.status != RUNNING and info.status == RUNNING and is_held(ledger.path):
        ledger.sink.set_status(target.run_id, RUNNING, None)
        ledger.state.status = RUNNING
    ledger.save()
    return target


def fork(ledger: Ledger) -> None:
    """Go on in a new run that will hold the kept history; `link` makes it."""
    _begin_anew(ledger, superseding=ledger.state.run_id)
    ledger.save()


def forget(ledger: Ledger) -> None:
    """The run at the server was deleted: everything goes to another one."""
    former = ledger.state
    gone = [*former.gone, *([former.run_id] if former.run_id else [])]
    ledger.state = MirrorState(
        tracking_uri=ledger.tracking_uri,
        pid=former.pid,
        error=former.error,
        gone=gone,
        superseded=former.superseded,
    )
    ledger.save()


def discard_ghosts(ledger: Ledger, info: RunInfo) -> None:
    """A `create` whose answer was lost may have made a run late: it is empty, and nobody's."""
    for target in ledger.sink.find(info.experiment, {RECORD_TAG: info.id}):
        is_other = target.run_id not in (ledger.run_id, *ledger.state.superseded)
        if is_other and not target.metrics and SUPERSEDED_TAG not in target.tags:
            ledger.sink.discard(target.run_id)


def _is_of_another(ledger: Ledger, info: RunInfo, run_id: str) -> bool:
    """Whether the MLflow run holds another record: the two would draw one curve together."""
    try:
        owner = ledger.sink.attach(run_id).tags.get(RECORD_TAG)
    except Gone:
        return False
    return owner is not None and owner != info.id


def _target(ledger: Ledger, info: RunInfo, attach: str | None, parent: str | None) -> Target:
    sink, state = ledger.sink, ledger.state
    if state.run_id or attach:
        state.run_id = state.run_id or attach or ""
        return sink.attach(state.run_id)
    for target in sink.find(info.experiment, {RECORD_TAG: info.id}):
        if SUPERSEDED_TAG not in target.tags and target.run_id not in state.superseded:
            return target
    return sink.create(
        info.experiment,
        name=info.name,
        start_time=round(1000 * info.created),
        tags={
            RECORD_TAG: info.id,
            **({PARENT_TAG: parent} if parent else {}),
            **context_tags(info),
        },
    )


def _begin_anew(ledger: Ledger, superseding: str = "") -> None:
    former = ledger.state
    new = [superseding] if superseding else []
    same_server = former.tracking_uri == ledger.tracking_uri
    ledger.state = MirrorState(
        tracking_uri=ledger.tracking_uri if superseding else "",
        pid=former.pid,
        error=former.error,
        gone=former.gone if same_server else [],
        superseding=[*(former.superseding if same_server else []), *new],
        superseded=[*(former.superseded if same_server else []), *new],
    )


def _adopt(ledger: Ledger, target: Target) -> None:
    state = ledger.state
    state.tracking_uri = ledger.tracking_uri
    state.experiment_id, state.run_id, state.url = target[:3]
    state.status = target.status
    state.params = {**target.params, **state.params}
    ledger.save()


def _tell_superseded(ledger: Ledger) -> None:
    """The history goes on in this run; the old ones say so, and end."""
    state = ledger.state
    for old in list(state.superseding):
        try:
            former = ledger.sink.attach(old)
            ledger.sink.set_tags(old, {SUPERSEDED_TAG: state.run_id})
            if former.status == RUNNING:
                end_time = round(1000 * ledger.last_sign_of_life())
                ledger.sink.set_status(old, KILLED, end_time)
        except Gone:
            pass
        ledger.sink.set_tags(state.run_id, {_SUPERSEDES_TAG: old})
        state.superseding.remove(old)
        ledger.save()
