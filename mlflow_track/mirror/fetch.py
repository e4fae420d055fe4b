"""Brings a run from its server to a machine that has no record of it, so that it can go on here.

`python -m mlflow_track.mirror.fetch REQUEST` is a process of its own, because the trainer does not
import mlflow. It prints one JSON object: the folder, or why there is none.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from mlflow_track.backends.protocol import Gone, Sink, Target, Unavailable
from mlflow_track.checkpoint.disk.store import Checkpoint, CheckpointStore, CorruptCheckpointError
from mlflow_track.mirror.history import write_history
from mlflow_track.mirror.process import open_mlflow
from mlflow_track.mirror.server_run import SUPERSEDED_TAG
from mlflow_track.mirror.shipper import HEARTBEAT_SECONDS, HEARTBEAT_TAG
from mlflow_track.mirror.state import MirrorState
from mlflow_track.record import layout
from mlflow_track.record.files import sync_folder, write_json
from mlflow_track.record.find import folder_name
from mlflow_track.record.info import read_content, to_info
from mlflow_track.record.masking import mask_password
from mlflow_track.record.schema import FINISHED, RUNNING
from mlflow_track.record.tags import RECORD_TAG

_MLFLOW_ID = re.compile(r"[0-9a-f]{32}")
_POLL_SECONDS = 1.0
# What the search may last, in limits of one request.
_SEARCH_REQUESTS = 6


@dataclass(frozen=True, kw_only=True)
class FetchRequest:
    """Which run is wanted.

    Attributes:
        tracking_uri: The server.
        directory: The folder that holds all runs.
        experiment: The experiment's name.
        run_name: The run's name; None wants one that was not named.
        word: "auto", "must", or an id: the record's, or MLflow's.
    """

    tracking_uri: str
    directory: str
    experiment: str
    run_name: str | None
    word: str

    def to_json(self) -> str:
        return json.dumps(asdict(self))


class HeldElsewhere(RuntimeError):
    """The run is alive on another machine."""


def fetch(request: FetchRequest, sink: Sink) -> Path | None:
    """Rebuild the record of the run that is wanted; None where the server has no such run.

    Returns:
        The run's new folder: config, the history of its metrics, the newest checkpoint that
        verifies, and a mirror.json that knows what the server has.

    Raises:
        HeldElsewhere: Its heart still beats.
        CorruptCheckpointError: The server has checkpoints of it, and none verifies.
        Unavailable: The server does not answer.
    """
    with _limited():
        target = _wanted(request, sink)
    if target is None:
        return None
    record_id = target.tags[RECORD_TAG]
    if folder_name(record_id) != record_id:
        # Whoever may set a tag at the server must not choose where files go here.
        raise ValueError(f"the tag {RECORD_TAG} at the server is {record_id!r}: no id of a run")
    _await_silence(sink, target)
    home = Path(request.directory) / folder_name(request.experiment)
    home.mkdir(parents=True, exist_ok=True)
    final = home / record_id
    building = home / f".fetch-{final.name}-{os.urandom(4).hex()}"
    building.mkdir()
    try:
        _build(building, target, sink, mask_password(request.tracking_uri))
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

    former = signal.signal(signal.SIGALRM, give_up)
    # Once a second from then on: a library may have swallowed the first.
    signal.setitimer(signal.ITIMER_REAL, seconds, 1)
    try:
        yield
    except Exception as error:
        # MLflow has wrapped it in words of its own.
        if too_late.__traceback__ is not None:
            raise Unavailable(f"no whole answer in {seconds:g} s") from error
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


def _wanted(request: FetchRequest, sink: Sink) -> Target | None:
    if _MLFLOW_ID.fullmatch(request.word):
        try:
            found = [sink.attach(request.word)]
        except Gone:
            found = []
        return next((t for t in found if RECORD_TAG in t.tags), None)
    if request.word not in ("auto", "must"):
        found = sink.find(request.experiment, {RECORD_TAG: request.word})
        return next((t for t in found if SUPERSEDED_TAG not in t.tags), None)
    named = str(request.run_name is not None).lower()
    for target in sink.find(request.experiment, {"mlflow_track.name_given": named}):
        is_named = request.run_name is None or target.name == request.run_name
        is_whole = RECORD_TAG in target.tags and SUPERSEDED_TAG not in target.tags
        if is_named and is_whole and target.status != FINISHED:
            return target
    return None


def _await_silence(sink: Sink, target: Target) -> None:
    """A run whose heartbeat changes is alive. Clocks differ, so only the change counts."""
    beat = target.tags.get(HEARTBEAT_TAG)
    if target.status != RUNNING or beat is None:
        return
    deadline = time.monotonic() + 2 * HEARTBEAT_SECONDS
    while time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
        now = sink.attach(target.run_id)
        if now.status != RUNNING:
            return
        if now.tags.get(HEARTBEAT_TAG) != beat:
            raise HeldElsewhere(
                f"run {target.tags[RECORD_TAG]} is being written on another machine: the server "
                "sees its heartbeat; wait for it, or start another run with resume='never'"
            )


# --- the record ---


def _build(path: Path, target: Target, sink: Sink, tracking_uri: str) -> None:
    _download(sink, target, "record/config.json", path)
    checkpoint, others = _download_checkpoint(path / layout.CHECKPOINTS, target, sink)
    renamed = json.loads(target.tags.get("mlflow_track.renamed") or "{}")
    positions = write_history(path, target, sink, renamed.get("metrics", {}))
    _download(sink, target, "record/run.json", path / f"{layout.TEMPORARY}record")
    content = read_content(path / f"{layout.TEMPORARY}record")
    info = to_info(content)
    shutil.rmtree(path / f"{layout.TEMPORARY}record")
    for file in positions.keys() - {layout.SYSTEM_METRICS}:
        positions[file].rewinds = [0] * len(info.rewinds)
    state = MirrorState(
        tracking_uri=tracking_uri,
        experiment_id=target.experiment_id,
        run_id=target.run_id,
        url=target.url,
        is_reconciled=True,
        compared_in=len(info.attempts),
        files=positions,
        params=dict(target.params),
        tags=dict(target.tags),
        inputs=len(info.inputs),
        checkpoints=[checkpoint] if checkpoint else [],
        elsewhere=others,
        renamed=renamed,
        status=target.status,
    )
    state.write(path)
    # Last: a folder without run.json is no run.
    write_json(path / layout.RUN, {**content, "rewinding": None})


def _download(sink: Sink, target: Target, name: str, folder: Path) -> None:
    try:
        sink.download(target.run_id, name, folder)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"the server has no {name} of run {target.tags[RECORD_TAG]}: it was sent by a version "
            "that cannot be continued elsewhere, or its artifacts were deleted"
        ) from None


def _download_checkpoint(folder: Path, target: Target, sink: Sink) -> tuple[str | None, list[str]]:
    """The newest that verifies, now in `folder`, and the names of the others."""
    found = sink.list_files(target.run_id, layout.CHECKPOINTS)
    names = [path.rsplit("/", 1)[-1] for path, _ in found]
    steps = sorted(s for name in names if (s := layout.step_of_folder(name)) is not None)
    failures = []
    for step in reversed(steps):
        name = layout.folder_of_step(step)
        with contextlib.suppress(FileNotFoundError):  # no manifest: it is none
            try:
                _download_one(folder / name, step, target, sink)
                return name, [n for n in names if n != name]
            except CorruptCheckpointError as error:
                failures.append(str(error))
                CheckpointStore(folder).quarantine(Checkpoint(folder / name, step))
                print(f"DAMAGED checkpoint at the server: {error}", file=sys.stderr)
    if failures:
        raise CorruptCheckpointError(f"at the server no checkpoint verifies: {'; '.join(failures)}")
    return None, names


def _download_one(path: Path, step: int, target: Target, sink: Sink) -> None:
    remote = f"{layout.CHECKPOINTS}/{path.name}"
    sink.download(target.run_id, f"{remote}/{layout.MANIFEST}", path)
    checkpoint = Checkpoint(path, step)
    print(f"fetching {path.name} ({checkpoint.size_bytes / 1e6:.1f} MB)", file=sys.stderr)
    for file in checkpoint.manifest.files:
        try:
            sink.download(target.run_id, f"{remote}/{file}", path)
        except FileNotFoundError:
            raise CorruptCheckpointError(f"{path.name}/{file} is not at the server") from None
    checkpoint.verify()


# --- the process ---


def main() -> None:
    answer = os.dup(1)
    os.dup2(2, 1)  # what libraries print is no answer
    request = FetchRequest(**json.loads(sys.argv[1]))
    result: dict[str, Any] = {"path": None}
    try:
        path = fetch(request, open_mlflow(request.tracking_uri))
        result["path"] = None if path is None else str(path)
    except HeldElsewhere as error:
        result["held"] = str(error)
    except Unavailable as error:
        result["unreachable"] = str(error)
    except (CorruptCheckpointError, FileNotFoundError, OSError, ValueError, KeyError) as error:
        result["broken"] = f"{type(error).__name__}: {error}"
    os.write(answer, json.dumps(result).encode())


if __name__ == "__main__":
    main()
