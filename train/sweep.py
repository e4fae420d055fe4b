"""Many runs of the job, one per point of a grid: children of one parent run.

python -m train.sweep --learning-rate 1e-3,2e-3,4e-3 --seed 1,2 --max-steps 300

Takes every flag of `python -m train`; where a value is a list with commas, each of its values is
tried with each of the others. The members run one after the other, each in its own process.
One that fails does not keep the others from running. The same command again continues a sweep that
did not come to its end: members that are done are left alone, the others go on where they ended.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import mlflow_track as mt
from train.flags import parse, with_dashes

# Values of these may hold commas, or belong to the sweep as a whole.
_SINGLE = ("--experiment", "--run-name", "--resume", "--config", "--data", "--device")
_SINGLE += ("--save-at-steps",)
_METRIC = "val/loss"


class Member(NamedTuple):
    """One point of the grid: its values by flag, as they were written."""

    values: dict[str, str]

    @property
    def name(self) -> str:
        return ",".join(f"{flag[2:].replace('-', '_')}={v}" for flag, v in self.values.items())


def main(arguments: list[str] | None = None) -> int:
    flags = sys.argv[1:] if arguments is None else arguments
    if not flags or flags[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if flags else 2
    fixed, grid = split(flags)
    if "--plan" in fixed or "--plan" in grid:
        print("train.sweep: a plan is that of one run: python -m train --plan", file=sys.stderr)
        sys.exit(2)
    if not grid:
        print(
            "train.sweep: no flag has several values, as in --learning-rate 1e-3,2e-3; for one run "
            "take python -m train",
            file=sys.stderr,
        )
        sys.exit(2)
    members = [Member(dict(zip(grid, v, strict=True))) for v in itertools.product(*grid.values())]
    for member in members:
        # An invalid value is reported now, and not after hours of other members.
        parse(_flags({**fixed, **member.values}))
    name = fixed.pop("--run-name", "") or f"sweep-{_digest(fixed, grid)}"
    _name_experiment(fixed)
    with mt.start_run(
        experiment=fixed.get("--experiment") or None,
        run_name=name,
        params={"sweep": {flag[2:].replace("-", "_"): v for flag, v in grid.items()}},
        resume=fixed.pop("--resume", "") or "auto",
    ) as parent:
        parent.print(f"{len(members)} members: {' × '.join(map(_words, grid.items()))}")
        is_stopped, failed = _run_all(parent, members, fixed)
        _report(parent, name)
        if failed and not is_stopped:
            parent.finish("FAILED", f"{failed} of {len(members)} members failed")
    return 130 if is_stopped else int(failed > 0)


def split(flags: Sequence[str]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """The flags with one value, and those with several; a wrong command line ends the process."""
    pairs: list[str] = [part for argument in flags for part in _halves(with_dashes(argument))]
    if len(pairs) % 2 or not all(flag.startswith("--") for flag in pairs[::2]):
        print(
            "train.sweep: every flag takes a value: --name value, or --name a,b,c", file=sys.stderr
        )
        sys.exit(2)
    fixed: dict[str, str] = {}
    grid: dict[str, list[str]] = {}
    for flag, value in zip(pairs[::2], pairs[1::2], strict=True):
        values = [v.strip() for v in value.split(",") if v.strip()]
        if len(values) > 1 and flag not in _SINGLE:
            grid[flag] = list(dict.fromkeys(values))
        else:
            fixed[flag] = value
    return fixed, grid


def _run_all(
    parent: mt.Run, members: Sequence[Member], fixed: Mapping[str, str]
) -> tuple[bool, int]:
    """Run what is not done; whether a signal stopped it, and how many members failed."""
    failed = 0
    for number, member in enumerate(members, 1):
        run_name = f"{parent.name}/{member.name}"
        label = f"member {number}/{len(members)} {member.name}"
        if _status(parent, run_name) == "FINISHED":
            parent.print(f"{label}: done before")
            continue
        parent.print(f"{label}: starts")
        flags = _flags({**fixed, **member.values, "--run-name": run_name, "--resume": "auto"})
        code = _run_one(parent, flags)
        if parent.should_stop:
            parent.print(f"{label}: stopped")
            return True, failed
        status = _status(parent, run_name) or f"ended with status {code}"
        failed += code != 0
        parent.print(f"{label}: {status if code == 0 else f'FAILED (exit status {code})'}")
    return False, failed


def _run_one(parent: mt.Run, flags: Sequence[str]) -> int:
    environment = {k: v for k, v in os.environ.items() if k not in ("MLFLOW_RUN_ID",)}
    if parent.id != "off":
        environment["MLFLOW_TRACK_PARENT_RUN_ID"] = parent.id
    process = subprocess.Popen(
        [sys.executable, "-m", "train", *flags],
        env=environment,
        # A Ctrl-C of the terminal reaches the members by way of the sweep only: two signals would
        # end one without its checkpoint.
        start_new_session=True,
    )
    is_told = False
    while (code := process.poll()) is None:
        if parent.should_stop and not is_told:
            process.send_signal(signal.SIGTERM)
            is_told = True
        time.sleep(0.1)
    return code


def _members_of(parent: mt.Run) -> list[mt.LoadedRun]:
    if parent.id == "off":
        return []
    return mt.load_runs(
        parent.path.parent,
        where=lambda run: run.tags.get("mlflow.parentRunId") == parent.id,
    )


def _status(parent: mt.Run, run_name: str) -> str | None:
    """The status of the newest run of that name; None where there is none."""
    runs = [run for run in _members_of(parent) if run.name == run_name]
    return runs[-1].status if runs else None


def _report(parent: mt.Run, name: str) -> None:
    """The comparison: as the last lines of the sweep, and as an artifact of the parent."""
    runs = _members_of(parent)
    if not runs:
        return
    table = mt.compare(runs, metrics=[_METRIC])
    table = table.assign(name=[run.name.removeprefix(f"{name}/") for run in runs])
    table = table.sort_values(f"{_METRIC} best", na_position="last")
    columns = ["name", "status", "steps", _METRIC, f"{_METRIC} best", f"{_METRIC} best step"]
    parent.print(table[columns].to_string(index=False))
    parent.log_table(table.reset_index(), "comparison.csv")
    best = table.iloc[0]
    if not math.isnan(best[f"{_METRIC} best"]):
        parent.set_tags({"mlflow_track.best_run": str(table.index[0])})
        parent.print(f"best: {best['name']}, {_METRIC} {best[f'{_METRIC} best']:.4f}")


def _name_experiment(fixed: dict[str, str]) -> None:
    """Under `mlflow run` the experiment is given by its id: the members need its name."""
    experiment_id = os.environ.get("MLFLOW_EXPERIMENT_ID")
    named = fixed.get("--experiment") or os.environ.get("MLFLOW_EXPERIMENT_NAME")
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if experiment_id and uri and not named:
        from mlflow_track.backends.mlflow.store import experiment_name

        fixed["--experiment"] = experiment_name(uri, experiment_id) or ""


def _flags(values: Mapping[str, str]) -> list[str]:
    return [word for flag, value in values.items() for word in (flag, value)]


def _halves(word: str) -> list[str]:
    is_pair = word.startswith("--") and "=" in word
    return word.split("=", 1) if is_pair else [word]


def _words(item: tuple[str, list[str]]) -> str:
    return f"{item[0][2:]} in {', '.join(item[1])}"


def _digest(fixed: Mapping[str, Any], grid: Mapping[str, Any]) -> str:
    """The same command is the same sweep."""
    given = {k: v for k, v in fixed.items() if k not in ("--experiment", "--resume")}
    return hashlib.sha256(json.dumps([given, grid], sort_keys=True).encode()).hexdigest()[:6]


if __name__ == "__main__":
    sys.exit(main())
