"""The five exit codes that scripts rely on (docs/scripting.md)."""

from __future__ import annotations

import signal

import click

YES = 0
# The answer is no, or the command failed.
NO = 1
# The command line must be written differently. This is click's own code.
USAGE = 2
NOT_FOUND = 3
# Not yet: asking again later may give another answer.
PENDING = 4
# The exit code of a program that Ctrl-C ended, as shells report it; "no" would be an answer.
INTERRUPTED = 128 + signal.SIGINT


class NotFound(click.ClickException):
    """A run, metric, checkpoint or folder that was named does not exist."""

    exit_code = NOT_FOUND


def of_status(status: str) -> int:
    """The exit code for how a run ended."""
    return {"FINISHED": YES, "RUNNING": PENDING}.get(status, NO)
