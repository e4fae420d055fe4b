"""Programs in Python as processes that need not import torch: forked, where that is the same.

`Popen` and `run` are those of `subprocess`, and what they start is a process of its own: it has its
own session, folder, environment, descriptors and signals, it can be killed, and its exit status and
output are those of the program. The interpreter itself is forked from `tests/fork_server.py`, which
has imported the large packages and this one: 0.03 CPU-seconds instead of three. What a forked
interpreter cannot be is started as usual: one with options, with another locale, with variables
that are read when an interpreter or torch starts.

Tests of the start itself (what an import takes and loads, signals before the first line, closed
descriptors) use `subprocess`.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# The workers of a parallel run share the cores: threads of torch that wait for each other on a
# core that somebody else has cost more than they bring. Read when torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent
# In the environment of every process of a session of tests: the address of its fork server.
SESSION = "SUITE_SESSION"
# Where variables are read before a program's first line, a fork is too late for them.
_READ_AT_START = (
    *("PYTHON", "LC_", "LANG", "LD_", "OMP_", "KMP_", "MKL_", "OPENBLAS_", "ATEN_"),
    "MPL",
)
_SETTLED = ("PYTHONPATH",)
_STARTED_BY_THE_PACKAGE = ("mlflow", "mlflow_track.mirror", "mlflow_track.mirror.fetch", "train")
# The process that writes checkpoints, and how it is started. What is isolated there are imports,
# which a fork has made already.
_WRITER = ["-I", "-S"]
_WRITER_FILE = "/mlflow_track/checkpoint/writer/main.py"
# A test may name another one.
_INTERPRETER = sys.executable
_LIMITS = {getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")}
# The one option that a forked interpreter can follow; torchrun gives it.
_UNBUFFERED = "-u"
# Others may depend on how they were started.
_MODULES = ("mlflow", "train", "tests.", "torch.distributed.run")


class Popen(subprocess.Popen):
    """`subprocess.Popen`, whose process is forked if it may be."""

    _connection: socket.socket | None = None
    # Whether it is killed when this process ends.
    _is_tied = False

    # What is overridden here has had these names and first parameters from Python 3.10 to 3.14.

    def _execute_child(  # type: ignore[override]
        self,
        args: Any,
        executable: Any,
        preexec_fn: Any,
        close_fds: bool,
        pass_fds: Sequence[int],
        cwd: Any,
        env: Mapping[str, str] | None,
        startupinfo: Any,
        creationflags: int,
        shell: bool,
        *rest: Any,
    ) -> None:
        pipes, others = rest[:6], rest[6:]
        environment = dict(os.environ if env is None else env)
        program = None if executable or preexec_fn or shell else self._program_of(args)
        is_other_user = any(value is not None for value in others[1:4])
        if program is not None and SESSION in environment and not is_other_user:
            inherited = enumerate((pipes[0], pipes[3], pipes[5]))
            request = {
                "program": program,
                "command": [os.fsdecode(word) for word in args],
                "is_unbuffered": _UNBUFFERED in args[:2],
                "is_tied": self._is_tied,
                "folder": os.path.abspath(os.fsdecode(cwd or ".")),
                "environment": environment,
                "umask": _umask(),
                "limits": [(n, resource.getrlimit(n)) for n in _LIMITS],
                "ignored": [n for n in signal.valid_signals() if _is_ignored(n)],
                "blocked": [int(n) for n in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
                "descriptors": [0, 1, 2, *pass_fds],
            }
            standard = [number if pipe == -1 else pipe for number, pipe in inherited]
            if self._fork(request, (*standard, *pass_fds)):
                self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]
                self._child_created = True
                return
        before = (args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo)
        super()._execute_child(*before, creationflags, shell, *rest)  # type: ignore[misc]

    def _fork(self, request: Mapping[str, Any], descriptors: Sequence[int]) -> bool:
        """Whether the server has; it does not where the interpreter must start by itself."""
        connection = _connect(request["environment"][SESSION])
        send(connection, request, descriptors)
        answer = receive(connection)[0]
        if "pid" not in answer:
            connection.close()
            return False
        self._connection, self.pid = connection, answer["pid"]
        return True

    @staticmethod
    def _program_of(args: Any) -> list[str] | None:
        return program_of(args)

    def _internal_poll(self, *arguments: Any, **named: Any) -> int | None:
        if self._connection is None:
            return super()._internal_poll(*arguments, **named)  # type: ignore[misc]
        self._look(0)
        return self.returncode

    def _wait(self, timeout: float | None) -> int:  # type: ignore[override]
        if self._connection is None:
            return super()._wait(timeout=timeout)  # type: ignore[misc]
        if not self._look(timeout):
            assert timeout is not None
            raise subprocess.TimeoutExpired(self.args, timeout)
        assert self.returncode is not None
        return self.returncode

    def _look(self, timeout: float | None) -> bool:
        """Whether it has ended; waits for it so long."""
        assert self._connection is not None
        if self.returncode is None:
            poll = select.poll()
            poll.register(self._connection, select.POLLIN)
            if poll.poll(None if timeout is None else timeout * 1000):
                with self._waitpid_lock:  # type: ignore[attr-defined]
                    if self.returncode is None:
                        answer = receive(self._connection)[0]
                        self.returncode = os.waitstatus_to_exitcode(answer["status"])
        return self.returncode is not None

    def __del__(self, *arguments: Any, **named: Any) -> None:
        super().__del__(*arguments, **named)  # type: ignore[misc]
        if self._connection is not None:
            self._connection.close()


class PopenOfThePackage(Popen):
    """In the place of `subprocess.Popen`: forks only what the package starts.

    These are modules, and files: what writes checkpoints, and the program of a replay.
    """

    @staticmethod
    def _program_of(args: Any) -> list[str] | None:
        program = program_of(args)
        if program is None:
            return None
        is_ours = program[0] == "file" or program[1] in _STARTED_BY_THE_PACKAGE
        return program if is_ours else None


def run(
    args: Sequence[Any],
    *,
    input: str | bytes | None = None,
    capture_output: bool = False,
    timeout: float | None = None,
    check: bool = False,
    **named: Any,
) -> subprocess.CompletedProcess[Any]:
    """`subprocess.run` with our `Popen`."""
    if input is not None:
        named["stdin"] = subprocess.PIPE
    if capture_output:
        named["stdout"] = named["stderr"] = subprocess.PIPE
    with Popen(args, **named) as process:
        try:
            out, err = process.communicate(input, timeout=timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(process.args, process.returncode, out, err)
    if check:
        done.check_returncode()
    return done


def program_of(args: Any) -> list[str] | None:
    """What an interpreter is to run: how it is named, its name, and its arguments.

    None where it is no program in Python, or the interpreter gets options.
    """
    if isinstance(args, str | bytes | os.PathLike):
        return None
    words = [os.fsdecode(word) for word in args]
    if words[1:2] == [_UNBUFFERED]:
        del words[1]
    if words[1:3] == _WRITER and words[3].endswith(_WRITER_FILE):
        del words[1:3]
    if len(words) < 2 or words[0] != _INTERPRETER:
        return None
    if words[1] == "-m" and len(words) > 2:
        return words[1:] if words[2].startswith(_MODULES) else None
    if words[1] == "-c" and len(words) > 2:
        return words[1:]
    return None if words[1].startswith("-") else ["file", *words[1:]]


def read_at_start(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that an interpreter, or torch, reads when it starts."""
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(_READ_AT_START) and name not in _SETTLED
    }


def _is_ignored(number: int) -> bool:
    # Python ignores two by itself; subprocess gives them back to what it starts.
    return number not in (signal.SIGPIPE, signal.SIGXFSZ) and (
        signal.getsignal(number) is signal.SIG_IGN
    )


def _umask() -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1], 8) for line in file if line.startswith("Umask:"))


# --- in the place of an interpreter ---


# Set: the interpreter is forked. Elsewhere it starts.
FORKING = "SUITE_FORKS"
_STAND_IN = """#!{python} -IS
import os, sys
words = [*{options!r}, *sys.argv[1:]]
if {variable!r} not in os.environ:
    os.execv({python!r}, [{python!r}, *words])
sys.path.insert(0, {root!r})
from tests import forked
sys.exit(forked.stand_in({python!r}, words))
"""


def write_stand_in(path: Path, *options: str) -> None:
    """Write a program that is this interpreter, given `options` before all others."""
    names = {"python": sys.executable, "options": options, "variable": FORKING, "root": str(ROOT)}
    path.write_text(_STAND_IN.format(**names))
    path.chmod(0o755)


class _TiedPopen(Popen):
    _is_tied = True


def stand_in(python: str, words: Sequence[str]) -> int:
    """Do as the interpreter `python` would that got `words`; returns its exit status.

    Signals go on to the forked program, and it does not outlive this process.
    """
    process = _TiedPopen([python, *words])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda number, _: process.send_signal(number))
    code = process.wait()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


# --- the server ---


class ForkServer:
    """The server's process; it ends with `stop`, and with the process that started it."""

    def __init__(self) -> None:
        # Not above: a stand-in for an interpreter takes this file alone.
        from tests.environment import foreign_variables

        self.address = f"suite-{os.getpid()}-{os.urandom(8).hex()}"
        self._process = subprocess.Popen(
            # Room for the command lines of children.
            [sys.executable, "-m", "tests.fork_server", self.address, "-" * 8192],
            cwd=ROOT,
            # As tests have it: where it differs, a child starts an interpreter of its own.
            env={
                **{n: v for n, v in os.environ.items() if n not in foreign_variables()},
                SESSION: self.address,
                "MLFLOW_DISABLE_TELEMETRY": "true",
            },
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    def stop(self) -> None:
        self._process.communicate()


def cpu_seconds() -> float:
    """What the forked processes that this one started, directly or not, have used; ended ones."""
    if SESSION not in os.environ:
        return 0.0
    with _connect(os.environ[SESSION]) as connection:
        send(connection, {"costs_of": os.getpid()})
        return receive(connection)[0]["seconds"]


def _connect(address: str) -> socket.socket:
    """Wait for the server, which may have been started just now."""
    connection = socket.socket(socket.AF_UNIX)
    deadline = time.monotonic() + 60
    while True:
        try:
            connection.connect("\0" + address)
            return connection
        except OSError as error:
            if error.errno not in (errno.ECONNREFUSED, errno.EAGAIN):
                raise
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def send(
    connection: socket.socket, message: Mapping[str, Any], descriptors: Sequence[int] = ()
) -> None:
    """Send one message, and descriptors with it."""
    data = json.dumps(message).encode()
    data = struct.pack("I", len(data)) + data
    sent = socket.send_fds(connection, [data], descriptors)
    # Nothing at all is refused as well, where the other side has closed already.
    if rest := data[sent:]:
        connection.sendall(rest)


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """The next message, and descriptors that came with it.

    Raises:
        EOFError: The other side is gone.
    """
    data, descriptors, _, _ = socket.recv_fds(connection, 4, 64)
    if len(data) < 4:
        raise EOFError("the fork server has ended")
    (size,) = struct.unpack("I", data)
    data = b""
    while len(data) < size:
        data += connection.recv(size - len(data))
    return json.loads(data), descriptors
