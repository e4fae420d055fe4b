"""`mlflow-track plan`: the saves of a run that has not started."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlflow_track.cli import exit_codes
from mlflow_track.cli.checkpoint.retention import Size
from mlflow_track.cli.output import echo, json_option, print_json
from mlflow_track.cli.select import directory_option
from mlflow_track.record import layout
from mlflow_track.record.files import folder_size
from mlflow_track.wording import expected, value_error

if TYPE_CHECKING:
    from mlflow_track.checkpoint.policy.retention import Keep
    from mlflow_track.checkpoint.policy.save_policy import SavePolicy

_EVENLY = ("warmup_steps", "max_checkpoints")
_RULES = ("last", "best", "metric", "milestones", "max_bytes")


class _Steps(click.ParamType):
    """Steps with commas between them."""

    name = "steps"

    def convert(self, value: Any, param: Any, ctx: Any) -> list[int]:
        try:
            return [int(step) for step in value.split(",")]
        except ValueError:
            self.fail(expected("the value", "steps like 100,1000", repr(value)), param, ctx)


@click.command()
@click.option("--max-steps", type=int, help="Steps of the whole run; the last is saved.")
@click.option("--warmup-steps", type=int, help="EvenlySpaced: where warm-up ends (default: 0).")
@click.option("--max-checkpoints", type=int, help="EvenlySpaced: how many to save (default: 5).")
@click.option("--every", type=int, metavar="STEPS", help="EverySteps: 10 saves 10, 20, 30 …")
@click.option("--at", type=_Steps(), help="AtSteps: 100,1000 saves these two.")
@click.option(
    "--every-minutes", type=float, metavar="MINUTES", help="EveryMinutes: the age of the last save."
)
@click.option("--continuous", is_flag=True, help="Continuous: as often as the disk allows.")
@click.option("--budget", type=float, metavar="SHARE", help="Budget: 0.01 is 1 % of the time.")
@click.option("--save-on-improvement", metavar="METRIC", help="OnImprovement of this metric.")
@click.option("--min-delta", type=float, help="Its smallest gain that counts (default: 0).")
@click.option(
    "--keep-last",
    "last",
    type=int,
    help="Keep: how many of the newest; 1 with another rule, else all.",
)
@click.option("--keep-best", "best", type=int, help="Keep: how many of the best by --metric.")
@click.option("--metric", help="The metric for --keep-best.")
@click.option(
    "--milestones/--no-milestones", default=None, help="Keep: also the planned ones (default: yes)."
)
@click.option("--max-bytes", type=Size(), help="Keep: the most bytes that all may take: 10GB.")
@click.option("--state-bytes", type=Size(), help="The size of one checkpoint: 2GB.")
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    help="The folder of a checkpoint of the same state, for its size.",
)
@click.option("--from-step", type=int, default=0, help="The first step to come (default: 0).")
@click.option("--step-seconds", type=float, help="How long a step takes, for --every-minutes.")
@directory_option
@json_option
def plan(
    root: Path,
    max_steps: int | None,
    state_bytes: int | None,
    checkpoint: Path | None,
    from_step: int,
    step_seconds: float | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Show at which steps a run will save, what it keeps, and whether that fits the disk.

    Without another policy it is EvenlySpaced: the end of warm-up, the last step, and the rest
    evenly between. Several policies are combined; what time or metrics decide is listed as "may".
    Ends with 1 if the checkpoints do not fit what is free in the folder of runs.

    \b
    Examples:
      mlflow-track plan --max-steps 1000 --warmup-steps 100 --max-checkpoints 5
      mlflow-track plan --max-steps 9000 --every 500 --keep-last 2
      mlflow-track plan --max-steps 1000 --state-bytes 2GB
    """
    from mlflow_track.checkpoint.disk.publish import free_bytes
    from mlflow_track.checkpoint.policy.compose import make_plan
    from mlflow_track.checkpoint.policy.disk_use import DiskUse, Present
    from mlflow_track.checkpoint.policy.foresight import endless_saves, foresee
    from mlflow_track.checkpoint.policy.limits import Limits

    try:
        _require_companions({**options, "step_seconds": step_seconds, "max_steps": max_steps})
        limits, save, keep = Limits(max_steps=max_steps), _save(max_steps, options), _keep(options)
        _require_numbers(max_steps, from_step, state_bytes, step_seconds)
        if state_bytes is not None and checkpoint is not None:
            raise ValueError("--state-bytes cannot be combined with --checkpoint")
    except (TypeError, ValueError) as error:
        raise click.UsageError(_with_flags(str(error))) from None
    size = state_bytes if checkpoint is None else _size_of(checkpoint)
    steps = None if max_steps is None else max_steps - from_step
    seen = foresee(
        save,
        limits,
        first=from_step,
        saves={"saved": []},
        size_bytes=size or 0,
        seconds=None if steps is None or step_seconds is None else steps * step_seconds,
        most_endless=endless_saves(keep),
    )
    made = make_plan(
        save,
        keep,
        seen,
        DiskUse(seen, keep, Present()),
        has_sizes=size is not None,
        folder=str(root),
        free_bytes=free_bytes(root.absolute()),
        notes=() if size is not None else ["--state-bytes or --checkpoint adds sizes"],
    )
    if as_json:
        print_json(made.to_dict())
    else:
        echo(made)
    if made.fits is False:
        raise click.exceptions.Exit(exit_codes.NO)


# The name of an argument in a message, and the option that it comes from.
_FLAGS = {
    "interval": "--every",
    "steps": "--at",
    "minutes": "--every-minutes",
    "max_overhead": "--budget",
    "last": "--keep-last",
    "best": "--keep-best",
}
# An option that says something about another one.
_COMPANIONS = {
    "min_delta": ("save_on_improvement",),
    "metric": ("best",),
    "best": ("metric",),
    "step_seconds": ("max_steps", "every_minutes"),
}


def _flag(name: str) -> str:
    return _FLAGS.get(name) or f"--{name.replace('_', '-')}"


def _with_flags(message: str) -> str:
    """A message about an argument, with the name of its option."""
    name, separator, rest = message.partition(" must be ")
    is_argument = separator and name.isidentifier()
    return f"{_flag(name)}{separator}{rest}" if is_argument else message


def _require_numbers(
    max_steps: int | None, from_step: int, state_bytes: int | None, step_seconds: float | None
) -> None:
    from mlflow_track.checks import require_int, require_number

    require_int("--from-step", from_step, at_least=0)
    if max_steps is not None and from_step >= max_steps:
        raise value_error("--from-step", f"below --max-steps {max_steps}", f"{from_step}")
    if state_bytes is not None:
        require_int("--state-bytes", state_bytes, at_least=1)
    if step_seconds is not None:
        require_number("--step-seconds", step_seconds, above=0)


def _require_companions(values: dict[str, Any]) -> None:
    """Refuse an option that has no effect without another one."""
    for name, others in _COMPANIONS.items():
        missing = [_flag(other) for other in others if values[other] is None]
        if values[name] is not None and missing:
            raise ValueError(f"{_flag(name)} must be given together with {' and '.join(missing)}")


def _save(max_steps: int | None, options: dict[str, Any]) -> SavePolicy:
    import mlflow_track as mt

    makers: dict[str, Callable[[Any], SavePolicy]] = {
        "every": mt.EverySteps,
        "at": mt.AtSteps,
        "every_minutes": mt.EveryMinutes,
        "continuous": lambda _: mt.Continuous(),
        "budget": mt.Budget,
        "save_on_improvement": partial(mt.OnImprovement, min_delta=options["min_delta"] or 0.0),
    }
    given = {n: value for n, value in options.items() if value is not None and value is not False}
    policies = [make(given[name]) for name, make in makers.items() if name in given]
    evenly = {name: options[name] for name in _EVENLY if options[name] is not None}
    if evenly or not policies:
        if max_steps is None:
            if evenly:
                flags = " and ".join(map(_flag, evenly))
                raise ValueError(f"{flags} must be given together with --max-steps")
            raise ValueError(
                "--max-steps, or another policy than EvenlySpaced (--every …), must be given"
            )
        policies.insert(0, mt.EvenlySpaced(max_steps, **evenly))
    save, *others = policies
    for policy in others:
        save |= policy
    return save


def _keep(options: dict[str, Any]) -> Keep | None:
    """The rules of retention that the options name; None keeps all."""
    import mlflow_track as mt

    rules = {name: options[name] for name in _RULES if options[name] is not None}
    if not rules:
        return None
    keep = mt.Keep(**rules)
    if keep.metric is None:
        return keep
    # Which ones are the best is open, and so the direction does not matter here.
    return keep.resolved({keep.metric: "min"})


def _size_of(folder: Path) -> int:
    """The size of a checkpoint in its folder."""
    if not (folder / layout.MANIFEST).is_file():
        raise exit_codes.NotFound(f"{folder} is not the folder of a checkpoint (step-…)")
    return folder_size(folder)
