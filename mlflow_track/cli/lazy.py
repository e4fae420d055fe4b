"""A group of commands of which each loads when it is named."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click

from mlflow_track.checks import did_you_mean
from mlflow_track.record.files import legible
from mlflow_track.record.info import UnreadableRun


class LazyGroup(click.Group):
    """Importing every command to run one would take longer than most commands do.

    Args:
        homes: For each command its module in `mlflow_track.cli` (none: the package itself), a
            dot, and its name there.
    """

    def __init__(self, *, homes: Mapping[str, str], **settings: Any) -> None:
        super().__init__(**settings)
        self._homes = homes

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what a damaged folder or the disk makes of it is one line."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except (OSError, ValueError) as error:
            from mlflow_track.checkpoint.disk.verify import CorruptCheckpointError

            if not isinstance(error, OSError | UnreadableRun | CorruptCheckpointError):
                raise
            raise click.ClickException(legible(str(error))) from error

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._homes)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._homes:
            return None
        module, _, name = self._homes[cmd_name].partition(".")
        return getattr(import_module(f"mlflow_track.cli.{module}".rstrip(".")), name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self._homes and not args[0].startswith("-"):
            ctx.fail(f"there is no command {args[0]!r}{did_you_mean(args[0], self._homes)}")
        return super().resolve_command(ctx, args)
