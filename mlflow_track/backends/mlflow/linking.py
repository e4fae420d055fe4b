"""Links a record to a run of the server: found by tag, attached to, or created."""

from __future__ import annotations

from mlflow_track.backends.mlflow.server_run import ServerRun
from mlflow_track.backends.mlflow.values import Target
from mlflow_track.backends.protocol import Gone, RunRecord
from mlflow_track.record.info import is_held, last_sign_of_life
from mlflow_track.record.schema import KILLED, RUNNING, MirrorSettings
from mlflow_track.record.tags import PARENT_TAG, RECORD_TAG, context_tags

SUPERSEDED_TAG = "mlflow_track.superseded_by"
_SUPERSEDES_TAG = "mlflow_track.supersedes"


def link(
    there: ServerRun, run: RunRecord, known_id: str | None, destination: str
) -> tuple[Target, bool]:
    """Connect with the run at the server, and bring that back to RUNNING if the record is.

    Args:
        there: The server, with the memory of what was sent.
        run: The record.
        known_id: The run that received the record before; None where there is none any more.
        destination: The server's name, without a password.

    Returns:
        The run there, and whether it was made. It raises `Gone` where the run was deleted.
    """
    memory = there.memory
    wanted = run.mirror or MirrorSettings()
    attach = wanted.attach if wanted.tracking_uri == destination else None
    if attach in memory.gone or attach in memory.superseded:
        attach = None
    parent = None
    if attach and known_id != attach and _is_of_another(there, run, attach):
        # One job, several runs: the first has the run that the job was given.
        attach, parent = None, attach
    if known_id is None:
        there.begin_anew()
    elif attach and known_id != attach:
        there.begin_anew(superseded=known_id)
        known_id = None
    if wanted.experiment_id is not None and wanted.tracking_uri == destination:
        there.experiment = there.store.experiment_named(wanted.experiment_id)
    target, is_new = _target(there, run, known_id or attach, parent)
    there.adopt(target)
    _tell_superseded(there, run)
    if target.status != RUNNING and run.status == RUNNING and is_held(run.path):
        there.store.set_status(target.run_id, RUNNING, None)
        target = target._replace(status=RUNNING)
    return target, is_new


def discard_ghosts(there: ServerRun, run: RunRecord) -> None:
    """A `create` whose answer was lost may have made a run late: it is empty and unused."""
    for target in there.store.find(there.experiment or run.experiment, {RECORD_TAG: run.id}):
        is_other = target.run_id not in (there.id, *there.memory.superseded)
        if is_other and not target.metrics and SUPERSEDED_TAG not in target.tags:
            there.store.discard(target.run_id)


def _is_of_another(there: ServerRun, run: RunRecord, run_id: str) -> bool:
    """Whether the MLflow run holds a different record: both would draw into one curve."""
    try:
        owner = there.store.attach(run_id).tags.get(RECORD_TAG)
    except Gone:
        return False
    return owner is not None and owner != run.id


def _target(
    there: ServerRun, run: RunRecord, run_id: str | None, parent: str | None
) -> tuple[Target, bool]:
    store = there.store
    if run_id:
        try:
            return store.attach(run_id), False
        except Gone:
            there.note_gone(run_id)
            raise
    experiment = there.experiment or run.experiment
    for target in store.find(experiment, {RECORD_TAG: run.id}):
        if SUPERSEDED_TAG not in target.tags and target.run_id not in there.memory.superseded:
            return target, False
    tags = {
        RECORD_TAG: run.id,
        **({PARENT_TAG: parent} if parent else {}),
        **context_tags(run),
    }
    start_time = round(1000 * run.created)
    return store.create(experiment, name=run.name, start_time=start_time, tags=tags), True


def _tell_superseded(there: ServerRun, run: RunRecord) -> None:
    """The history continues in this run; the old ones are marked and ended."""
    for old in list(there.memory.superseding):
        try:
            previous = there.store.attach(old)
            there.store.set_tags(old, {SUPERSEDED_TAG: there.id})
            if previous.status == RUNNING:
                end_time = round(1000 * last_sign_of_life(run.path, run))
                there.store.set_status(old, KILLED, end_time)
        except Gone:
            pass
        there.store.set_tags(there.id, {_SUPERSEDES_TAG: old})
        there.memory.superseding.remove(old)
        there.save()
