"""`mlflow-track …`: parse, call one function, print. A command's module loads when it is named."""

from __future__ import annotations

import click

from mlflow_track.cli.lazy import LazyGroup


@click.command(
    cls=LazyGroup,
    homes={
        "ls": "listing.ls",
        "show": "show.show",
        "compare": "compare.compare",
        "plot": "plot.plot",
        "report": "report.report",
        "tail": "show.tail",
        "export": "export.export",
        "rm": "trash.rm",
        "gc": "trash.gc",
        "completion": "completion.completion",
        "ckpt": "ckpt.ckpt",
        "sync": "mirror.sync",
        "doctor": "mirror.doctor",
        "ui": "ui.ui",
    },
    context_settings={"help_option_names": ["-h", "--help"]},
)
def main() -> None:
    """Runs that mlflow_track has recorded: list, compare, send to an MLflow server."""
