"""The options of commands that draw curves, and the errors of what they ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mlflow_track.cli.exit_codes import NotFound

if TYPE_CHECKING:
    from mlflow_track.analysis.summary import Summary
    from mlflow_track.draw.picture import Options
    from mlflow_track.record.metric import Direction

_F = TypeVar("_F", bound=Callable[..., Any])
_AXES = ("step", "seconds", "wall_seconds", "tokens")
_NAMES = "axis smooth clip is_log_x is_log_y best_so_far group_by color_by".split()


def drawing_options(command: _F) -> _F:
    """How curves are drawn; `drawing_of` makes one object of the arguments."""
    for option in reversed(
        (
            click.option(
                "--x",
                "axis",
                type=click.Choice(_AXES),
                default="step",
                show_default=True,
                help="seconds are those at work; wall_seconds count pauses, too.",
            ),
            click.option(
                "--smooth",
                type=click.FloatRange(0, 1, max_open=True),
                default=0.0,
                help="Weight of the past in a moving average, as 0.9.",
            ),
            click.option("--best-so-far", is_flag=True, help="The best value up to each point."),
            click.option(
                "--clip",
                type=click.FloatRange(0, 1, min_open=True),
                metavar="SHARE",
                help="Show this share of the values, as 0.99; 1 shows all. Without it "
                "outliers are left out.",
            ),
            click.option("--log-x", "is_log_x", is_flag=True, help="Logarithmic horizontal axis."),
            click.option(
                "--log-y", "--log", "is_log_y", is_flag=True, help="Logarithmic vertical axis."
            ),
            group_option,
            click.option(
                "--color-by",
                metavar="params.NAME",
                help="Colour by the value of params.NAME or tags.NAME.",
            ),
        )
    ):
        command = option(command)
    return command


def group_option(command: _F) -> _F:
    return click.option(
        "--group-by",
        metavar="params.NAME",
        help="Mean and standard deviation of the runs with the same params.NAME, tags.NAME or "
        "name, as of the seeds of a setting.",
    )(command)


def sort_option(command: _F) -> _F:
    return click.option(
        "--sort",
        metavar="[-]NAME[:best|last]",
        help="The order of the runs: by a metric, params.NAME, started, name, status, duration, "
        "steps, cpu or gpu. With - in front the largest comes first.",
    )(command)


def drawing_of(arguments: dict[str, Any]) -> Options:
    """The arguments of `drawing_options`, taken out of all arguments of a command."""
    from mlflow_track.draw.picture import Options

    return Options(**{name: arguments.pop(name) for name in _NAMES})


@contextmanager
def reported(*failures: type[Exception]) -> Iterator[None]:
    """Ends the command where the runs lack what the options ask for, and at these failures."""
    from mlflow_track.analysis.groups import UnknownGroup
    from mlflow_track.analysis.ordering import UnknownOrder

    try:
        yield
    except (UnknownGroup, UnknownOrder) as error:
        raise NotFound(str(error.args[0])) from None
    except failures as error:
        raise click.ClickException(str(error)) from None


def sorted_runs(
    runs: Sequence[Summary],
    sort: str | None,
    directions: Mapping[str, Direction] | None = None,
    *,
    is_reversed: bool = False,
) -> list[Summary]:
    """The runs in the order of `--sort`; as they come without it.

    Args:
        directions: Which direction of a metric is better, where an option says it.
        is_reversed: Whether the order is the other way round.

    Raises:
        NotFound: No run has what they are to be sorted by.
    """
    from mlflow_track.analysis.compare import known_metrics
    from mlflow_track.analysis.ordering import in_order, parse_order

    if sort is None:
        return list(reversed(runs)) if is_reversed else list(runs)
    order = parse_order(sort, known_metrics(runs))
    with reported():
        return in_order(
            runs, order._replace(is_reversed=order.is_reversed != is_reversed), directions
        )
