"""start_run: which run this process writes, a new one or one that it continues."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from mlflow_track import checks
from mlflow_track.checkpoint.ranks import FIRST, joined_job, rank_and_size
from mlflow_track.param_values import plain_params
from mlflow_track.record.directory import RunDirectory
from mlflow_track.record.discard import DiscardedRecord
from mlflow_track.record.tags import PARENT_TAG
from mlflow_track.resume import find_run_to_continue
from mlflow_track.run import Run
from mlflow_track.settings import read_settings


def start_run(
    *,
    experiment: str | None = None,
    run_name: str | None = None,
    params: Any = None,
    tags: Mapping[str, str] | None = None,
    resume: str | None = None,
    rewind: str | None = None,
    backend: str | Sequence[str] | None = None,
    directory: str | os.PathLike[str] | None = None,
    rank: int | None = None,
) -> Run:
    """Start a run, or continue one. Use it as `with start_run(…) as run:`.

    What is None comes from the environment, then from `.env`, then from the defaults (README).

    Args:
        experiment: The experiment's name.
        run_name: The run's name; without one the run is named by its id.
        params: A mapping, a dataclass or another object that a program is configured with, of
            values of any kind that has a text (docs/logging.md).
        tags: Strings by name.
        resume: "never" starts a new run; "auto" continues the newest unfinished run of this
            experiment and run name, if there is one; "must" insists on it; a run id names it.
        rewind: What happens at the MLflow server when a resume repeats steps that it has: with
            "continue" (the default) they stay as they are there, and a tag tells by how much the
            repetition differs; with "fork" a new MLflow run receives the kept history and goes on,
            and the old one is marked superseded.
        backend: "local", "off", or the names of backends that the record is sent to: "mlflow", or
            several as a list or with commas between them. The first is the one of `Run.url`.
        directory: The folder that holds all runs.
        rank: Which process of a job this is: 0 writes the run, the others write nothing. None
            asks torch.distributed, and before `init_process_group` the variables of torchrun,
            Lightning's launcher, mpirun and srun.

    Raises:
        ValueError: An unknown backend or resume word, a negative rank, two params of one name, a
            param that is too large; the message says what fits.
        TypeError: A param without a faithful text, a rank that is not an integer; the message
            names it.
        RunHeldError: Another live process writes the run to continue.
        LookupError: resume="must" or an id, and there is no such run.
        OSError: The folder cannot be written.
    """
    settings = read_settings(
        backend=backend,
        directory=directory,
        experiment=experiment,
        run_name=run_name,
        resume=resume,
        rewind=rewind,
    )
    checked_params = plain_params(params) if params is not None else {}
    parent = {PARENT_TAG: settings.parent_run_id} if settings.parent_run_id else {}
    checked_tags = {**parent, **checks.tags(tags or {})}
    if rank is not None:
        checks.require_int("rank", rank, at_least=FIRST)
    own_rank, _ = rank_and_size(os.environ, joined_job(), rank)
    if settings.is_off or own_rank != FIRST:
        record = DiscardedRecord(settings.experiment, checked_tags, is_shown=settings.is_off)
        return Run(record, settings, checked_params, checked_tags, is_resumed=False)
    found = find_run_to_continue(settings)
    run_directory = found or RunDirectory.create(
        settings.directory,
        experiment=settings.experiment,
        name=settings.run_name,
        tags=checked_tags,
    )
    return Run(run_directory, settings, checked_params, checked_tags, is_resumed=found is not None)
