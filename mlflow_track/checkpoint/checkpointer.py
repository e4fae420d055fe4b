"""A run's checkpoints: saves where the policy says so, keeps what the policy says, restores."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import torch

from mlflow_track.checkpoint import loading, randomness
from mlflow_track.checkpoint.retention import Candidate, Keep
from mlflow_track.checkpoint.saving import Outcome, Saver, SaveRequest
from mlflow_track.checkpoint.schedule import Moment, Saved, SavePolicy
from mlflow_track.checkpoint.store import Checkpoint, CheckpointStore, CorruptCheckpointError
from mlflow_track.record.directory import RunDirectory
from mlflow_track.record.metrics import MetricsFile


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
        self._saver = Saver(self._store, metrics)
        self._saved: list[Saved] = []
        # Why each save in flight was made, by its step.
        self._reasons: dict[int, dict[str, str]] = {}

    def list(self) -> list[Checkpoint]:
        """The committed checkpoints, newest last; waits for the save in flight."""
        self._saver.wait()
        return self._store.list()

    def step(
        self, step: int, state: Mapping[str, Any], metrics: Mapping[str, float] | None = None
    ) -> bool:
        """Save after `step` if a policy asks for it, or the run was asked to stop.

        Call it at the boundary of an optimizer step.

        Returns:
            Whether it saved.
        """
        self._settle()
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
        """Return when every save is durable.

        Raises:
            OSError: The save that was in flight failed. What was saved before is untouched.
        """
        self._saver.wait()
        errors = self._settle()
        if errors:
            raise errors[-1]

    def close(self) -> None:
        """Wait for the save in flight, say how it ended, give back memory and processes."""
        self._saver.close()
        self._settle()

    def _commit(
        self,
        step: int,
        state: Mapping[str, Any],
        metrics: Mapping[str, float],
        reasons: dict[str, str],
    ) -> Checkpoint:
        if self._saver.in_flight is not None:
            self._saver.wait()
            self._settle()
        for existing in self._store.list():
            if existing.step == step:
                return existing
        saved = Saved(step, tuple(reasons))
        history = [[s.step, list(s.policies)] for s in [*self._saved, saved]]
        self._saver.save(
            SaveRequest(
                step=step,
                state=state,
                beside={"random": randomness.capture(), "saved": history},
                manifest={
                    "run_id": self._directory.info["id"],
                    "attempt": self._directory.attempt,
                    "time": time.time(),
                    "metrics": {k: _json_number(v) for k, v in metrics.items()},
                    "policies": dict(reasons),
                    "versions": {"torch": torch.__version__},
                    "threads": torch.get_num_threads(),
                    "world_size": 1,
                },
            )
        )
        self._reasons[step] = reasons
        self._saved.append(saved)
        self._settle()
        return self._store.expected(step)

    def _settle(self) -> list[OSError]:
        """Say how the saves ended that ended meanwhile; only then may older ones go."""
        errors = []
        for outcome in self._saver.outcomes():
            reasons = self._reasons.pop(outcome.step, {})
            if outcome.error is None:
                self._announce(_describe(outcome, reasons))
                self._prune()
            else:
                # It was not saved, so that the policy may ask again.
                self._saved = [s for s in self._saved if s.step != outcome.step]
                errors.append(outcome.error)
                self._announce(
                    f"step {outcome.step} was NOT saved: {outcome.error}; training goes on, the "
                    "checkpoints before it are untouched, the next save that is due tries again"
                )
        return errors

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
                content = loading.read(checkpoint)
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
        loading.load_into(state, saved, checkpoint)
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


def _describe(outcome: Outcome, reasons: Mapping[str, str]) -> str:
    return (
        f"saved step {outcome.step} ({outcome.size_bytes / 1e6:.1f} MB in "
        f"{1000 * outcome.durable_seconds:.0f} ms: {'; '.join(reasons.values())})"
    )


def _json_number(value: float) -> float | str:
    number = float(value)
    return number if math.isfinite(number) else repr(number)
