"""Defines a destination of runs: one class, of which four methods are required.

Every call may come again after a fault, so each must do no harm when it is repeated. The mirror
calls a backend from one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec

from mlflow_track.record.params import flatten, param_text
from mlflow_track.record.schema import Config, RunInfo

Refusals = Sequence[tuple[str, str]]
"""(item, reason) of everything that the destination will never take."""


class MetricPoint(NamedTuple):
    """One value of one metric.

    Attributes:
        key: The metric's name.
        value: Finite, nan, inf or -inf.
        timestamp: The time of logging, in milliseconds of Unix time.
        step: The step that it was logged for.
        position: The position in the record once this point has arrived. A destination that stores
            it with its points gives the last one back as `Opened.position`.
    """

    key: str
    value: float
    timestamp: int
    step: int
    position: str = ""


class MediaItem(NamedTuple):
    """One image, text or histogram of a step.

    Attributes:
        kind: "image", "text" or "histogram".
        key: Its name; slashes group, as in the name of a metric.
        step: The step that it was logged for.
        timestamp: The time of logging, in milliseconds of Unix time.
        path: Its file in the record: a PNG; a text in UTF-8; JSON {"edges": […], "counts": […]},
            with one edge more than counts.
        position: The position in the record once this item has arrived. A destination that stores
            it with its items gives the last one back as `Opened.media_position`.
    """

    kind: str
    key: str
    step: int
    timestamp: int
    path: Path
    position: str = ""


class RunRecord(RunInfo, frozen=True, kw_only=True):
    """A run as its folder has it: run.json, params, and the state of the mirror.

    Attributes:
        path: The run's folder.
        config: The params as they were given, nested, and every later change.
        differences: For each metric that a resumed attempt repeated, the largest difference.
        uploaded: The checkpoints that this destination has in full, by the names of their folders.
        best: Of those, the best one by the metric that the run keeps checkpoints by; "" for none.
    """

    path: Path
    config: Config
    differences: dict[str, float] = msgspec.field(default_factory=dict)
    uploaded: tuple[str, ...] = ()
    best: str = ""

    @property
    def params(self) -> dict[str, str]:
        """The params as texts, by dotted name."""
        return {name: param_text(value) for name, value in flatten(self.config.params).items()}


class Opened(NamedTuple):
    """The run at the destination that receives the record.

    Attributes:
        id: Its id at the destination.
        page: Its page for a browser, or its file; None where there is nothing to open.
        position: The `position` of the last point that the destination holds, "" where it holds
            none; None where it cannot say. What the mirror saved counts then.
        status: The run's status there; "" where it has none.
        last_steps: The last step of each metric that it holds, where it cannot say a position.
        is_new: Whether it was made by this call, so that it holds nothing.
        is_foreign: Whether another machine has written to it since this mirror last did.
        media_position: The same as `position`, of the last item that `log_media` was given.
    """

    id: str
    page: str | None = None
    position: str | None = None
    status: str = ""
    last_steps: Mapping[str, int] = MappingProxyType({})
    is_new: bool = False
    is_foreign: bool = False
    media_position: str | None = None


class Query(NamedTuple):
    """Selects the runs that `find` returns.

    Attributes:
        experiment: The experiment's name.
        id: Only the run of this id, that of the record or that of the destination.
        run_name: Without an id: only runs of this name; None asks for those without one.
        experiment_id: The experiment's id at the destination, where the user gave that alone.
    """

    experiment: str
    id: str | None = None
    run_name: str | None = None
    experiment_id: str | None = None


class Found(NamedTuple):
    """A run at the destination that a record can be rebuilt from.

    Attributes:
        id: Its id at the destination.
        record_id: The id of the record that was sent to it.
        status: RUNNING, FINISHED, FAILED or KILLED.
        heartbeat: The last value of `beat`; None without one.
        last_steps: The last step of each metric that it holds.
        page: See `Opened`.
        memory: The backend's memory of this run.
    """

    id: str
    record_id: str
    status: str
    heartbeat: str | None
    last_steps: Mapping[str, int]
    page: str | None = None
    memory: Mapping[str, Any] = MappingProxyType({})


class Unavailable(Exception):
    """The destination cannot take anything now, but may later.

    Args:
        message: The reason, for the user.
        is_answer: Whether the destination did answer, so that something else may be possible.
        is_final: Whether no later attempt of this process can succeed, as without a package.
        retry_after: Seconds for which the destination asked not to be called; 0 where it did not.
    """

    def __init__(
        self,
        message: str,
        *,
        is_answer: bool = False,
        is_final: bool = False,
        retry_after: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.is_answer = is_answer
        self.is_final = is_final
        self.retry_after = retry_after


class Lost(Unavailable):
    """The destination acknowledged something and does not have it: all of it is sent again."""


class Gone(Exception):
    """The run at the destination does not exist any more."""


class Refused(Exception):
    """The destination will never take this."""


class Backend:
    """A destination of runs: constructed without arguments, in the mirror process.

    Every method may raise `Unavailable`, and `Gone` where the run does not exist there any more;
    any other exception counts as an outage. Print, prompt and log in nowhere.

    Attributes:
        options: The variables MLFLOW_TRACK_<BACKEND>_*, by the rest of their names in lower case.
        memory: JSON values that the backend needs the next time; assign to it, then call `save`.
        save: Writes `memory` down, with the run.
    """

    options: Mapping[str, str] = MappingProxyType({})
    memory: Mapping[str, Any] = MappingProxyType({})
    save: Callable[[], None] = staticmethod(lambda: None)

    @property
    def destination(self) -> str:
        """The server that gets the runs, without a password; "" where there is only one place."""
        return ""

    # --- required ---

    def open(self, run: RunRecord, known_id: str | None) -> Opened:
        """Find or make the run that receives the record; called before everything else.

        `known_id` is what an earlier call returned; None without one, or if it is gone.
        """
        raise NotImplementedError

    def describe(self, run: RunRecord) -> Refusals:
        """Store the description of the run: params, tags, datasets.

        Called with all of it, after `open` and whenever something has changed.
        """
        raise NotImplementedError

    def log_metrics(self, points: Sequence[MetricPoint]) -> Refusals:
        """Take at most some thousand points, in the order of the record."""
        raise NotImplementedError

    def close(self, status: str, ended: float) -> None:
        """Note how the run has ended, after everything else that the destination takes.

        A file that it refused for the moment may be sent once more after this.

        Args:
            status: FINISHED, FAILED or KILLED.
            ended: The end, in seconds of Unix time.

        Raises:
            Refused: The destination will never note it.
            Lost: Something that was acknowledged is not there.
        """
        raise NotImplementedError

    # --- optional: without it the mirror does without, and warns once ---

    def upload(self, file: Path, name: str) -> None:
        """Take a file of the run as its artifact `name`, a path with slashes.

        Raises:
            FileNotFoundError: The file is gone.
            Refused: The destination will never take it.
        """
        raise NotImplementedError

    def lacks(self, names: Sequence[str]) -> set[str]:
        """Which of these artifacts, that were all uploaded, are not there.

        Asked once before `close`, so that a file whose acknowledgement was none is sent again.
        """
        raise NotImplementedError

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with all in it, that was uploaded; nothing there is no error.

        Raises:
            Refused: The destination does not delete.
        """
        raise NotImplementedError

    def log_media(self, items: Sequence[MediaItem]) -> Refusals:
        """Take at most some tens of images, texts and histograms, in the order of the record.

        Without this method the mirror sends their files by `upload`, as artifacts; with it they
        come here alone. An item may come again after a fault. One of the same kind, key and step as
        an item that is there takes its place: a resumed attempt has logged it again.

        Raises:
            FileNotFoundError: A file is gone: a rewind has moved it. The mirror looks again.
        """
        raise NotImplementedError

    def remove_media(self, items: Sequence[MediaItem]) -> None:
        """Remove items that a rewind moved aside, if they are there; their files are gone."""
        raise NotImplementedError

    def rewind(self, step: int) -> None:
        """Remove all points and media past `step`, before the attempt that repeats them comes."""
        raise NotImplementedError

    def fork(self) -> None:
        """Keep the run as it is: the record will be opened again, as a new run."""
        raise NotImplementedError

    def beat(self, now: float) -> None:
        """Note that the run is alive at this Unix time; called about every 15 seconds."""
        raise NotImplementedError

    def ping(self) -> None:
        """Ask whether the destination is there, at little cost, before a client is loaded for it.

        A mirror that waits for a dead server does nothing else, so that it needs little memory.
        """
        raise NotImplementedError

    def check(self) -> None:
        """Ask for something small, to see whether the destination answers."""
        raise NotImplementedError

    def find(self, query: Query) -> list[Found]:
        """The runs that a record can be rebuilt from, the newest first."""
        raise NotImplementedError

    def history(self, run_id: str, key: str) -> list[MetricPoint]:
        """Every value of a metric."""
        raise NotImplementedError

    def list_files(self, run_id: str, folder: str) -> list[tuple[str, bool]]:
        """Lists a folder of the run's artifacts: (path, whether it is a folder)."""
        raise NotImplementedError

    def download(self, run_id: str, name: str, folder: Path) -> None:
        """Fetch one file of the run's artifacts into `folder`.

        Raises:
            FileNotFoundError: The destination does not have it.
        """
        raise NotImplementedError


def has(backend: Backend, method: str) -> bool:
    """Returns whether a backend has an optional method."""
    return getattr(type(backend), method) is not getattr(Backend, method)
