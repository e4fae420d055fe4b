"""`mlflow-track …`: parse, call one function, print. A command's module loads when it is named."""

from __future__ import annotations

import click

from mlflow_track.cli.lazy import LazyGroup
from mlflow_track.cli.output import json_option, print_json


@click.command(
    cls=LazyGroup,
    homes={
        "plan": "checkpoint.plan.plan",
        "ls": "listing.ls",
        "show": "show.show",
        "compare": "compare.compare",
        "plot": "plot.plot",
        "report": "report.report",
        "tail": "tail.tail",
        "wait": "wait.wait",
        "export": "exchange.export.export",
        "import": "exchange.importing.import_",
        "du": "trash.du",
        "rm": "trash.rm",
        "gc": "trash.gc",
        "completion": ".completion",
        "ckpt": ".ckpt",
        "sync": "exchange.mirror.sync",
        "doctor": "exchange.mirror.doctor",
        "ui": "ui.ui",
    },
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="mlflow-track", message="%(prog)s %(version)s")
def main() -> None:
    """Runs that mlflow_track has recorded: list, compare, send to an MLflow server.

    Every command has --json. Exit codes: 0 yes, 1 no or failed, 2 usage, 3 not found, 4 pending.
    """


@click.command(
    cls=LazyGroup,
    homes={
        "ls": "checkpoint.inspect.list_checkpoints",
        "verify": "checkpoint.inspect.verify",
        "show": "checkpoint.inspect.show",
        "diff": "checkpoint.inspect.diff",
        "prune": "checkpoint.retention.prune",
        "export": "checkpoint.inspect.export",
        "pin": "checkpoint.retention.pin",
        "unpin": "checkpoint.retention.unpin",
        "replay": "checkpoint.replay.replay",
    },
)
def ckpt() -> None:
    """The checkpoints of a run: list, verify, compare, prune, export, replay.

    \b
    Example:
      mlflow-track ckpt ls @last
    """


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@json_option
def completion(shell: str, as_json: bool) -> None:
    """Print the completion script of SHELL; evaluate it in its start-up file.

    \b
    Examples:
      mlflow-track completion bash
      mlflow-track completion zsh
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(main, {}, "mlflow-track", "_MLFLOW_TRACK_COMPLETE").source()
    if as_json:
        print_json({"shell": shell, "script": script})
        return
    click.echo(f'# in the start-up file of {shell}: eval "$(mlflow-track completion {shell})"')
    click.echo(script)
