"""`mlflow-track ckpt …`: the commands about the checkpoints of a run."""

from __future__ import annotations

import click

from mlflow_track.cli.lazy import LazyGroup


@click.command(
    cls=LazyGroup,
    homes={
        "ls": "checkpoints.list_checkpoints",
        "verify": "checkpoints.verify",
        "show": "checkpoints.show",
        "diff": "checkpoints.diff",
        "prune": "retention.prune",
        "export": "checkpoints.export",
        "pin": "retention.pin",
        "unpin": "retention.unpin",
        "replay": "replay.replay",
    },
)
def ckpt() -> None:
    """The checkpoints of a run: list, verify, compare, prune, export, replay.

    \b
    Example:
      mlflow-track ckpt ls @last
    """
