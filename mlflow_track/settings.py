"""The settings of a run: arguments, variables and .env, read once into one frozen Settings."""

from __future__ import annotations

import functools
import io
import json
import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflow_track.checkpoint.policy.deadline import parse_deadline
from mlflow_track.checks import choice, did_you_mean
from mlflow_track.plugins import backend_names, find_backend, options_of
from mlflow_track.project import from_calling_folder
from mlflow_track.record.console import say
from mlflow_track.record.files import absolute
from mlflow_track.record.masking import mask_options, mask_password
from mlflow_track.wording import shown, type_error, typed, value_error

# Without a mirror; every other one is the name of a backend.
_UNMIRRORED = ("local", "off")
REWINDS = ("continue", "fork")
UPLOADS = ("all", "best", "last", "none")
_RESUME = '"never", "auto", "must" or the id of a run'
# The variables of this package, but for those of a backend, MLFLOW_TRACK_<BACKEND>_*.
_PREFIX = "MLFLOW_TRACK_"
_VARIABLES = frozenset(
    f"{_PREFIX}{name}"
    for name in (
        *("BACKEND", "DEADLINE", "DIR", "FINISH_TIMEOUT", "MIRROR_LINGER", "MIRROR_NICE"),
        *("ON_REWIND", "PARENT_RUN_ID", "REPLAY", "RESUME", "SYSTEM_METRICS", "UPLOAD"),
        "WORKING_FOLDER",
    )
)
_MLFLOW_DEFAULT_STORE = "sqlite:///mlflow.db"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of runs. An argument beats the environment, the environment beats `.env`.

    Attributes:
        is_off: Whether nothing is recorded.
        backends: The names of those that the record is sent to, the most important first.
        options: The options of each backend, without secrets.
        directory: The folder that holds all runs.
        experiment: The experiment's name.
        run_name: The run's name; None lets the run be named by its id.
        resume: "never", "auto", "must" or a run id.
        tracking_uri: The MLflow server, with local paths made absolute; None unless it is one
            of `backends`.
        named_tracking_uri: The same, but None unless an argument or a variable sets it.
        mlflow_experiment_id: The MLflow experiment of that run, where nothing names an experiment:
            `mlflow run` hands over the number only.
        mlflow_run_id: The MLflow run to attach to, as `mlflow run` hands it over.
        on_rewind: What a resume that repeats steps does at the server: "continue" in the same
            MLflow run, or "fork" a new one that holds the kept history.
        upload: The checkpoints to send to the server: "all", "best", "last" or "none".
        finish_timeout_seconds: How long `finish` waits for the mirror.
        system_metrics_seconds: Time between two samples of the machine; 0 takes none.
        mirror_environment: The variables of `.env` for the mirror process.
        deadline: Unix time by which the process must have ended; None where there is none.
        replay_step: The step at which a replay stops; None where this is none.
        parent_run_id: The run whose child a new run is, as a sweep hands it over.
    """

    is_off: bool
    backends: tuple[str, ...]
    options: Mapping[str, Mapping[str, str]]
    directory: Path
    experiment: str
    run_name: str | None
    resume: str
    tracking_uri: str | None
    named_tracking_uri: str | None
    mlflow_run_id: str | None
    mlflow_experiment_id: str | None = None
    on_rewind: str
    upload: str
    finish_timeout_seconds: float
    system_metrics_seconds: float
    mirror_environment: Mapping[str, str]
    deadline: float | None = None
    replay_step: int | None = None
    parent_run_id: str | None = None

    def __post_init__(self) -> None:
        for name, value in (("experiment", self.experiment), ("run_name", self.run_name)):
            if value is not None and not isinstance(value, str):
                raise type_error(name, "a string", typed(value))
        if not self.experiment.strip():
            raise value_error(
                "experiment", "a name of at least one character", shown(self.experiment)
            )
        choice("on_rewind (MLFLOW_TRACK_ON_REWIND)", self.on_rewind, REWINDS)
        choice("upload (MLFLOW_TRACK_UPLOAD)", self.upload, UPLOADS)
        if not isinstance(self.resume, str):
            raise type_error("resume", _RESUME, typed(self.resume))
        if not self.resume.strip():
            raise value_error("resume", _RESUME, shown(self.resume))

    def for_mirror(self) -> dict[str, object]:
        """What run.json has of them, for the mirror."""
        return {
            "backends": list(self.backends),
            "options": self.options,
            "attach": self.mlflow_run_id,
            "experiment_id": self.mlflow_experiment_id,
            "tracking_uri": mask_password(self.tracking_uri or ""),
            "rewind": self.on_rewind,
            "upload": self.upload,
        }


def read_settings(
    *,
    backend: str | Sequence[str] | None = None,
    directory: str | os.PathLike[str] | None = None,
    experiment: str | None = None,
    run_name: str | None = None,
    resume: str | None = None,
    tracking_uri: str | None = None,
    on_rewind: str | None = None,
) -> Settings:
    """Merge arguments, environment and `.env` of the working folder.

    Raises:
        TypeError, ValueError: A value is invalid; the message has what was expected and given.
    """
    dotenv = _read_dotenv()
    environment = {**dotenv, **os.environ}
    for name in environment.keys() - _VARIABLES:
        if name.startswith(_PREFIX):
            _warn_of_unknown(name)

    def first(*names: str) -> str | None:
        return next((environment[name] for name in names if environment.get(name)), None)

    replay = first("MLFLOW_TRACK_REPLAY")
    if replay is not None:
        # A replay runs a recorded command, whose arguments must not direct it to the original.
        target = json.loads(replay)
        backend, directory, resume = "local", target["directory"], target["run_id"]
    deadline = first("MLFLOW_TRACK_DEADLINE") if replay is None else None
    run_id = first("MLFLOW_RUN_ID")
    uri = tracking_uri or first("MLFLOW_TRACKING_URI")
    if backend is None:
        backend = first("MLFLOW_TRACK_BACKEND") or ("mlflow" if uri or run_id else "local")

    # The mirror reads these two itself; it would report an invalid value only in its log.
    _seconds("MLFLOW_TRACK_MIRROR_LINGER", first, "0")
    _require_niceness(first("MLFLOW_TRACK_MIRROR_NICE") or "0")
    names = _backend_names(backend)
    backends = tuple(name for name in names if name not in _UNMIRRORED)
    is_mirrored = "mlflow" in backends
    if experiment is None:
        experiment = first("MLFLOW_EXPERIMENT_NAME", "EXPERIMENT_NAME")
    has_only_id = experiment is None and is_mirrored
    if run_name is None:
        run_name = first("MLFLOW_RUN_NAME")
    if resume is None:
        resume = first("MLFLOW_TRACK_RESUME") or "never"
    return Settings(
        is_off="off" in names,
        backends=backends,
        options={name: mask_options(options_of(name, environment)) for name in backends},
        directory=from_calling_folder(directory or first("MLFLOW_TRACK_DIR") or "runs"),
        experiment=experiment if experiment is not None else "default",
        run_name=mask_password(run_name) if isinstance(run_name, str) else run_name,
        resume="auto" if resume == "allow" else resume,
        tracking_uri=absolute_uri(uri or _MLFLOW_DEFAULT_STORE) if is_mirrored else None,
        named_tracking_uri=absolute_uri(uri) if uri and is_mirrored else None,
        mlflow_run_id=run_id if is_mirrored else None,
        mlflow_experiment_id=first("MLFLOW_EXPERIMENT_ID") if has_only_id else None,
        on_rewind=on_rewind or first("MLFLOW_TRACK_ON_REWIND") or "continue",
        upload=first("MLFLOW_TRACK_UPLOAD") or "all",
        finish_timeout_seconds=_seconds("MLFLOW_TRACK_FINISH_TIMEOUT", first, "30"),
        system_metrics_seconds=_sampling_seconds(first),
        mirror_environment=dotenv,
        deadline=_future(deadline) if deadline else None,
        replay_step=json.loads(replay)["step"] if replay else None,
        parent_run_id=first("MLFLOW_TRACK_PARENT_RUN_ID"),
    )


@functools.cache
def _warn_of_unknown(variable: str) -> None:
    """Say once that nobody reads a variable: it may be mistyped."""
    names = [f"{_PREFIX}{name.upper().replace('-', '_')}_" for name in backend_names()]
    if not variable.startswith(tuple(names)):
        say(f"WARNING: unknown variable {variable}{did_you_mean(variable, _VARIABLES)}")


def _backend_names(backend: str | Sequence[str]) -> list[str]:
    """The names in `backend`: a list, or one text with commas between them.

    Raises:
        TypeError: It is neither.
        ValueError: A name belongs to no backend, or cannot be combined with others.
    """
    names = backend.split(",") if isinstance(backend, str) else backend
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise type_error("backend", "a string or a list of strings", typed(backend))
    names = list(dict.fromkeys(name.strip() for name in names if name.strip()))
    for name in names:
        if name not in _UNMIRRORED and find_backend(name) is None:
            known = backend_names()
            raise value_error(
                "backend",
                f"local, off, or one or more of {', '.join(known)}",
                shown(name),
                did_you_mean(name, [*_UNMIRRORED, *known]),
            )
    if not names or (len(names) > 1 and {*names} & {*_UNMIRRORED}):
        raise value_error(
            "backend", "local, off, or names of backends with commas between them", shown(backend)
        )
    return names


def _sampling_seconds(first: Callable[[str], str | None]) -> float:
    name = "MLFLOW_TRACK_SYSTEM_METRICS"
    if not first(name):
        # MLflow's own variables; there sampling is off unless asked for, here on.
        name = "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL"
        if (first("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING") or "true").lower() in ("false", "0"):
            return 0
    return _seconds(name, first, "10")


def _seconds(name: str, first: Callable[[str], str | None], default: str) -> float:
    text = first(name) or default
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if math.isnan(number):
        raise value_error(name, "a number of seconds", shown(text))
    return number


def _require_niceness(text: str) -> None:
    try:
        int(text)
    except ValueError:
        raise value_error(
            "MLFLOW_TRACK_MIRROR_NICE", "an integer from 0 to 19", shown(text)
        ) from None


def _future(deadline: str) -> float:
    """The Unix time of a deadline that has not passed."""
    now = time.time()
    ends_at = parse_deadline(deadline, now=now)
    if ends_at <= now:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(ends_at))
        raise value_error("MLFLOW_TRACK_DEADLINE", "in the future", f"{deadline!r} ({when})")
    return ends_at


def absolute_uri(uri: str) -> str:
    """The same store, whatever the working folder of the process that opens it.

    A relative `sqlite:///x.db` names a file in the current folder; so does a bare path.

    Raises:
        ValueError: It is mistyped in a way that MLflow would take for something else.
    """
    if meant := _meant_uri(uri):
        raise ValueError(f"the tracking URI is {mask_password(uri)!r}; did you mean {meant!r}?")
    scheme, separator, rest = uri.partition(":///")
    is_sqlite = separator and scheme.startswith("sqlite")
    if is_sqlite and rest and not rest.startswith(("/", ":memory:")):
        return f"{scheme}:///{absolute(rest)}"
    if "://" not in uri and not uri.startswith(("databricks", "file:")):
        return absolute(uri).as_uri()
    return uri


def _meant_uri(uri: str) -> str | None:
    """`localhost:5000` is a scheme and a path to MLflow, and `sqlite://x.db` a host."""
    found = re.fullmatch(r"(?:https?/+)?([\w.-]+:\d+(?:/.*)?)", uri)
    if found and not re.match(r"[a-zA-Z]:\d*[/\\]", uri):
        return f"http://{found[1]}"
    found = re.fullmatch(r"(sqlite(?:\+\w+)?)://([^/].*)", uri)
    return f"{found[1]}:///{found[2]}" if found else None


def _read_dotenv() -> dict[str, str]:
    path = Path(".env")
    if not path.is_file():
        return {}
    from dotenv import dotenv_values

    data = path.read_bytes()
    text = data.decode(errors="replace")
    if text.encode() != data:
        say(f"WARNING: {path.absolute()} has bytes that are not UTF-8; its other lines are used")
    found = dotenv_values(stream=io.StringIO(text))
    return {name: value for name, value in found.items() if value is not None}
