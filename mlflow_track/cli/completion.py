"""`mlflow-track completion`: what a shell needs to complete commands, options and runs."""

from __future__ import annotations

import click


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of SHELL; evaluate it in its start-up file.

    \b
    Examples:
      mlflow-track completion bash
      mlflow-track completion zsh
    """
    from click.shell_completion import get_completion_class

    from mlflow_track.cli import main

    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(main, {}, "mlflow-track", "_MLFLOW_TRACK_COMPLETE").source()
    click.echo(f'# in the start-up file of {shell}: eval "$(mlflow-track completion {shell})"')
    click.echo(script)
