"""What the trainer asks of the process that fetches a run from its server."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass


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
