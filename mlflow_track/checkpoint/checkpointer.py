"""A run's checkpoints: saves where the policy says so, keeps what the policy says, restores."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import torch

from mlflow_track.checkpoint import codec, image, randomness
from mlflow_track.checkpoint.retention import Candidate, Keep
from mlflow_track.checkpoint.schedule import Moment, Saved, SavePolicy
from mlflow_track.checkpoint.store import (
    STATE_JSON,
    STATE_TENSORS,
    Checkpoint,
    CheckpointStore,
    CorruptCheckpointError,
)
from mlflow_track.record.directory import RunDirectory
from mlflow_track.record.metrics import MetricsFile

_PREFIXES = ("_orig_mod.", "module.")


class Checkpointer:
    """Made by `run.checkpoints(...)`.

    Args:
        directory: The run's folder; the caller holds its lock.
        metrics: The run's metrics file: made durable before a checkpoint refers to it, and
            rewound when an older step is restored.
        save: When to save; None saves only at `save()`.
        keep: What to keep; None keeps all.
        announce: Takes one line of text for the log.
        should_stop: Whether the run was asked to stop, which is a reason to save.
        restored: Called once the place to continue from is known.
    """

    def __init__(
        self,
        directory: RunDirectory,
        metrics: MetricsFile,
        *,
        save: SavePolicy | None,
        keep: Keep | None,
        announce: Callable[[str], None],
        should_stop: Callable[[], bool],
        restored: Callable[[], None] = lambda: None,
    ) -> None:
        self._directory = directory
        self._metrics = metrics
        self._policy = save
        self._keep = keep
        self._announce = announce
        self._should_stop = should_stop
        self._restored = restored
        self._store = CheckpointStore(directory.checkpoints_path)
        self._store.sweep()
        self._saved: list[Saved] = []

    def list(self) -> list[Checkpoint]:
        """The committed checkpoints, newest last."""
        return self._store.list()

    def step(
        self, step: int, state: Mapping[str, Any], metrics: Mapping[str, float] | None = None
    ) -> bool:
        """Save after `step` if a policy asks for it, or the run was asked to stop.

        Call it at the boundary of an optimizer step.

        Returns:
            Whether it saved.
        """
        reasons: dict[str, str] = {}
        if self._policy is not None:
            now = Moment(step, time.time(), dict(metrics or {}))
            reasons = self._policy.asking(now, self._saved)
        if not reasons and self._should_stop():
            reasons = {"stop": "the run was asked to stop"}
        if reasons:
            self._commit(step, state, metrics or {}, reasons)
        return bool(reasons)

    def save(
        self, step: int, state: Mapping[str, Any], metrics: Mapping[str, float] | None = None
    ) -> Checkpoint:
        """Save now. A step that is saved already is left as it is.

        Args:
            step: The step just done.
            state: Objects with `state_dict`, or plain data, by name.
            metrics: What `Keep(best=…)` compares, and what a person reads in the manifest.

        Raises:
            TypeError: The state holds something that a checkpoint cannot; the message has its path.
            OSError: The disk is full or failed. What was saved before is untouched.
        """
        return self._commit(step, state, metrics or {}, {"save": "asked for by the caller"})

    def wait(self) -> None:
        """Return when every save is durable. A save is durable when its call returns."""

    def _commit(
        self,
        step: int,
        state: Mapping[str, Any],
        metrics: Mapping[str, float],
        reasons: Mapping[str, str],
    ) -> Checkpoint:
        for existing in self._store.list():
            if existing.step == step:
                return existing
        started = time.perf_counter()
        saved = Saved(step, tuple(reasons))
        tensors, document = _take_apart(state, [*self._saved, saved])
        layout = image.plan(tensors)
        buffer = torch.empty(layout.total_bytes, dtype=torch.uint8)
        image.fill(buffer, layout, tensors)
        is_finite = _is_finite(image.views(buffer, layout))
        # The rows that the manifest counts must be as durable as the checkpoint.
        self._metrics.sync()
        checkpoint = self._store.publish(
            step,
            {STATE_TENSORS: buffer.numpy().data, STATE_JSON: document},
            {
                "run_id": self._directory.info["id"],
                "attempt": self._directory.attempt,
                "time": time.time(),
                "metrics": {k: _json_number(v) for k, v in metrics.items()},
                "policies": dict(reasons),
                "is_finite": is_finite,
                "versions": {"torch": torch.__version__},
                "threads": torch.get_num_threads(),
                "world_size": 1,
                "metrics_position": self._metrics.position(),
            },
        )
        self._saved.append(saved)
        milliseconds = 1000 * (time.perf_counter() - started)
        self._announce(
            f"saved step {step} ({layout.total_bytes / 1e6:.1f} MB in {milliseconds:.0f} ms: "
            f"{'; '.join(reasons.values())})"
        )
        self._prune()
        return checkpoint

    def _prune(self) -> None:
        if self._keep is None:
            return
        candidates = []
        checkpoints = {checkpoint.step: checkpoint for checkpoint in self._store.list()}
        for step, checkpoint in checkpoints.items():
            try:
                finite = checkpoint.manifest["is_finite"]
                candidates.append(Candidate(step, checkpoint.metrics, finite))
            except CorruptCheckpointError as error:
                self._announce(f"checkpoint left alone by retention: {error}")
        kept = self._keep.kept_steps(candidates)
        for candidate in candidates:
            if candidate.step not in kept:
                self._store.remove(checkpoints[candidate.step])
                self._announce(f"removed step {candidate.step} (not among those to keep)")

    def restore(self, state: MutableMapping[str, Any], step: int | None = None) -> int:
        """Put the newest checkpoint that verifies back into `state`, and the generators with it.

        Objects with `load_state_dict` are loaded; plain data replaces the entry of `state`. Rows of
        metrics and checkpoints after the restored step are moved aside: they will come again.

        Args:
            state: The same names as at the save.
            step: Restore exactly this one instead of the newest.

        Returns:
            The next step to run: 0 where there is no checkpoint.

        Raises:
            FileNotFoundError: `step` was given and is not there.
            CorruptCheckpointError: There are checkpoints, and none verifies; each is named.
            ValueError: The names of `state` are not those of the checkpoint.
        """
        candidates = [c for c in self._store.list() if step is None or c.step == step]
        self._restored()
        if not candidates:
            if step is not None:
                known = ", ".join(str(c.step) for c in self._store.list()) or "none"
                raise FileNotFoundError(f"no checkpoint of step {step}; there are: {known}")
            if self._directory.attempt > 1:
                self._rewind(-1)
            return 0
        failures = []
        for checkpoint in reversed(candidates):
            try:
                checkpoint.verify()
                content = _read(checkpoint)
            except CorruptCheckpointError as error:
                failures.append(str(error))
                moved = self._store.quarantine(checkpoint)
                self._announce(f"DAMAGED checkpoint moved to {moved}: {error}")
                continue
            self._load(checkpoint, content, state)
            return checkpoint.step + 1
        raise CorruptCheckpointError("no checkpoint verifies: " + "; ".join(failures))

    def _load(
        self, checkpoint: Checkpoint, content: dict[str, Any], state: MutableMapping[str, Any]
    ) -> None:
        saved = content["state"]
        missing, unexpected = sorted(set(state) - set(saved)), sorted(set(saved) - set(state))
        if missing or unexpected:
            raise ValueError(
                f"the state has other names than {checkpoint.path.name}: "
                f"not in the checkpoint: {missing}; only in the checkpoint: {unexpected}"
            )
        for name, value in saved.items():
            target = state[name]
            if hasattr(target, "load_state_dict"):
                target.load_state_dict(_fit_prefix(target, value))
            elif isinstance(target, torch.Tensor) and isinstance(value, torch.Tensor):
                state[name] = value.to(target.device)
            else:
                state[name] = value
        differences = randomness.restore(content["random"])
        self._saved = [Saved(s, tuple(p)) for s, p in content["saved"]]
        differences += self._differences(checkpoint)
        self._rewind(checkpoint.step)
        exact = "exact: yes" if not differences else f"exact: no ({'; '.join(differences)})"
        self._announce(
            f"restored {', '.join(saved)} and the random generators from step {checkpoint.step}; "
            f"{exact}"
        )
        self._directory.add(
            "restores",
            {
                "attempt": self._directory.attempt,
                "step": checkpoint.step,
                "restored": [*saved, "random generators"],
                "differences": differences,
                "is_exact": not differences,
            },
        )

    def _differences(self, checkpoint: Checkpoint) -> list[str]:
        """What may make the continuation another run: versions, threads, params."""
        manifest = checkpoint.manifest
        pairs = {
            "torch": (manifest["versions"]["torch"], torch.__version__),
            "threads": (manifest["threads"], torch.get_num_threads()),
        }
        found = [f"{k} {then} -> {now}" for k, (then, now) in pairs.items() if then != now]
        for change in self._directory.read_config()["changes"]:
            if change["attempt"] > manifest["attempt"]:
                found += [f"{k} {then!r} -> {now!r}" for k, (then, now) in change["params"].items()]
        return found

    def _rewind(self, step: int) -> None:
        attempt = self._directory.attempt
        for checkpoint in self._store.list():
            if checkpoint.step > step:
                moved = self._store.move_aside(checkpoint, attempt)
                self._announce(f"checkpoint of the later step {checkpoint.step} moved to {moved}")
        rows = self._directory.rewind(self._metrics, step)
        if rows:
            self._announce(f"moved {rows} rows after step {step} out of metrics.csv")


def _take_apart(
    state: Mapping[str, Any], saved: list[Saved]
) -> tuple[dict[str, torch.Tensor], bytes]:
    encoder = codec.Encoder()
    parts = {}
    for name, entry in state.items():
        if not isinstance(name, str) or not name:
            raise TypeError(f"the state has the name {name!r}; names are non-empty strings")
        plain = _strip_prefix(entry.state_dict()) if hasattr(entry, "state_dict") else entry
        parts[name] = encoder.encode(plain, name)
    document = {
        "state": parts,
        "random": codec.Encoder().encode(randomness.capture(), "random"),
        "saved": [[s.step, list(s.policies)] for s in saved],
    }
    return encoder.tensors, (json.dumps(document) + "\n").encode()


def _read(checkpoint: Checkpoint) -> dict[str, Any]:
    """The content of a checkpoint, each byte checked before it is looked at."""
    document = json.loads(checkpoint.read(STATE_JSON))
    buffer = torch.frombuffer(checkpoint.read(STATE_TENSORS), dtype=torch.uint8)
    try:
        return {
            "state": {
                name: codec.decode(value, tensors)
                for tensors in [image.parse(buffer)]
                for name, value in document["state"].items()
            },
            "random": codec.decode(document["random"], {}),
            "saved": document["saved"],
        }
    except (KeyError, ValueError, TypeError) as error:
        raise CorruptCheckpointError(f"{checkpoint.path.name} cannot be read: {error}") from error


def _strip_prefix(state_dict: Mapping[str, Any]) -> Mapping[str, Any]:
    """Without the prefix that torch.compile or DistributedDataParallel puts before every key."""
    for prefix in _PREFIXES:
        if state_dict and all(isinstance(k, str) and k.startswith(prefix) for k in state_dict):
            return _strip_prefix({k[len(prefix) :]: v for k, v in state_dict.items()})
    return state_dict


def _fit_prefix(target: Any, saved: Any) -> Any:
    """`saved`, with the prefix that the keys of `target` have."""
    if not isinstance(target, torch.nn.Module) or not saved:
        return saved
    own, bare = (
        next(iter(target.state_dict()), ""),
        next(iter(_strip_prefix(target.state_dict())), ""),
    )
    prefix = own[: len(own) - len(bare)]
    return {prefix + key: value for key, value in saved.items()} if prefix else saved


def _is_finite(tensors: Mapping[str, torch.Tensor]) -> bool:
    return all(
        bool(torch.isfinite(t if t.element_size() > 1 else t.float()).all())
        for t in tensors.values()
        if t.is_floating_point()
    )


def _json_number(value: float) -> float | str:
    number = float(value)
    return number if math.isfinite(number) else repr(number)
