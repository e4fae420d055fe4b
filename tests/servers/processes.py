"""How a server process is started, waited for, and ended by its id."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests import forked

# Several times what the slowest start on a busy machine took.
_PATIENCE_SECONDS = 120.0


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Process:
    """One server process with all that it starts; its output goes to a log file."""

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        *,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        user: int | None = None,
    ) -> None:
        self._log = log
        identity = {} if user is None else {"user": user, "extra_groups": []}
        with open(log, "ab") as output:
            self.popen = forked.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=folder,
                env={**os.environ, **(environment or {})},
                # A session of its own: Ctrl-C is for whoever started it, who then ends it.
                start_new_session=True,
                **identity,  # type: ignore[arg-type]
            )

    def wait_until(self, is_ready: Callable[[], object]) -> None:
        """Wait until `is_ready` neither raises an OSError nor says no.

        Raises:
            RuntimeError: The process ended, or took too long; the message has its last output.
        """
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while self.popen.poll() is None and time.monotonic() < deadline:
            try:
                if is_ready():
                    return
            except OSError:
                pass
            time.sleep(0.1)
        self.kill()
        tail = self._log.read_text(errors="replace")[-3000:]
        raise RuntimeError(f"{self.popen.args} did not start:\n{tail}")

    def kill(self) -> None:
        """End it, and all that it started, at once."""
        self._signal_group(signal.SIGKILL)
        self.popen.wait()

    def terminate(self, number: int = signal.SIGTERM, patience_seconds: float = 30.0) -> None:
        """Ask it to end, and give it time."""
        self.popen.send_signal(number)
        try:
            self.popen.wait(patience_seconds)
        except subprocess.TimeoutExpired:
            pass
        self.kill()

    def _signal_group(self, number: int) -> None:
        try:
            os.killpg(self.popen.pid, number)
        except ProcessLookupError:
            pass
