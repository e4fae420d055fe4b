"""What the mirror needs of a server. Every call is idempotent: it may come again after a fault."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, Protocol

from mlflow_track.record.schema import Input


class Cell(NamedTuple):
    """One value of one metric; `timestamp` in milliseconds of Unix time."""

    key: str
    value: float
    timestamp: int
    step: int


class Target(NamedTuple):
    """The run at the server that receives the record.

    Attributes:
        url: Its page in the UI; None where there is no server with a UI.
        params, tags: What it holds already, by key.
        status: What it says of itself.
        metrics: The last step of each key that it has values of.
        name: Its name.
        start_time: In milliseconds of Unix time.
    """

    experiment_id: str
    run_id: str
    url: str | None
    params: Mapping[str, str]
    tags: Mapping[str, str]
    status: str
    metrics: Mapping[str, int] = MappingProxyType({})
    name: str = ""
    start_time: int = 0


class Unavailable(Exception):
    """The server cannot take anything now; the message is for a person. Later it may.

    Args:
        message: Why.
        is_answer: Whether the server did answer, if only to say that it cannot: then something
            else may be possible.
    """

    def __init__(self, message: str, *, is_answer: bool = False) -> None:
        super().__init__(message)
        self.is_answer = is_answer


class Gone(Exception):
    """The run at the server does not exist any more."""


class Refused(Exception):
    """The server will never take this."""


class Sink(Protocol):
    """A server that takes runs.

    Every method may raise `Unavailable`, and `Gone` where the run is not there any more. Those that
    take several items return those that were refused for good, with the reason.
    """

    def check(self) -> None:
        """Ask for something small, to see whether the server answers and lets us in."""
        ...

    # --- runs ---

    def find(self, experiment: str, tags: Mapping[str, str]) -> list[Target]:
        """The runs of the experiment that have all these tags, the newest first."""
        ...

    def attach(self, run_id: str) -> Target:
        """The run of that id."""
        ...

    def create(
        self, experiment: str, *, name: str, start_time: int, tags: Mapping[str, str]
    ) -> Target:
        """A new run; the experiment is made where it does not exist."""
        ...

    def discard(self, run_id: str) -> None:
        """Delete a run that holds nothing."""
        ...

    def set_status(self, run_id: str, status: str, end_time: int | None) -> None:
        """RUNNING takes no end time; the others take one, in milliseconds of Unix time."""
        ...

    # --- what a run holds ---

    def legal_name(self, name: str) -> str:
        """The nearest name that the server takes."""
        ...

    def log_metrics(self, run_id: str, cells: Sequence[Cell]) -> list[tuple[str, str]]: ...

    def log_params(self, run_id: str, params: Mapping[str, str]) -> list[tuple[str, str]]: ...

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> list[tuple[str, str]]: ...

    def remove_tag(self, run_id: str, name: str) -> None:
        """Take a tag away; one that is not there is no error."""
        ...

    def log_input(self, run_id: str, item: Input) -> None: ...

    def history(self, run_id: str, key: str) -> list[Cell]:
        """Every value of a metric."""
        ...

    # --- files ---

    def upload(self, run_id: str, file: Path, name: str) -> None:
        """Put one file to the path `name` of the run's artifacts.

        Raises:
            FileNotFoundError: The file is gone.
            Refused: The store will never take it.
        """
        ...

    def list_files(self, run_id: str, folder: str) -> list[tuple[str, bool]]:
        """What lies in a folder of the run's artifacts: (path, whether it is a folder)."""
        ...

    def download(self, run_id: str, name: str, folder: Path) -> None:
        """Fetch one file of the run's artifacts into `folder`.

        Raises:
            FileNotFoundError: The store does not have it.
        """
        ...

    def remove(self, run_id: str, name: str) -> None:
        """Remove a file, or a folder with all in it, of the run's artifacts.

        Raises:
            Refused: The store does not delete.
        """
        ...
