"""Checkpoints as versions of one artifact of type "model"."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import msgspec
import wandb

from mlflow_track.backends.protocol import RunRecord
from mlflow_track.record import layout
from mlflow_track.record.schema import Manifest

_BEST = "best"
Logged = dict[str, list[str]]
"""By the name of a checkpoint's folder the aliases that it has at W&B; none before it is there."""


def pending_models(run: RunRecord, logged: Logged) -> list[tuple[str, list[str]]]:
    """The checkpoints that are to be logged, and their aliases, in this order.

    W&B gives the alias "latest" to what is logged last, also where it has that already.

    Args:
        run: The run.
        logged: What W&B has.
    """
    names = sorted(name for name in logged if _folder(run, name).is_dir())
    wanted = {name: _aliases(name, run.best) for name in names}
    pending = [name for name in names if not {*wanted[name]} <= {*logged[name]}]
    if pending and pending[-1] != names[-1]:
        pending.append(names[-1])
    return [(name, wanted[name]) for name in pending]


def with_model(logged: Logged, name: str, aliases: list[str]) -> Logged:
    """What W&B has once a checkpoint is logged: an alias belongs to one version."""
    others = {k: [each for each in v if each not in aliases] for k, v in logged.items()}
    return {**others, name: aliases}


def alias_of(name: str) -> str:
    """The alias that a checkpoint's version keeps, by the name of its folder."""
    return f"step-{layout.step_of_folder(name)}"


def _aliases(name: str, best: str) -> list[str]:
    return [alias_of(name), *([_BEST] if name == best else [])]


def make_model(run: RunRecord, run_id: str, name: str, keep_in: Path | None) -> wandb.Artifact:
    """The artifact of a checkpoint.

    Args:
        run: The run.
        run_id: W&B's id of it.
        name: The name of the checkpoint's folder.
        keep_in: A folder that keeps the files after the run has removed them; None for none.

    Raises:
        FileNotFoundError: The checkpoint is gone.
    """
    folder = _folder(run, name)
    manifest = msgspec.json.decode((folder / layout.MANIFEST).read_bytes(), type=Manifest)
    artifact = wandb.Artifact(
        model_name(run_id),
        type="model",
        metadata={"step": manifest.step, "metrics": manifest.metrics},
    )
    for file in sorted(folder.iterdir()):
        path = file
        if keep_in is not None:
            path = keep_in / name / file.name
            link(file, path)
        # No copy of it goes into W&B's own cache.
        artifact.add_file(str(path), name=file.name, policy="immutable", skip_cache=True)
    return artifact


def model_name(run_id: str) -> str:
    """The name of the artifact that has a run's checkpoints."""
    return f"model-{run_id}"


def link(file: Path, target: Path) -> None:
    """Give a file a second name: while it is there under the first, that takes no space.

    Raises:
        FileNotFoundError: It is gone.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(file, target)
    except FileNotFoundError:
        raise
    except OSError:
        # Another disk, or a file system without links.
        shutil.copyfile(file, target)


def _folder(run: RunRecord, name: str) -> Path:
    return run.path / layout.CHECKPOINTS / name
