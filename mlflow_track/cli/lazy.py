"""A group of commands that loads each one when it is called."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click

from mlflow_track.checks import did_you_mean
from mlflow_track.cli import exit_codes
from mlflow_track.cli.output import escaped, print_json
from mlflow_track.extras import MissingExtra
from mlflow_track.record.files import WITHOUT_FOLDER
from mlflow_track.record.info import UnreadableRun

_MOST_HELP = 1000
_IS_FOR_PROGRAMS = "mlflow_track.cli.is_for_programs"


class LazyGroup(click.Group):
    """Importing every command to run one would take longer than most commands do.

    Args:
        homes: For each command its module in `mlflow_track.cli` (none: the package itself), a
            dot, and its name there.
    """

    def __init__(self, *, homes: Mapping[str, str], **settings: Any) -> None:
        super().__init__(**settings)
        self._homes = homes

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # Which command it will be is not known yet, and all of them have the option.
        if ctx.parent is None:
            ctx.meta[_IS_FOR_PROGRAMS] = "--json" in args
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; reports errors of damaged folders and of the disk in one line.

        With --json an error is also a document on stdout: a program always has one to parse.
        """
        if ctx.parent is not None:
            return super().invoke(ctx)
        if isinstance(sys.stdout, io.TextIOWrapper):
            # A console in Latin-1 has no word for the rest.
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise click.exceptions.Exit(exit_codes.INTERRUPTED) from None
        except BrokenPipeError:
            raise
        except (click.ClickException, MissingExtra, OSError, ValueError) as error:
            failure = _as_failure(error)
        # The disk may be full on which all of this is written.
        with contextlib.suppress(OSError):
            if ctx.meta[_IS_FOR_PROGRAMS]:
                document = {"error": failure.format_message(), "exit_code": failure.exit_code}
                # On one line, as `tail` prints all of its documents.
                print_json(document, is_line=True)
        _drop_unwritten()
        text = io.StringIO()
        failure.show(text)
        with contextlib.suppress(OSError):
            click.echo(escaped(text.getvalue()), err=True, nl=False)
        raise click.exceptions.Exit(failure.exit_code)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._homes)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._homes:
            return None
        module, _, name = self._homes[cmd_name].rpartition(".")
        return getattr(import_module(f"mlflow_track.cli.{module}".rstrip(".")), name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands with the whole first sentence of each: click would cut it off."""
        commands = ((name, self.get_command(ctx, name)) for name in self._homes)
        with formatter.section("Commands"):
            formatter.write_dl([(n, c.get_short_help_str(_MOST_HELP)) for n, c in commands if c])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self._homes and not args[0].startswith("-"):
            ctx.fail(f"there is no command {args[0]!r}{did_you_mean(args[0], self._homes)}")
        return super().resolve_command(ctx, args)


def _as_failure(
    error: click.ClickException | MissingExtra | OSError | ValueError,
) -> click.ClickException:
    """The message to the user for an error.

    Raises:
        ValueError: The error itself, which is a bug.
    """
    if isinstance(error, click.ClickException):
        return error
    from mlflow_track.checkpoint.disk.verify import CorruptCheckpointError

    if not isinstance(error, MissingExtra | OSError | UnreadableRun | CorruptCheckpointError):
        raise error
    if isinstance(error, FileNotFoundError) and error.filename is None and not _has_folder():
        return click.ClickException(WITHOUT_FOLDER)
    return click.ClickException(str(error))


def _drop_unwritten() -> None:
    """What cannot be written would turn the exit status into 120 at Python's end."""
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    except (AttributeError, ValueError):
        pass  # There is none.


def _has_folder() -> bool:
    try:
        return bool(os.getcwd())
    except FileNotFoundError:
        return False
