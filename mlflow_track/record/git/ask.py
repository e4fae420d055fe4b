"""Asks git a question, as a program that runs no other, writes nothing and is not waited for long.

What a repository or a user's configuration names (a filter, a textconv, an external diff, a hook,
a file system monitor) would be run in the middle of somebody's training, and could fail there.
"""

from __future__ import annotations

import os
import select
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import IO

from mlflow_track.record.files import legible
from mlflow_track.record.masking import mask_password
from mlflow_track.wording import size_text

# Of all questions about a run together: the end of a run waits for them.
_MOST_SECONDS = 25.0
_MOST_REASON_CHARACTERS = 300
# The form of an answer must not depend on the configuration. An empty monitor is none, in every
# version of git; the names of hooks are looked for in a folder where there are none.
_SETTINGS = {
    "core.fsmonitor": "",
    "core.hooksPath": os.devnull,
    "core.quotePath": "true",
    "core.safecrlf": "false",
    "diff.autoRefreshIndex": "true",
    "diff.relative": "false",
    "diff.suppressBlankEmpty": "false",
}
# These change what a path or a diff means.
_NOT_TAKEN = (
    "GIT_DIFF_OPTS",
    "GIT_EXTERNAL_DIFF",
    "GIT_GLOB_PATHSPECS",
    "GIT_NOGLOB_PATHSPECS",
    "GIT_ICASE_PATHSPECS",
)
# Missing objects of a partial clone would be fetched, through ssh perhaps.
_SET = {
    "GIT_LITERAL_PATHSPECS": "1",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ALLOW_PROTOCOL": "none",
    "GIT_NO_LAZY_FETCH": "1",
    "LC_ALL": "C",
    "LANGUAGE": "C",
}
_PARTS = ("clean", "smudge", "process")
_MOST_NAMES_BYTES = 1 << 20
_EMPTY, _FALSE = "_MLFLOW_TRACK_GIT_EMPTY", "_MLFLOW_TRACK_GIT_FALSE"


class GitError(Exception):
    """Git did not answer; the message says why, in one line."""


class Git:
    """Git in one folder.

    Args:
        folder: The folder; None is the working folder.
        environment: The variables of the moment that is asked about.
        filters: The filters to leave out, by the names that the configuration has for them.
        until: When all must be answered, by `time.monotonic`; else some time from now.
    """

    def __init__(
        self,
        folder: str | None,
        environment: Mapping[str, str],
        filters: Sequence[str] = (),
        until: float | None = None,
    ) -> None:
        self.folder = folder
        self.until = time.monotonic() + _MOST_SECONDS if until is None else until
        self.filters = frozenset(filters)
        kept = {k: v for k, v in environment.items() if k not in _NOT_TAKEN}
        self._environment = {**kept, **_SET, _EMPTY: "", _FALSE: "false"}
        words = [word for k, v in _SETTINGS.items() for word in ("-c", f"{k}={v}")]
        for name in filters:
            # Not with -c: a name may contain an equals sign.
            words += [f"--config-env=filter.{name}.{part}={_EMPTY}" for part in _PARTS]
            words += [f"--config-env=filter.{name}.required={_FALSE}"]
        self._command = ["git", *words]

    def start(
        self, *arguments: str, content: IO[bytes] | int = subprocess.DEVNULL
    ) -> subprocess.Popen[bytes]:
        """Begin a question.

        Raises:
            GitError: There is no git, or no further process.
        """
        try:
            return subprocess.Popen(
                [*self._command, *arguments],
                cwd=self.folder,
                env=self._environment,
                stdin=content,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # A Ctrl-C is for the training.
            )
        except (OSError, ValueError) as error:
            raise GitError(f"git cannot be run: {error}") from None

    def ask(self, *arguments: str, most_bytes: int, content: bytes = b"") -> bytes:
        """The answer to a question, which may come with some content.

        Raises:
            GitError: See `answer_of`.
        """
        if not content:
            return answer_of(self.start(*arguments), most_bytes, self.until)
        with tempfile.TemporaryFile() as file:
            file.write(content)
            file.seek(0)
            return answer_of(self.start(*arguments, content=file), most_bytes, self.until)

    def configured_filters(self) -> list[str]:
        """The names of the filters that the configuration has a program for.

        Raises:
            GitError: See `answer_of`.
        """
        asked = self.start("config", "-z", "--name-only", "--get-regexp", r"^filter\..*")
        # 1: there are none.
        answer = answer_of(asked, _MOST_NAMES_BYTES, self.until, statuses=(0, 1))
        keys = (key.decode(errors="surrogateescape") for key in answer.split(b"\0"))
        named = (key.removeprefix("filter.").rpartition(".") for key in keys)
        return sorted({name for name, _, part in named if name and part in _PARTS})


def end(process: subprocess.Popen[bytes]) -> None:
    """End a question that nobody needs an answer to."""
    with process:
        process.kill()


def answer_of(
    process: subprocess.Popen[bytes], most_bytes: int, until: float, statuses: Sequence[int] = (0,)
) -> bytes:
    """What a started git says.

    Args:
        process: Its pipes are closed afterwards.
        most_bytes: A longer answer is an error: it is not kept in memory.
        until: When it must be there, by `time.monotonic`.
        statuses: The exit statuses of an answer.

    Raises:
        GitError: It failed, said too much, or said nothing for too long.
    """
    assert process.stdout is not None and process.stderr is not None
    said, error = bytearray(), bytearray()
    pipes = {process.stdout.fileno(): said, process.stderr.fileno(): error}
    poll = select.poll()
    for descriptor in pipes:
        poll.register(descriptor, select.POLLIN)
    with process:
        try:
            while pipes:
                ready = poll.poll(1000 * max(0.0, until - time.monotonic()))
                if not ready:
                    raise GitError(f"git took more than {_MOST_SECONDS:g} s")
                for descriptor, _ in ready:
                    piece = os.read(descriptor, 1 << 16)
                    pipes[descriptor] += piece
                    if not piece:
                        poll.unregister(descriptor)
                        del pipes[descriptor]
                if len(said) > most_bytes:
                    raise GitError(f"git says more than {size_text(most_bytes)}")
                del error[:-4096]
            status = process.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired as late:
            raise GitError(str(late)) from None
        finally:
            process.kill()
    if status not in statuses:
        lines = error.decode(errors="replace").split("\n")
        reason = next((line for line in reversed(lines) if line.startswith("fatal: ")), lines[0])
        text = legible(mask_password(reason.removeprefix("fatal: ").strip()))
        raise GitError(text[:_MOST_REASON_CHARACTERS] or f"git ended with status {status}")
    return bytes(said)
