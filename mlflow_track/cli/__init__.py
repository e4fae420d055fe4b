"""`mlflow-track …`: parse, call one function, print. A command's module loads when it is named."""

from __future__ import annotations

from importlib import import_module

import click

# Which module of this package holds a command; there it is a click command of the same name.
_HOMES = {
    "ls": "listing",
    "show": "show",
    "compare": "compare",
    "plot": "plot",
    "report": "report",
    "tail": "show",
    "export": "export",
    "rm": "trash",
    "gc": "trash",
    "completion": "completion",
    "ckpt": "checkpoints",
    "sync": "mirror",
    "doctor": "mirror",
    "ui": "ui",
}


class _LazyGroup(click.Group):
    """Importing every command to run one would take longer than most commands do."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_HOMES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _HOMES:
            return None
        return getattr(import_module(f"{__name__}.{_HOMES[cmd_name]}"), cmd_name)


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Runs that mlflow_track has recorded: list, compare, send to an MLflow server."""
