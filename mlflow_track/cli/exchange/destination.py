"""Where a command sends runs to: what the user says, and not what a folder says."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow_track.analysis.load import LoadedRun


class NotConfirmed(LookupError):
    """A record names where it is to be sent, and nothing else does."""


def options_for(
    run: LoadedRun, name: str, tracking_uri: str | None, as_recorded: bool
) -> dict[str, str]:
    """The options of a backend for a run: those of the environment.

    Raises:
        NotConfirmed: The record names others.
        LookupError: One is secret, so that the record does not have it, and nothing else does.
    """
    from mlflow_track.plugins import options_of
    from mlflow_track.record.masking import MASK
    from mlflow_track.settings import read_settings

    dotenv = read_settings(backend="local").mirror_environment
    options = options_of(name, {**dotenv, **os.environ})
    recorded = run.mirror.options.get(name, {}) if run.mirror is not None else {}
    for option, value in recorded.items():
        variable = f"MLFLOW_TRACK_{name}_{option}".upper().replace("-", "_")
        if option in options:
            continue
        if MASK in value:
            raise LookupError(
                f"the record does not store {option} of {name}, which is secret; set {variable}"
            )
        if not as_recorded:
            raise NotConfirmed(
                f"the record names {option}={value}; set {variable}, or confirm it with "
                "--as-recorded"
            )
        options[option] = value
    if name == "mlflow":
        options["tracking_uri"] = server_of(run, tracking_uri, as_recorded)
    return options


def server_of(run: LoadedRun, tracking_uri: str | None, as_recorded: bool) -> str:
    """The URI of the server that gets the run.

    Raises:
        NotConfirmed: Only the record names one.
        LookupError: Nothing names one, or its password is not known.
    """
    from mlflow_track.mirror.state import MirrorState
    from mlflow_track.record.masking import mask_password
    from mlflow_track.settings import absolute_uri, read_settings

    if tracking_uri:
        return absolute_uri(tracking_uri)
    own = run.mirror.tracking_uri if run.mirror is not None else ""
    named = read_settings(backend="mlflow").named_tracking_uri
    if named and (not own or mask_password(named) == own):
        return named
    # Of a run that was sent later, by `sync`, only its progress has the server.
    own = own or MirrorState.read(run.path, "mlflow").destination
    if not own:
        raise LookupError("no server is known; give --tracking-uri or set MLFLOW_TRACKING_URI")
    if mask_password(own) != own or "***" in own:
        raise LookupError(
            f"the record does not store the password for {own}; give --tracking-uri or set "
            "MLFLOW_TRACKING_URI"
        )
    if not as_recorded:
        here = f"MLFLOW_TRACKING_URI {mask_password(named)}" if named else "nothing else does"
        raise NotConfirmed(
            f"the record names the server {own}, and {here}; give --tracking-uri, or confirm it "
            "with --as-recorded"
        )
    return own


def sends_elsewhere(run: LoadedRun, name: str, tracking_uri: str | None) -> bool:
    """Whether the run's own mirror sends it to another server than the requested one."""
    from mlflow_track.mirror.state import MirrorState
    from mlflow_track.record.masking import mask_password
    from mlflow_track.settings import absolute_uri

    if not tracking_uri or name != "mlflow":
        return False
    return MirrorState.read(run.path, name).destination != mask_password(absolute_uri(tracking_uri))
