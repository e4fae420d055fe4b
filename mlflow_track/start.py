"""start_run: starts a run, or continues one."""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from mlflow_track import checks
from mlflow_track.checkpoint.ranks import FIRST, joined_job, rank_and_size
from mlflow_track.param_values import plain_params
from mlflow_track.record.console import occupy_standard_descriptors
from mlflow_track.record.directory import RunDirectory
from mlflow_track.record.discard import DiscardedRecord
from mlflow_track.record.tags import PARENT_TAG
from mlflow_track.resume import find_run_to_continue
from mlflow_track.run import Run
from mlflow_track.settings import Settings, read_settings

# The runs of this process, in the order of their starts.
_started: list[weakref.ref[Run]] = []


def active_run() -> Run | None:
    """The run that this process started last and that has not ended; None where there is none.

    In a process that was forked from the one that writes a run, that run is not active.
    """
    open_runs = [
        run for ref in _started if (run := ref()) is not None and not run._attempt.has_ended
    ]
    _started[:] = map(weakref.ref, open_runs)
    return open_runs[-1] if open_runs else None


def start_run(
    *,
    experiment: str | None = None,
    run_name: str | None = None,
    params: Any = None,
    tags: Mapping[str, str] | None = None,
    resume: str | None = None,
    on_rewind: str | None = None,
    backend: str | Sequence[str] | None = None,
    tracking_uri: str | None = None,
    directory: str | os.PathLike[str] | None = None,
    rank: int | None = None,
) -> Run:
    """Start a run, or continue one. Use it as `with start_run(…) as run:`.

    Arguments that are None come from the environment, then from `.env`, then from the defaults
    (README).

    Args:
        experiment: The experiment's name.
        run_name: The run's name; without one the run is named by its id.
        params: A mapping, a dataclass or another configuration object, with values of any kind
            that has a text (docs/logging.md).
        tags: Values by name; they become strings.
        resume: "never" starts a new run; "auto" continues the newest unfinished run of this
            experiment and run name, if there is one, and "allow" means the same; "must" requires
            one; a run id names it.
        on_rewind: How the MLflow server treats steps that a resume repeats: with "continue" (the
            default) they stay as they are there, and a tag records by how much the repetition
            differs; with "fork" a new MLflow run receives the kept history and what
            follows, and the old one is marked superseded.
        backend: "local", "off", or the names of backends that the record is sent to: "mlflow", or
            several as a list or with commas between them. The first is the one of `Run.url`.
        tracking_uri: The MLflow server; like MLFLOW_TRACKING_URI, which it beats.
        directory: The folder that holds all runs.
        rank: The number of this process in its job: 0 writes the run, the others write nothing.
            None asks torch.distributed, and before `init_process_group` the variables of torchrun,
            Lightning's launcher, mpirun and srun.

    Raises:
        ValueError: An unknown backend or resume word, a negative rank, two params of one name, a
            param that is too large; the message says what is valid.
        TypeError: A param without a faithful text, a tag without a text, a rank that is not an
            integer; the message names it.
        RunHeldError: Another live process writes the run to continue.
        LookupError: resume="must" or an id, but there is no such run.
        OSError: The folder cannot be written.
    """
    occupy_standard_descriptors()
    settings = read_settings(
        backend=backend,
        directory=directory,
        experiment=experiment,
        run_name=run_name,
        resume=resume,
        tracking_uri=tracking_uri,
        on_rewind=on_rewind,
    )
    checked_params = plain_params(params) if params is not None else {}
    parent = {PARENT_TAG: settings.parent_run_id} if settings.parent_run_id else {}
    checked_tags = {**parent, **checks.tags({} if tags is None else tags)}
    record, is_resumed = _record_of(settings, checked_tags, rank)
    run = Run(record, settings, checked_params, checked_tags, is_resumed=is_resumed)
    active_run()  # Forgets runs that have ended.
    _started.append(weakref.ref(run))
    return run


def _record_of(
    settings: Settings, tags: Mapping[str, str], rank: int | None
) -> tuple[RunDirectory, bool]:
    """The record that this process writes, and whether it continues an earlier one."""
    if rank is not None:
        checks.require_int("rank", rank, at_least=FIRST)
    own_rank, _ = rank_and_size(os.environ, joined_job(), rank)
    if settings.is_off or own_rank != FIRST:
        return DiscardedRecord(settings.experiment, tags, is_shown=settings.is_off), False
    if found := find_run_to_continue(settings):
        return found, True
    names = {"experiment": settings.experiment, "name": settings.run_name}
    return RunDirectory.create(settings.directory, **names, tags=tags), False
