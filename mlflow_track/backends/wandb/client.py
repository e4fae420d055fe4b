"""W&B's client: its mode, one run from start to end, and the process that it starts."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import wandb
from wandb.errors import AuthenticationError, UsageError
from wandb.sdk import wandb_setup
from wandb.sdk.lib import wbauth

from mlflow_track.backends.protocol import RunRecord, Unavailable
from mlflow_track.backends.wandb.description import Description, describe
from mlflow_track.backends.wandb.folders import Tail, number_and_position
from mlflow_track.backends.wandb.models import link
from mlflow_track.formats.wandb_records import POSITION_KEY, STEP_KEY

# So often the client writes what it was given, which a kill takes until then; its default is 15.
_FLUSH_SECONDS = 1.0
# A disk may be slow.
_MOST_FLUSH_SECONDS = 60.0
_INIT_SECONDS = 30.0
_FINISH_SECONDS = 300.0
_MOST_WAIT_SECONDS = 10.0
_CLOCK_SECONDS = 2.0
_CORE = "wandb-core"
_OFFLINE, _ONLINE = ("offline", "dryrun"), ("online", "run", "shared")


_SETTINGS: Mapping[str, Any] = {
    "silent": True,
    "console": "off",
    "symlink": False,
    "use_dot_wandb": False,
    "disable_git": True,
    "disable_code": True,
    "save_code": False,
    "disable_job_creation": True,
    "init_timeout": _INIT_SECONDS,
    "finish_timeout": _FINISH_SECONDS,
    "finish_timeout_raises": True,
    # The record has the machine and its metrics: those of this process mean nothing.
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_disable_machine_info": True,
    "x_save_requirements": False,
    "x_transaction_log_flush_interval": _FLUSH_SECONDS,
}


def read_server() -> str:
    """The server of W&B's own variables and settings; "" offline: files for `wandb sync`.

    Raises:
        Unavailable: W&B is switched off, there is no login, or the settings are invalid.
    """
    # A training that uses W&B itself hands its own process down, which ends with it.
    os.environ.pop("WANDB_SERVICE", None)
    os.environ["WANDB_SILENT"] = "true"
    try:
        settings = wandb_setup.singleton().settings
        mode, server = str(settings.mode), str(settings.base_url)
        if mode in _OFFLINE:
            return ""
        if mode not in _ONLINE:
            raise Unavailable(f"WANDB_MODE is {mode}", is_final=True)
        login = wbauth.authenticate_session(
            host=server, source="mlflow_track", prompt=False, update_session=False
        )
    except (ValueError, wandb.Error) as error:
        reason = " ".join(str(error).split())
        raise Unavailable(f"W&B refuses its settings: {reason}", is_final=True) from error
    if login is None:
        raise Unavailable(
            f"there is no login for {server}: set WANDB_API_KEY or run `wandb login`, or set "
            "WANDB_MODE=offline, which writes files for `wandb sync`",
            is_final=True,
        )
    return server


@contextlib.contextmanager
def _available() -> Iterator[None]:
    """What the client cannot do now, it may do later: it has ended, or its server is away."""
    try:
        yield
    except (Unavailable, FileNotFoundError):
        raise
    except (AuthenticationError, UsageError) as error:
        raise Unavailable(f"W&B refuses: {error}", is_final=True) from error
    except Exception as error:
        raise Unavailable(f"W&B's client failed: {error or repr(error)}") from error


class Session:
    """A run of the client, from its start to its end.

    Args:
        server: The result of `read_server`.
        folder: The folder `wandb` that gets the client's own.
        number: The number of that; see `folders.Place`.
        run_id: W&B's id of the run.
        run: The record.

    Attributes:
        run: The client's object.
        file: The file that the client writes.
        processes: The client's processes, each by its number and the Unix time of its start.
        has_rows: Whether something was logged.
    """

    @_available()
    def __init__(self, server: str, folder: Path, number: int, run_id: str, run: RunRecord) -> None:
        self._number = number
        self._is_online = bool(server)
        # The last position that was logged; the one seen in the file, and when that had changed.
        self._expected = self._there = ""
        self._moved = 0.0
        self._description = describe(run)
        self.has_rows = False
        folder.mkdir(parents=True, exist_ok=True)
        self.run = wandb.init(
            mode="online" if server else "offline",
            dir=str(folder.parent),
            id=run_id,
            project=None if os.environ.get("WANDB_PROJECT") else run.experiment,
            name=self._description.name,
            notes=self._description.notes,
            tags=self._description.tags,
            config=self._description.config,
            # Offline it tells `wandb sync` that the folders continue each other.
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(**_SETTINGS),
        )
        self.processes = _cores()
        self.file = Path(self.run.settings.sync_file)
        if folder.resolve() not in self.file.resolve().parents:
            # The client takes a temporary folder where it cannot write.
            raise Unavailable(f"W&B cannot write to {folder}")
        self._tail = Tail(self.file)
        self.run.define_metric("*", step_metric=STEP_KEY)
        self.run.summary.update(self._description.summary)

    @_available()
    def describe(self, description: Description) -> None:
        """Send what has changed of the description."""
        before, run = self._description, self.run
        if description.name not in (before.name, None):
            run.name = description.name
        if description.notes not in (before.notes, None):
            run.notes = description.notes
        if description.tags != before.tags:
            run.tags = description.tags
        if description.config != before.config:
            run.config.update(description.config, allow_val_change=True)
        if description.summary != before.summary:
            run.summary.update(description.summary)
        self._description = description

    def server_position(self, key: str) -> str:
        """The last position under a key that the server has."""
        text = str(self.run.summary.get(key) or "")
        return number_and_position(text)[1]

    @_available()
    def log(
        self, values: Mapping[str, Any], step: int, timestamp: int, key: str, position: str
    ) -> None:
        """Log a row.

        Args:
            values: Numbers and media, by name.
            step: Their step.
            timestamp: In milliseconds of Unix time.
            key: That of the position.
            position: The position in the record once the row has arrived.
        """
        own = {STEP_KEY: step, "_timestamp": timestamp / 1000, key: f"{self._number} {position}"}
        self.run.log({**values, **own})
        self.has_rows = True

    def expect(self, position: str) -> None:
        """Expect what has been logged so far, up to this position, to be in the file soon.

        Raises:
            Unavailable: The client has something to write, and has long written nothing.
        """
        now = time.monotonic()
        there = self._tail.read().last(POSITION_KEY)
        # It writes when it has time: what is there may end in the middle of any batch.
        if there == self._expected or there != self._there:
            self._there, self._moved = there, now
        elif now - self._moved > _MOST_FLUSH_SECONDS:
            raise Unavailable(f"W&B's client does not write to {self.file}")
        self._expected = position

    @_available()
    def save(self, file: Path, name: str) -> None:
        """Store a file of the run under a name, a path with slashes.

        Raises:
            FileNotFoundError: It is gone.
        """
        # The top level holds W&B's own files.
        target = Path(self.run.dir) / (name if name.startswith("record/") else f"artifacts/{name}")
        link(file, target)
        self.run.save(str(target), base_path=self.run.dir, policy="now", glob=False)

    @_available()
    def log_model(self, artifact: wandb.Artifact, aliases: Sequence[str]) -> None:
        """Log a version of an artifact; online, wait until it has arrived."""
        logged = self.run.log_artifact(artifact, aliases=list(aliases))
        if self._is_online:
            logged.wait(timeout=round(_FINISH_SECONDS))

    @_available()
    def delete_model(self, name: str, alias: str) -> None:
        """Delete a version of an artifact at the server."""
        path = f"{self.run.entity}/{self.run.project}/{name}:{alias}"
        wandb.Api().artifact(path).delete(delete_aliases=True)

    @_available()
    def finish(self, exit_code: int) -> str:
        """End the run and the client's process; returns the last position in the file."""
        self.run.summary.update(self._description.summary)
        self.run.finish(exit_code=exit_code)
        # Only then all of it is written.
        tear_down()
        return Tail(self.file).read().last(POSITION_KEY)


def tear_down() -> None:
    """End the client's process; a run that is open there is left as it is."""
    try:
        wandb.teardown()
    except (Exception, SystemExit):
        # It is gone already; the client exits with the status that it had.
        pass


def end_processes(processes: Sequence[Sequence[float]]) -> None:
    """End processes of the client that an earlier mirror has left: they would write its files.

    Raises:
        Unavailable: One does not end.
    """
    for pid, created in processes:
        try:
            process = psutil.Process(int(pid))
            # A clock that is set moves the times of all processes.
            if process.name() == _CORE and abs(process.create_time() - created) < _CLOCK_SECONDS:
                process.kill()
                process.wait(_MOST_WAIT_SECONDS)
        except psutil.NoSuchProcess:
            pass
        except (psutil.AccessDenied, psutil.TimeoutExpired) as error:
            raise Unavailable(f"the process {int(pid)} of W&B's client does not end") from error


def _cores() -> list[tuple[int, float]]:
    """The client's processes that this process has started."""
    found = []
    for child in psutil.Process().children():
        try:
            if child.name() == _CORE and child.status() != psutil.STATUS_ZOMBIE:
                found.append((child.pid, child.create_time()))
        except psutil.NoSuchProcess:
            pass
    return found
