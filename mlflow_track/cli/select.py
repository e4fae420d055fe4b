"""Resolves the names of runs on the command line to records."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mlflow_track.checks import did_you_mean
from mlflow_track.cli.exit_codes import NotFound
from mlflow_track.cli.output import echo, echo_skipped
from mlflow_track.record import layout

if TYPE_CHECKING:
    from mlflow_track.analysis.load import LoadedRun
    from mlflow_track.analysis.summary import Summary
    from mlflow_track.checkpoint.disk.store import Checkpoint, CheckpointStore
    from mlflow_track.record.find import Skipped

_MOST_NAMED = 20
_F = TypeVar("_F", bound=Callable[..., Any])


def default_root() -> Path:
    """The default folder of runs."""
    from mlflow_track.settings import read_settings

    try:
        root = read_settings(backend="local").directory
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    here = Path.cwd()
    return root.relative_to(here) if root.is_relative_to(here) else root


def directory_option(command: _F) -> _F:
    """`-d`: the folder of all runs."""
    return click.option(
        "-d",
        "--directory",
        "root",
        type=click.Path(path_type=Path),
        default=default_root,
        help="The folder of all runs; else MLFLOW_TRACK_DIR, else runs.",
    )(command)


def run_argument(command: _F) -> _F:
    """One RUN in the folder of `-d`."""
    return click.argument("run", shell_complete=complete_run)(directory_option(command))


def run_or_last_argument(command: _F) -> _F:
    """The same; none stands for the newest."""
    options = {"default": "@last", "metavar": "[RUN]", "shell_complete": complete_run}
    return click.argument("run", **options)(directory_option(command))


def runs_argument(command: _F) -> _F:
    """One RUN or several in the folder of `-d`; none stands for all."""
    options = {"nargs": -1, "metavar": "[RUN]...", "shell_complete": complete_run}
    return click.argument("runs", **options)(directory_option(command))


def direction_options(command: _F) -> _F:
    """`--max` and `--min`: which direction of a metric is better, as the argument `directions`."""

    def merged(
        ctx: click.Context, param: click.Parameter, value: tuple[str, ...]
    ) -> tuple[str, ...]:
        directions = ctx.params.setdefault("directions", {})
        for metric in value:
            if directions.setdefault(metric, param.opts[0][2:]) != param.opts[0][2:]:
                raise click.BadParameter(f"{metric} is given to --min and to --max", ctx, param)
        return value

    for mode, word in (("min", "Less"), ("max", "More")):
        command = click.option(
            f"--{mode}",
            multiple=True,
            metavar="METRIC",
            expose_value=False,
            callback=merged,
            help=f"{word} of this metric is better; can be given more than once.",
        )(command)
    return command


@contextmanager
def _named() -> Iterator[None]:
    """Ends the command where a name on the command line matches no run."""
    from mlflow_track.analysis.select import AmbiguousName, NoSuchRun

    try:
        yield
    except NoSuchRun as error:
        raise NotFound(str(error)) from None
    except AmbiguousName as error:
        raise click.UsageError(str(error)) from None


def one_run(root: Path, word: str) -> Summary:
    """The run that `word` names.

    Raises:
        NotFound: There is none.
        click.UsageError: There are several.
    """
    from mlflow_track.analysis.select import RunSelector

    with _named():
        return RunSelector(root).find_one(word)


def runs_by_name(root: Path, names: Sequence[str]) -> dict[str, list[Summary]]:
    """For each name the runs that it matches: at least one.

    Raises:
        NotFound: A name matches no run.
        click.UsageError: A name is ambiguous.
    """
    from mlflow_track.analysis.select import RunSelector

    selector = RunSelector(root)
    with _named():
        return {name: selector.find(name) for name in names}


def some_runs(root: Path, names: Sequence[str]) -> list[Summary]:
    """The runs that `names` name, each once, in their order; all where it is empty.

    Raises:
        NotFound: A name matches no run, or there is none at all.
        click.UsageError: A name is ambiguous.
    """
    from mlflow_track.analysis.summary import read_summaries

    if names:
        return each_once(runs_by_name(root, names))
    found, skipped = read_summaries(root)
    echo_skipped(skipped)
    require_runs(root, found, skipped)
    echo_copies(found)
    return found


def echo_copies(runs: Sequence[Summary]) -> None:
    """Name the folders that hold the same run."""
    from mlflow_track.analysis.naming import copies

    for line in copies(runs):
        echo(line, err=True)


def each_once(named: Mapping[str, Sequence[Summary]]) -> list[Summary]:
    """The runs of `runs_by_name`, each once, in their order."""
    return list({run.path.resolve(): run for runs in named.values() for run in runs}.values())


def require_runs(root: Path, found: Sequence[Summary], skipped: Sequence[Skipped]) -> None:
    """
    Raises:
        NotFound: There is no run below `root`.
        click.ClickException: There are, but none can be read.
    """
    if not found and skipped:
        raise click.ClickException(f"no run in {root} can be read")
    if not found and not root.exists():
        raise NotFound(f"there are no runs in {root}: the folder does not exist")
    if not found:
        raise NotFound(f"there are no runs in {root}")


def no_such_metric(name: str, known: Collection[str]) -> NotFound:
    """The error to raise where none of the runs has the metric."""
    names = ", ".join(list(known)[:_MOST_NAMED]) or "none"
    more = f" and {len(known) - _MOST_NAMED} more" if len(known) > _MOST_NAMED else ""
    return NotFound(
        f"none of these runs has the metric {name!r}; there are {names}{more}"
        + did_you_mean(name, known)
    )


def require_metrics(runs: Sequence[Summary], names: Iterable[str]) -> None:
    """
    Raises:
        NotFound: None of the runs has one of the metrics.
    """
    from mlflow_track.analysis.compare import known_metrics

    known = known_metrics(runs)
    for name in names:
        if name not in known:
            raise no_such_metric(name, known)


def complete_run(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    """The completions of the shell for a RUN: ids and names."""
    from click.shell_completion import CompletionItem

    from mlflow_track.record.find import find_folders
    from mlflow_track.record.info import UnreadableRun, read_info

    items = [CompletionItem("@last"), CompletionItem("@best:")]
    for path in find_folders(ctx.params.get("root") or default_root())[0]:
        try:
            info = read_info(path)
        except UnreadableRun:
            continue
        items += [CompletionItem(info.id, help=info.name), CompletionItem(info.name)]
    return [item for item in items if item.value.startswith(incomplete)]


def runs_named(names: Sequence[str]) -> list[LoadedRun]:
    """The runs that `names` name in MLFLOW_TRACK_DIR, as every command names runs.

    Without a name: every run in MLFLOW_TRACK_DIR; that there is none is not an error then.

    Raises:
        NotFound: A name matches no run.
    """
    from mlflow_track.analysis.load import load_run, load_runs

    if not names:
        return load_runs(default_root())
    return [load_run(run.path) for run in some_runs(default_root(), names)]


def checkpoint_argument(command: Callable[..., None]) -> Callable[..., None]:
    """RUN and STEP as arguments of a command, which gets the checkpoint that they name."""

    @wraps(command)
    def found(run: str, step: str, root: Path, **options: Any) -> None:
        command(find_checkpoint(store_of(root, run), step), **options)

    step_argument = click.argument("step", default="last", metavar="[STEP]")
    return run_or_last_argument(step_argument(found))


def store_of(root: Path, run: str) -> CheckpointStore:
    from mlflow_track.checkpoint.disk.store import CheckpointStore

    return CheckpointStore(one_run(root, run).path / layout.CHECKPOINTS)


def existing_checkpoints(store: CheckpointStore) -> list[Checkpoint]:
    """All checkpoints, oldest first: at least one.

    Raises:
        NotFound: There are none.
    """
    found = store.list()
    if not found:
        raise NotFound(f"there are no checkpoints in {store.path}")
    return found


def find_checkpoint(store: CheckpointStore, step: str) -> Checkpoint:
    """The checkpoint of a step, or that of `last` or `best`.

    Raises:
        NotFound: There is none.
    """
    found = existing_checkpoints(store)
    if step == "last":
        return found[-1]
    if step == "best":
        return best_checkpoint(store)
    for checkpoint in found:
        if str(checkpoint.step) == step:
            return checkpoint
    known = ", ".join(str(c.step) for c in found)
    raise NotFound(f"there is no checkpoint of step {step}; there are {known}, last, best")


def own_keep(store: CheckpointStore) -> dict[str, Any]:
    """The run's recorded arguments of `Keep`; empty where it keeps all."""
    from mlflow_track.record.info import UnreadableRun, read_info

    try:
        wanted = read_info(store.path.parent).checkpoints
    except UnreadableRun as error:
        raise click.ClickException(f"{store.path.parent}: {error}") from None
    return {} if wanted is None or wanted.keep is None else wanted.keep.as_arguments()


def best_checkpoint(store: CheckpointStore) -> Checkpoint:
    """The best by the metric of the run's `keep`.

    Raises:
        NotFound: It has none, or no checkpoint has a value of it.
    """
    from mlflow_track.checkpoint.policy.retention import Keep
    from mlflow_track.checkpoint.pruning import best_of

    own = own_keep(store)
    if own.get("metric") is None:
        raise NotFound(
            "no metric says which is best: the run has none in keep=Keep(metric=…); name a step"
        )
    found = best_of(store, Keep(**own))
    if found is None:
        raise NotFound(f"no checkpoint has a value of {own['metric']}")
    return found
