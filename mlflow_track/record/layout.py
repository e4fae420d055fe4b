"""Every file name of a run's folder, once."""

from __future__ import annotations

import os
import re
from pathlib import Path

# The record.
RUN = "run.json"
CONFIG = "config.json"
METRICS = "metrics.csv"
METRICS_LONG = "metrics.long.csv"
SYSTEM_METRICS = "system_metrics.csv"
LOG = "training.log"
PATCH = "code.patch"
REQUIREMENTS = "requirements.txt"
ARTIFACTS = "artifacts"
MEDIA = "media.jsonl"
CHECKPOINTS = "checkpoints"
RUN_LOCK = "run.lock"

# The mirror: a state and a lock for each backend.
MIRROR = "mirror"
MIRROR_LOG = "mirror.log"
# The state of the one backend, mlflow, that there was at first.
_FIRST_MIRROR_STATE = {"mlflow": "mirror.json"}

# The event files of TensorBoard: in a folder for each time that the run was begun there.
TENSORBOARD = "tensorboard"
_EVENT_FILE = re.compile(r"events\.out\.tfevents\.(\d{10})\.mlflow-track")

# Inside `checkpoints/`, and inside one checkpoint.
STATE_TENSORS = "state.safetensors"
STATE_JSON = "state.json"
MANIFEST = "manifest.json"
PIN = "pinned"
QUARANTINE = "quarantine"
WRITER_LOCK = ".lock"
HIDDEN_CHECKPOINT = ".trash-"

# Beside the runs: where deleted ones lie.
TRASH = ".trash"

# The start of a name while the file is being written.
TEMPORARY = ".tmp-"

_LONG_ENDING = ".long.csv"
_STEP_FOLDER = re.compile(r"step-(\d{9,})")
# What a text of a step can be; images are PNG, histograms JSON.
TEXT_ENDINGS = (".txt", ".md", ".html")
MEDIA_ENDINGS = {"image": (".png",), "text": TEXT_ENDINGS, "histogram": (".json",)}
_MEDIA_FILE = re.compile(r"step-\d{9,}(-\d+)?\.(png|txt|md|html|json)")


def temporary(path: Path) -> Path:
    """A new name beside `path`, for what will be renamed to it."""
    return path.with_name(f"{TEMPORARY}{path.name}-{os.urandom(4).hex()}")


def mirror_state(path: Path, backend: str) -> Path:
    """The file with the progress of a backend with the run in `path`."""
    return path / MIRROR / f"{backend}.json"


def first_mirror_state(path: Path, backend: str) -> Path | None:
    """Its path in the first layout; None for a backend that it did not have."""
    name = _FIRST_MIRROR_STATE.get(backend)
    return path / name if name is not None else None


def mirror_lock(path: Path, backend: str) -> Path:
    """The lock of the process that sends the run in `path` to a backend."""
    return path / MIRROR / f"{backend}.lock"


def mirror_waiting_lock(path: Path, backend: str) -> Path:
    """Held by a mirror that waits for its server, and sends nothing meanwhile."""
    return path / MIRROR / f"{backend}.waiting.lock"


def mirror_locks(path: Path) -> list[Path]:
    """The locks of all backends."""
    return sorted((path / MIRROR).glob("*.lock"))


def metric_files(path: Path) -> list[Path]:
    """Every file of metrics in the run's folder `path`, including those set aside."""
    return sorted(path.glob("*metrics.*csv"))


def rewound_metrics(attempt: int, number: int = 1) -> str:
    """The file for the rows that an attempt rewound; `number` counts several of one attempt."""
    return f"metrics.rewound-{attempt}{f'-{number}' if number > 1 else ''}.csv"


def rewound_media(attempt: int, number: int = 1) -> str:
    """The index of the media that an attempt rewound; see `rewound_metrics`."""
    return f"media.rewound-{attempt}{f'-{number}' if number > 1 else ''}.jsonl"


def rewound_media_folder(index: Path) -> Path:
    """The folder with the files of an index of media that were rewound."""
    return index.with_suffix("")


def media_indexes_aside(path: Path) -> list[Path]:
    """The indexes of rewound media in the run's folder `path`."""
    return sorted(path.glob("media.rewound-*.jsonl"))


def media_file(step: int, ending: str, number: int = 1) -> str:
    """The file for one of the media of a step; `number` counts those of one key and step."""
    return f"{folder_of_step(step)}{f'-{number}' if number > 1 else ''}{ending}"


def may_be_media(name: str) -> bool:
    """Whether the name of a file is one that `media_file` gives."""
    return _MEDIA_FILE.fullmatch(name) is not None


def earlier_patch(number: int) -> str:
    """The file for the code.patch of an earlier attempt, whose changes were other ones."""
    return f"code.earlier-{number}.patch"


def long_form(path: Path) -> Path:
    """The file beside a file of metrics for calls that name few of many metrics."""
    return path.with_suffix(_LONG_ENDING)


def is_long(path: Path) -> bool:
    """Whether a file of metrics, by its name, has a line per value."""
    return path.name.endswith(_LONG_ENDING)


def event_file(number: int) -> str:
    """An event file by its number: TensorBoard reads those of a folder in the order of names."""
    return f"events.out.tfevents.{number:010d}.mlflow-track"


def number_of_event_file(name: str) -> int | None:
    """The number of one of our event files; None where `name` is another file."""
    found = _EVENT_FILE.fullmatch(name)
    return int(found[1]) if found else None


def rewound_checkpoints(attempt: int) -> str:
    """The folder in `checkpoints/` for those that an attempt rewound."""
    return f"rewound-{attempt}"


def is_beside_checkpoints(name: str) -> bool:
    """Whether `name` in `checkpoints/` is not a checkpoint but belongs there, or to a disk."""
    beside = (QUARANTINE, WRITER_LOCK, "lost+found")
    return name in beside or name.startswith((TEMPORARY, HIDDEN_CHECKPOINT, "rewound-"))


def folder_of_step(step: int) -> str:
    """The folder in `checkpoints/` of the checkpoint of a step."""
    return f"step-{step:09d}"


def step_of_folder(name: str) -> int | None:
    """The step of a checkpoint's folder; None where `name` is not one."""
    found = _STEP_FOLDER.fullmatch(name)
    return int(found[1]) if found else None


class RunPaths:
    """The paths in the folder `path` of a run."""

    path: Path

    @property
    def metrics_path(self) -> Path:
        return self.path / METRICS

    @property
    def system_metrics_path(self) -> Path:
        return self.path / SYSTEM_METRICS

    @property
    def artifacts_path(self) -> Path:
        return self.path / ARTIFACTS

    @property
    def checkpoints_path(self) -> Path:
        return self.path / CHECKPOINTS

    @property
    def log_path(self) -> Path:
        return self.path / LOG
