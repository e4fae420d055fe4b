"""Brings a run from a backend to a machine that has no record of it, to be continued here.

`python -m mlflow_track.mirror.fetch REQUEST` is a separate process, because the trainer does
not import what a backend needs. It prints one JSON object: the folder, or why there is none.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from mlflow_track.backends.protocol import Backend, Found, Query, Unavailable, has
from mlflow_track.checkpoint.disk.store import Checkpoint, CheckpointStore, CorruptCheckpointError
from mlflow_track.mirror.process import open_backend
from mlflow_track.mirror.progress import Position
from mlflow_track.mirror.shipper import HEARTBEAT_SECONDS
from mlflow_track.mirror.state import MirrorState
from mlflow_track.record import layout
from mlflow_track.record.files import replace_file, sync_folder, write_json
from mlflow_track.record.find import folder_name
from mlflow_track.record.info import read_content, to_info
from mlflow_track.record.masking import mask_values
from mlflow_track.record.schema import FINISHED, RUNNING
from mlflow_track.series import metrics_contents, series_of_points
from mlflow_track.wording import size_text

_POLL_SECONDS = 1.0
# What the search may last, in limits of one request.
_SEARCH_REQUESTS = 6
_SYSTEM_PREFIX = "system/"


@dataclass(frozen=True, kw_only=True)
class FetchRequest:
    """A request for a run.

    Attributes:
        backends: The names of the backends, in the order in which they are asked.
        directory: The folder that holds all runs.
        experiment: The experiment's name.
        run_name: The run's name; None wants one that was not named.
        word: "auto", "must", or an id: the record's, or that of the backend.
        experiment_id: The experiment's id at the backend, where nothing names it.
    """

    backends: list[str]
    directory: str
    experiment: str
    run_name: str | None
    word: str
    experiment_id: str | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self))


class HeldElsewhere(RuntimeError):
    """The run is alive on another machine."""


def fetch(request: FetchRequest, name: str, backend: Backend) -> Path | None:
    """Rebuild the record of the run that is wanted; None where the backend has no such run.

    Args:
        request: The wanted run.
        name: The backend's name.
        backend: The backend; it has `find`.

    Returns:
        The run's new folder: config, the history of its metrics, the newest checkpoint that
        verifies, and a state of the mirror that knows what the backend has.

    Raises:
        HeldElsewhere: It still sends heartbeats.
        CorruptCheckpointError: The backend has checkpoints of it, and none verifies.
        Unavailable: The backend does not answer.
    """
    with _limited():
        found = _wanted(request, backend)
    if found is None:
        return None
    if folder_name(found.record_id) != found.record_id:
        # The right to set a tag at the server must not decide where files go here.
        raise ValueError(f"{name} names the run {found.record_id!r}, which cannot be its id")
    _await_silence(request, backend, found)
    home = Path(request.directory) / folder_name(request.experiment)
    home.mkdir(parents=True, exist_ok=True)
    final = home / found.record_id
    building = home / f".fetch-{final.name}-{os.urandom(4).hex()}"
    building.mkdir()
    try:
        _build(building, found, name, backend)
        os.rename(building, final)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    sync_folder(home)
    return final


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """A search takes a few short answers; a server that drips them holds the start of training.

    MLflow's own limit counts from byte to byte.
    """
    seconds = _SEARCH_REQUESTS * float(os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT") or 10)

    too_late = TimeoutError()

    def give_up(number: int, frame: FrameType | None) -> None:
        raise too_late

    previous = signal.signal(signal.SIGALRM, give_up)
    # Once a second from then on: a library may have swallowed the first.
    signal.setitimer(signal.ITIMER_REAL, seconds, 1)
    try:
        yield
    except Exception as error:
        # MLflow has wrapped it in its own message.
        if too_late.__traceback__ is not None:
            raise Unavailable(f"no complete answer in {seconds:g} s") from error
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def _wanted(request: FetchRequest, backend: Backend) -> Found | None:
    is_id = request.word not in ("auto", "must")
    query = Query(
        request.experiment,
        id=request.word if is_id else None,
        run_name=None if is_id else request.run_name,
        experiment_id=request.experiment_id,
    )
    runs = backend.find(query)
    return next((run for run in runs if is_id or run.status != FINISHED), None)


def _await_silence(request: FetchRequest, backend: Backend, found: Found) -> None:
    """A run whose heartbeat changes is alive. Clocks differ, so only the change counts."""
    if found.status != RUNNING or found.heartbeat is None:
        return
    deadline = time.monotonic() + 2 * HEARTBEAT_SECONDS
    while time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
        runs = backend.find(
            Query(request.experiment, id=found.id, experiment_id=request.experiment_id)
        )
        if not runs or runs[0].status != RUNNING:
            return
        if runs[0].heartbeat != found.heartbeat:
            raise HeldElsewhere(
                f"run {found.record_id} is being written on another machine: the server "
                "sees its heartbeat; wait for it, or start another run with resume='never'"
            )


# --- the record ---


def _build(path: Path, found: Found, name: str, backend: Backend) -> None:
    backend.memory = found.memory
    _download(backend, found, "record/config.json", path)
    checkpoint, others = _download_checkpoint(path / layout.CHECKPOINTS, found, backend)
    positions = write_history(path, found, backend)
    _download(backend, found, "record/run.json", path / f"{layout.TEMPORARY}record")
    content = read_content(path / f"{layout.TEMPORARY}record")
    info = to_info(content)
    shutil.rmtree(path / f"{layout.TEMPORARY}record")
    for file in positions.keys() - {layout.SYSTEM_METRICS}:
        positions[file].rewinds = [0] * len(info.rewinds)
    state = MirrorState(
        destination=backend.destination,
        run_id=found.id,
        url=found.page,
        is_reconciled=True,
        compared_in=len(info.attempts),
        files=positions,
        checkpoints=[checkpoint] if checkpoint else [],
        elsewhere=others,
        status=found.status,
        memory=dict(backend.memory),
    )
    state.write(path, name)
    # Last: a folder without run.json is not a run.
    rebuilt = {"rewinding": None, "rebuilt_attempts": len(info.attempts)}
    write_json(path / layout.RUN, {**content, **rebuilt})


def _download(backend: Backend, found: Found, name: str, folder: Path) -> None:
    try:
        backend.download(found.id, name, folder)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"the server has no {name} of run {found.record_id}: it was sent by a version "
            "that cannot be continued elsewhere, or its artifacts were deleted"
        ) from None


def _download_checkpoint(
    folder: Path, found: Found, backend: Backend
) -> tuple[str | None, list[str]]:
    """The newest that verifies, now in `folder`, and the names of the others."""
    listed = backend.list_files(found.id, layout.CHECKPOINTS)
    names = [path.rsplit("/", 1)[-1] for path, _ in listed]
    steps = sorted(s for name in names if (s := layout.step_of_folder(name)) is not None)
    failures = []
    for step in reversed(steps):
        name = layout.folder_of_step(step)
        with contextlib.suppress(FileNotFoundError):  # no manifest: it is none
            try:
                _download_one(folder / name, step, found, backend)
                return name, [n for n in names if n != name]
            except CorruptCheckpointError as error:
                failures.append(str(error))
                CheckpointStore(folder).quarantine(Checkpoint(folder / name, step))
                print(f"DAMAGED checkpoint at the server: {error}", file=sys.stderr)
    if failures:
        raise CorruptCheckpointError(
            f"all checkpoints at the server are corrupt: {'; '.join(failures)}"
        )
    return None, names


def _download_one(path: Path, step: int, found: Found, backend: Backend) -> None:
    remote = f"{layout.CHECKPOINTS}/{path.name}"
    backend.download(found.id, f"{remote}/{layout.MANIFEST}", path)
    checkpoint = Checkpoint(path, step)
    print(f"fetching {path.name} ({size_text(checkpoint.size_bytes)})", file=sys.stderr)
    for file in checkpoint.manifest.files:
        try:
            backend.download(found.id, f"{remote}/{file}", path)
        except FileNotFoundError:
            raise CorruptCheckpointError(f"{path.name}/{file} is not at the server") from None
    checkpoint.verify()


def write_history(path: Path, found: Found, backend: Backend) -> dict[str, Position]:
    """Write metrics.csv, and where there are any metrics.long.csv and system_metrics.csv.

    Returns:
        For each file the position that says: the backend has all of it.
    """
    names = sorted(found.last_steps)
    system = [name for name in names if name.startswith(_SYSTEM_PREFIX)]
    own = [name for name in names if name not in system]
    positions = _write_metrics(path / layout.METRICS, own, found, backend)
    if system:
        positions |= _write_metrics(path / layout.SYSTEM_METRICS, system, found, backend)
    return positions


def _write_metrics(
    path: Path, names: list[str], found: Found, backend: Backend
) -> dict[str, Position]:
    series = [
        series_of_points(name, ((p.timestamp, p.step, p.value) for p in history))
        for name in names
        for history in [backend.history(found.id, name)]
    ]
    positions = {}
    for content in metrics_contents(path, series):
        replace_file(content.path, content.header, content.body)
        size = len(content.body)
        positions[content.path.name] = Position(acknowledged=size, sending=size)
    return positions


# --- the process ---


def main() -> None:
    answer = os.dup(1)
    os.dup2(2, 1)  # what libraries print is not an answer
    request = FetchRequest(**json.loads(sys.argv[1]))
    os.write(answer, json.dumps(_answer(request)).encode())


def _answer(request: FetchRequest) -> dict[str, Any]:
    """The path of the fetched run, or why it was not fetched; the first backend with it counts."""
    searched: list[str] = []
    silent: list[str] = []
    for name in request.backends:
        backend: Backend | None = None
        try:
            backend = open_backend(name)
            if not has(backend, "find"):
                continue
            print(f"looking for a run to continue at {name}", file=sys.stderr, flush=True)
            searched.append(name)
            path = fetch(request, name, backend)
            if path is not None:
                return {"path": str(path)}
        except HeldElsewhere as error:
            return {"held": str(error)}
        except Unavailable as error:
            options = backend.options if backend is not None else {}
            silent.append(f"{name} cannot say what to continue: {mask_values(str(error), options)}")
        except (CorruptCheckpointError, OSError, ValueError, KeyError) as error:
            return {
                "broken": f"the run at {name} cannot be continued here: "
                f"{type(error).__name__}: {error}"
            }
    return {"path": None, "searched": searched, "unreachable": "; ".join(silent)}


if __name__ == "__main__":
    main()
