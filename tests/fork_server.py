"""A process that has imported what trainers import, and forks one for each request.

`python -m tests.fork_server ADDRESS PADDING` listens on the abstract Unix socket ADDRESS until its
standard input ends. A child is a process with a session, folder, environment, descriptors and
signals of its own, and it ends as an interpreter ends: threads are joined, exit functions run, the
exit status is true. What it lacks is the start: hash seed, locale and options of the interpreter
are the server's. `tests/forked.py` is the other side, and says which programs may be run so.
"""

from __future__ import annotations

import atexit
import ctypes
import fcntl
import gc
import importlib
import importlib.util
import io
import os
import pkgutil
import re
import resource
import runpy
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import types
import weakref
from typing import Any, NamedTuple

from tests.forked import Popen, read_at_start, receive, send

# What takes long to import, of other people's.
PRELOADED = """
    numpy torch torch._dynamo torch.distributed.run pandas
    mlflow mlflow.store.tracking.sqlalchemy_store mlflow.store.tracking.rest_store
    mlflow.store.artifact.local_artifact_repo mlflow.store.artifact.mlflow_artifacts_repo
    sqlalchemy.dialects.sqlite alembic.command
    matplotlib.figure matplotlib.backends.backend_agg pydoc_data.topics
    orjson xxhash safetensors.torch psutil click email.policy
""".split()
# Of this checkout all that changes nothing but the modules that are there, and is not run as a
# program. A child whose path leads to another checkout imports that one.
_OWN = ("mlflow_track", "train")
_NOT_PRELOADED = re.compile(r".*\.__main__|mlflow_track\.(backends|importers|ui|mirror\.fetch)\b.*")
_own: dict[str, types.ModuleType] = {}
# Kept whole: in a child, to free them would be to copy the memory that they are in.
_finders = sys.path_importer_cache
_PEER = struct.Struct("3i")


class Exit:
    """How the interpreter is going to end; the last exit function makes it so.

    The rest of an interpreter's end takes modules apart, which in a process with so many of them
    costs more than most of the programs that are run here.
    """

    def __init__(self) -> None:
        self.is_child = False
        self.status = 0
        self.is_interrupted = False
        atexit.register(self._leave)

    def note(self, error: BaseException) -> None:
        """What Python makes of an exception that nobody catches."""
        if isinstance(error, SystemExit):
            code = 0 if error.code is None else error.code
            self.status = code & 0xFF if isinstance(code, int) else 1
        else:
            self.status = 1
        self.is_interrupted = isinstance(error, KeyboardInterrupt)

    def _leave(self) -> None:
        if not self.is_child:
            return
        for stream in (sys.stdout, sys.stderr):
            try:
                if stream is not None and not stream.closed:
                    stream.flush()
            except OSError:
                self.status = 120
        if self.is_interrupted:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        os._exit(self.status)


class Job(NamedTuple):
    """What a child is to be: its request, the descriptors that came along, and who waits for it."""

    request: dict[str, Any]
    descriptors: list[int]
    connection: socket.socket


class Server:
    """Forks children on request, and tells whoever asked how they end."""

    def __init__(self, address: str) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind("\0" + address)
        self._listener.listen(128)
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        os.set_blocking(self._wake_read, False)
        signal.set_wakeup_fd(self._wake_write)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._waiting: dict[int, socket.socket] = {}
        # What was forked for each process that has asked for its costs, and for those it started.
        self._costs: dict[int, float] = {}
        self._roots: dict[int, int] = {}
        self._at_start = read_at_start(os.environ)
        self._selector = selectors.DefaultSelector()
        for source in (0, self._listener, self._wake_read):
            self._selector.register(source, selectors.EVENT_READ)

    def serve(self) -> Job | None:
        """Until standard input ends; in a child: what it is to do."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj == 0:
                    return None
                if key.fileobj == self._wake_read:
                    os.read(self._wake_read, 4096)
                    self._reap()
                elif key.data is not None:
                    # Whoever started it has ended; so has the child, if it is not waited for.
                    if key.data in self._waiting:
                        self._selector.unregister(key.fileobj)
                        os.kill(key.data, signal.SIGKILL)
                elif (job := self._answer(self._listener.accept()[0])) is not None:
                    return job

    def _answer(self, connection: socket.socket) -> Job | None:
        peer, user, _ = _PEER.unpack(
            connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
        )
        request, descriptors = receive(connection)
        if not request:
            connection.close()
        elif "costs_of" in request:
            self._reap()
            _tell(connection, {"seconds": self._costs.setdefault(request["costs_of"], 0.0)})
            connection.close()
        elif user != os.getuid() or read_at_start(request["environment"]) != self._at_start:
            _tell(connection, {})
            connection.close()
        else:
            preload()
            child = os.fork()
            if child == 0:
                self._forget()
                return Job(request, descriptors, connection)
            self._waiting[child] = connection
            if request["is_tied"]:
                self._selector.register(connection, selectors.EVENT_READ, child)
            self._roots[child] = self._root_of(peer)
        for descriptor in descriptors:
            os.close(descriptor)
        return None

    def _root_of(self, process: int) -> int:
        """Who asks for the costs of a process: itself, or an ancestor; 0 where nobody does."""
        while process > 1 and process not in self._costs:
            if process in self._roots:
                return self._roots[process]
            process = _parent_of(process)
        return process if process > 1 else 0

    def _reap(self) -> None:
        while True:
            try:
                child, status, used = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if child == 0:
                return
            root = self._roots.pop(child)
            if root in self._costs:
                self._costs[root] += used.ru_utime + used.ru_stime
            connection = self._waiting.pop(child)
            if connection in self._selector.get_map():
                self._selector.unregister(connection)
            _tell(connection, {"status": status})
            connection.close()

    def _forget(self) -> None:
        """In a child: nothing of the server stays."""
        signal.set_wakeup_fd(-1)
        self._selector.close()
        for own in (self._listener, *self._waiting.values()):
            own.close()
        os.close(self._wake_read)
        os.close(self._wake_write)


def _parent_of(process: int) -> int:
    try:
        with open(f"/proc/{process}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except OSError:
        return 0


def _tell(connection: socket.socket, message: dict[str, Any]) -> None:
    try:
        send(connection, message)
    except OSError:
        pass  # whoever started it has ended


def preload() -> None:
    """Import what children need, once."""
    if "torch" in sys.modules:
        return
    for name in PRELOADED:
        importlib.import_module(name)
    # MLflow imports its plugins, of which we are one.
    _take_own()
    for package in map(importlib.import_module, _OWN):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not _NOT_PRELOADED.fullmatch(module.name):
                importlib.import_module(module.name)
    _own.update(_take_own())
    # Libraries of operators of torch, which the end of a process need not take apart.
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        finalizer.atexit = False
    # A thread would not be there in a child, and what it holds would be held for ever.
    assert threading.active_count() == 1, threading.enumerate()
    gc.collect()
    gc.freeze()


def _take_own() -> dict[str, types.ModuleType]:
    """Unload the modules of this checkout; returns them."""
    names = [name for name in sys.modules if name.partition(".")[0] in _OWN]
    return {name: sys.modules.pop(name) for name in names}


# --- in a child ---


def settle(job: Job) -> None:
    """Become what the request describes, short of running it."""
    request = job.request
    os.setsid()
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGPIPE, signal.SIGXFSZ, *request["ignored"]):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, request["blocked"])
    # Only now: whoever started it may send it signals.
    _tell(job.connection, {"pid": os.getpid()})
    job.connection.close()
    _place(dict(zip(request["descriptors"], job.descriptors, strict=True)))
    os.umask(request["umask"])
    for number, limits in request["limits"]:
        resource.setrlimit(number, limits)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    time.tzset()
    # Python's own generator has been seeded anew by the fork.
    sys.modules["numpy"].random.seed()
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        former = getattr(sys, name)
        is_unbuffered = former.write_through or request["is_unbuffered"]
        stream = _stream(number, former, is_unbuffered)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    _show_command(request["command"])


def _stream(descriptor: int, former: io.TextIOWrapper, is_unbuffered: bool) -> io.TextIOWrapper:
    """A standard stream as an interpreter that starts now makes it: a terminal gets whole lines."""
    raw = io.FileIO(descriptor, "wb" if descriptor else "rb", closefd=False)
    buffer = io.BufferedWriter if descriptor else io.BufferedReader
    return io.TextIOWrapper(
        raw if is_unbuffered else buffer(raw),
        encoding=former.encoding,
        errors=former.errors,
        line_buffering=descriptor == 2 or raw.isatty(),
        write_through=is_unbuffered,
    )


def _place(descriptors: dict[int, int]) -> None:
    """Give each received descriptor the number that it is to have, and close all others."""
    above = max(*descriptors, *descriptors.values()) + 1
    moved = {n: fcntl.fcntl(d, fcntl.F_DUPFD_CLOEXEC, above) for n, d in descriptors.items()}
    for number in [int(name) for name in os.listdir("/proc/self/fd")]:
        if number not in moved.values():
            try:
                os.close(number)
            except OSError:
                pass  # the one that listed them
    for number, descriptor in moved.items():
        os.dup2(descriptor, number)
        os.close(descriptor)


def _show_command(command: list[str]) -> None:
    """Write it where `ps` and /proc/…/cmdline read: over the server's own words."""
    with open("/proc/self/stat", "rb") as file:
        begin, end = (int(word) for word in file.read().rpartition(b")")[2].split()[45:47])
    words = b"".join(os.fsencode(word) + b"\0" for word in command)[: end - begin - 1]
    ctypes.memset(begin, 0, end - begin)
    ctypes.memmove(begin, words, len(words))


def run(request: dict[str, Any], base_path: list[str]) -> None:
    """Run the program as `__main__`."""
    kind, program, *arguments = request["program"]
    sys.orig_argv = request["command"]
    sys.argv = [program if kind == "file" else kind, *arguments]
    path = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    first = {"-c": "", "-m": os.getcwd(), "file": os.path.dirname(os.path.abspath(program))}[kind]
    sys.path[:] = [first, *filter(None, path), *base_path]
    sys.path_importer_cache = {
        place: finder for place, finder in _finders.items() if place in base_path and finder
    }
    if all(map(_is_preloaded, _OWN)):
        sys.modules.update(_own)
    if kind == "-m":
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    elif kind == "file":
        runpy.run_path(program, run_name="__main__")
    else:
        main = types.ModuleType("__main__")
        sys.modules["__main__"] = main
        exec(compile(program, "<string>", "exec"), main.__dict__)


def _is_preloaded(name: str) -> bool:
    """Whether an import would find the file that the server has imported."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        return False
    return os.path.samefile(spec.origin, str(_own[name].__file__))


def main() -> None:
    # What children start in turn is forked as well: mirrors, the ranks of torchrun.
    subprocess.Popen = Popen
    base_path = sys.path[1:]
    for entry in filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)):
        base_path.remove(entry)
    leaving = Exit()
    job = Server(sys.argv[1]).serve()
    if job is None:
        return
    leaving.is_child = True
    try:
        settle(job)
        run(job.request, base_path)
    except BaseException as error:
        leaving.note(error)
        raise


if __name__ == "__main__":
    main()
