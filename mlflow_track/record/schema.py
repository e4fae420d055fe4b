"""The types of the content of a run's JSON files, with bounds and defaults."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

from mlflow_track.record import layout
from mlflow_track.wording import verdict_text

RUNNING, FINISHED, FAILED, KILLED = "RUNNING", "FINISHED", "FAILED", "KILLED"
STATUSES = (RUNNING, FINISHED, FAILED, KILLED)
LAYOUT_VERSION = 1
Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
# Unix seconds, up to the year 5138.
Time = Annotated[float, Meta(ge=0, le=1e11)]
Step = Annotated[int, Meta(ge=0, le=2**53)]
Count = Annotated[int, Meta(ge=0, le=2**62)]
# Part of the names of files in mirror/, so that it must lead nowhere else.
BACKEND_NAME = r"^[a-z][a-z0-9_-]{0,63}$"
# Of one file inside the folder that names it.
FileName = Annotated[str, Meta(pattern=r"^(?!\.{1,2}$)[^/\x00]{1,255}$")]


class Attempt(Struct, frozen=True, kw_only=True):
    """One process that wrote the run.

    Attributes:
        started, ended: Unix seconds; `ended` is None where nobody wrote an end.
        error: The error, in one line.
        checkpoint_error: Why the last checkpoint is missing.
        command: The command line, without the interpreter.
        data: The sha256 of the inputs that it named.
    """

    attempt: Count = 0
    started: Time | None = None
    ended: Time | None = None
    status: Status = "KILLED"
    error: str | None = None
    checkpoint_error: str | None = None
    pid: Count | None = None
    host: str | None = None
    command: tuple[str, ...] | None = None
    python: str | None = None
    torch: str | None = None
    numpy: str | None = None
    mlflow_track: str | None = field(default=None, name="mlflow-track")
    data: dict[str, str] = {}

    @property
    def seconds(self) -> float:
        """How long it lasted; 0 where that is not known, or the clock was set back meanwhile."""
        known = self.started is not None and self.ended is not None
        return max(self.ended - self.started, 0.0) if known else 0.0  # type: ignore[operator]


class RewoundFile(Struct, frozen=True, kw_only=True):
    """Lines that were moved out of a file of metrics.

    Attributes:
        begin: Only lines from this position on were moved.
        before: Only lines before this position were moved; None: all.
        rows: Their number.
        removed: The byte ranges that they had, counted after the header.
        size_before: The bytes after the header before it.
        file: The file that holds them now; empty where nothing was moved.
    """

    begin: Count = 0
    before: Count | None = None
    rows: Count = 0
    removed: tuple[tuple[Count, Count], ...] = ()
    size_before: Count = 0
    file: FileName | Literal[""] = ""


class Rewind(RewoundFile, frozen=True, kw_only=True):
    """Rows that were moved aside because they came again; the fields above are of metrics.csv.

    Attributes:
        attempt: The attempt that moved them.
        step: The last step that stayed.
        past: The step past which lines were moved; None where that is `step`.
        file: The file with the rows moved out of metrics.csv.
        long: The same of metrics.long.csv; None where nothing was moved out of it.
    """

    attempt: Count = 0
    step: Annotated[int, Meta(ge=-1, le=2**53)] = -1
    past: Annotated[int, Meta(ge=-1, le=2**53)] | None = None
    file: FileName = layout.rewound_metrics(0)
    time: Time | None = None
    long: RewoundFile | None = None


class Restore(Struct, frozen=True, kw_only=True):
    """The result of a restore; see `checkpoint.exact.report.Report`."""

    attempt: Count = 0
    step: Step = 0
    restored: tuple[str, ...] = ()
    differences: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    may_matter: tuple[str, ...] = ()
    free: tuple[str, ...] = ()
    is_exact: bool = False

    @property
    def verdict(self) -> str:
        """Whether the continuation is exact, with the first reasons where it is not."""
        return verdict_text(self.differences, self.unknown)


class Input(Struct, frozen=True, kw_only=True):
    """A dataset that the run read."""

    name: str = ""
    sha256: str = ""
    size_bytes: Count = 0
    source: str = ""
    context: str = ""


class Git(Struct, frozen=True, kw_only=True):
    """The commit that ran, and what was changed after it.

    Attributes:
        root: The top folder of the working tree.
        is_dirty: Whether a tracked file was changed; None where git did not say.
        left_out: The changed files that are not in code.patch, or not wholly, with the reason.
        untracked: Files and folders that git neither knows nor ignores; their content is not kept.
        unknown: Why git did not say more; empty where it did.
    """

    commit: str | None = None
    branch: str | None = None
    root: str | None = None
    is_dirty: bool | None = None
    left_out: dict[str, str] = {}
    untracked: tuple[str, ...] = ()
    unknown: str = ""


class Provenance(Struct, frozen=True, kw_only=True):
    """The origin of a run; `missing` has what of it could not be read, with the reason."""

    user: str | None = None
    script: str | None = None
    working_folder: str | None = None
    platform: str | None = None
    cpu_count: Count | None = None
    git: Git | None = None
    missing: dict[str, str] = {}


class MirrorSettings(Struct, frozen=True, kw_only=True):
    """The run's settings of its mirror.

    Attributes:
        backends: The names of its backends.
        options: The options of each backend, without secrets.
        attach, experiment_id, tracking_uri: The values of MLflow's own variables.
    """

    backends: tuple[Annotated[str, Meta(pattern=BACKEND_NAME)], ...] = ("mlflow",)
    options: dict[str, dict[str, str]] = {}
    attach: str | None = None
    experiment_id: str | None = None
    tracking_uri: str = ""
    rewind: str = "continue"
    upload: str = "all"
    metric: str | None = None
    mode: str | None = None


class KeepSettings(Struct, frozen=True, kw_only=True):
    """The arguments of `Keep`."""

    last: Annotated[int, Meta(ge=1, le=2**53)] = 1
    best: Count = 0
    metric: str | None = None
    mode: Literal["min", "max"] | None = None
    milestones: bool = True
    max_bytes: Count | None = None

    def as_arguments(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__struct_fields__}


class CheckpointSettings(Struct, frozen=True, kw_only=True):
    """The run's rules for saving (for people to read) and keeping."""

    save: str | None = None
    keep: KeepSettings | None = None


class RunInfo(Struct, frozen=True, kw_only=True):
    """run.json.

    Attributes:
        created, ended: Unix seconds; `ended` is None where nobody wrote an end.
        rewinding: An unfinished rewind; see `RunDirectory.rewind`.
        rebuilt_attempts: So many attempts have their rows in files that were rebuilt from what a
            server had: the positions in their checkpoints are those of other bytes.
        directions: For a metric which way is better, as the run said.
        summary: The values of `log_summary`; numbers that are not finite as text.
    """

    layout: int = LAYOUT_VERSION
    id: str
    name: str
    name_given: bool = True
    experiment: str
    status: Status = "KILLED"
    created: Time
    ended: Time | None = None
    attempts: tuple[Attempt, ...] = ()
    rewinds: tuple[Rewind, ...] = ()
    rewinding: Rewind | None = None
    rebuilt_attempts: Count = 0
    restores: tuple[Restore, ...] = ()
    tags: dict[str, str] = {}
    inputs: tuple[Input, ...] = ()
    provenance: Provenance = Provenance()
    mirror: MirrorSettings | None = None
    checkpoints: CheckpointSettings | None = None
    directions: dict[str, Literal["min", "max", "none"]] = {}
    summary: dict[str, bool | int | float | str] = {}

    @property
    def newest(self) -> Attempt:
        """The newest attempt; an empty one where there is none."""
        return self.attempts[-1] if self.attempts else Attempt()

    @property
    def trained(self) -> Attempt:
        """The attempt that trained last: one after the run had finished added something to it."""
        finished = (attempt for attempt in self.attempts if attempt.status == FINISHED)
        return next(finished, self.newest)

    @property
    def command(self) -> tuple[str, ...]:
        """The command line that made the run, whatever continued or reopened it later."""
        return next((a.command for a in self.attempts if a.command), ())


class Change(Struct, frozen=True, kw_only=True):
    """Params that an attempt changed: by dotted name the old value and the new one."""

    attempt: Count = 0
    time: Time | None = None
    params: dict[str, tuple[Any, Any]] = {}


class Config(Struct, frozen=True, kw_only=True):
    """config.json: params nested as they were given, and every later change."""

    params: dict[str, Any] = {}
    changes: tuple[Change, ...] = ()


class ManifestFile(Struct, frozen=True, kw_only=True):
    """A file of a checkpoint: its size, and the digest of every chunk."""

    bytes: Count = 0
    chunks: tuple[str, ...] = ()


class Manifest(Struct, frozen=True, kw_only=True):
    """manifest.json of a checkpoint.

    Attributes:
        metrics: Numbers; text where they are not finite.
        policies: The policies that asked for the save, with the reason.
        kernels: Settings of torch that decide how it computes.
        iterates_loader: Whether a DataLoader was iterating whose place no entry of the state has.
        fingerprint: Facts about the objects of the state; see `checkpoint.exact.fingerprint`.
        is_finite: Whether no value of a tensor is NaN or infinite.
        not_finite: By name of a tensor how many NaNs and infinities it has, if any; None in a
            manifest of an older version.
        metrics_position: Bytes of metrics.csv after its header, at the save.
        metrics_long_position: The same of metrics.long.csv.
        media_position: The number of media logged before the save; see `record.media`.
    """

    step: Step
    attempt: Count = 0
    run_id: str = ""
    time: Time = 0.0
    metrics: dict[str, float | Literal["nan", "inf", "-inf"]] = {}
    policies: dict[str, str] = {}
    versions: dict[str, str] = {}
    device: str | None = None
    threads: Count | None = None
    matmul_precision: str | None = None
    world_size: Annotated[int, Meta(ge=1, le=2**20)] = 1
    kernels: dict[str, str] = {}
    early_stopping: str | None = None
    classes: dict[str, str] | None = None
    fingerprint: str = ""
    iterates_loader: bool = False
    params: dict[str, Any] = {}
    params_sha256: str = ""
    data: dict[str, str] = {}
    is_finite: bool = True
    not_finite: dict[str, tuple[Count, Count]] | None = None
    is_milestone: bool = False
    metrics_position: Count = 0
    metrics_long_position: Count = 0
    media_position: Count = 0
    algorithm: str = ""
    chunk_bytes: Annotated[int, Meta(ge=1, le=2**40)] = 1 << 24
    files: dict[FileName, ManifestFile] = {}
