"""Finds runs by id, by the beginning of one, by name, path, experiment/name or @last."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mlflow_track.analysis.compare import best, judged
from mlflow_track.analysis.summary import Summary, SummaryCache
from mlflow_track.checks import did_you_mean
from mlflow_track.record.find import Skipped, find_folders
from mlflow_track.record.info import UnreadableRun
from mlflow_track.record.metric import Direction
from mlflow_track.wording import count_text

_FEWEST_OF_ID = 4
_MOST_NAMED = 8


class NoSuchRun(LookupError):
    """There is not a run of that name; the message lists those that exist."""


class AmbiguousName(LookupError):
    """A word that must be more precise: it names several runs, or no best one."""


class RunSelector:
    """Finds runs below a root. Summaries are read once.

    Args:
        root: The folder of all runs.

    Attributes:
        skipped: Folders that `runs` could not read, with the reason.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._cache = SummaryCache()
        self._all: list[Summary] | None = None
        self.skipped: list[Skipped] = []

    def runs(self) -> list[Summary]:
        """All runs below the root, oldest first."""
        if self._all is None:
            self._all, self.skipped = self._cache.read_all(self.root)
        return self._all

    def find(self, word: str) -> list[Summary]:
        """The runs that `word` names, oldest first: at least one.

        `@last` is the newest; `@best:METRIC` has the best value of METRIC, as `compare` marks it;
        `@best:min:METRIC` has the smallest, `@best:max:METRIC` the largest. An experiment, or a
        folder of runs, stands for all its runs.

        Raises:
            NoSuchRun: There is none.
            AmbiguousName: The word is the name of runs and of an experiment with others.
            UnreadableRun: It names a folder that cannot be read.
        """
        found = self._find(word)
        experiment = [run for run in self.runs() if run.experiment == word]
        if (
            experiment
            and found[0].name == word
            and not {run.id for run in experiment} <= {run.id for run in found}
        ):
            raise AmbiguousName(
                f"{word!r} is the name of {count_text(len(found), 'run')} and of an experiment of "
                f"{len(experiment)}; use {self.root / experiment[0].path.parent.name} for the "
                f"experiment, and ids for the runs: {self._some(found)}"
            )
        return found

    def _find(self, word: str) -> list[Summary]:
        if word.startswith("@"):
            return [self._special(word)]
        # What looks like a path is one, where it exists.
        found = self._at(word)
        if found:
            return found
        runs = self.runs()
        for matches in (
            [run for run in runs if run.id == word],
            [run for run in runs if word in (run.name, f"{run.experiment}/{run.name}")],
            [run for run in runs if f"{run.experiment}/{run.id}" == word],
            [run for run in runs if run.experiment == word],
            [run for run in runs if len(word) >= _FEWEST_OF_ID and run.id.startswith(word)],
            # The end of an id is what differs between runs of one day.
            [run for run in runs if len(word) >= _FEWEST_OF_ID and run.id.endswith(word)],
        ):
            if matches:
                return matches
        for path, reason in self.skipped:
            if path.name == word:
                raise UnreadableRun(f"{path}: {reason}")
        raise NoSuchRun(
            f"no run in {self.root} is called {word!r}; a run is named by its id or the beginning "
            "of it, its name, its path, experiment/name, @last or @best:METRIC"
            + (f". There are {self._some(runs)}" if runs else self._why_none())
            + did_you_mean(word, {name for run in runs for name in (run.name, run.experiment)})
        )

    def find_one(self, word: str) -> Summary:
        """The one run that `word` names.

        Raises:
            NoSuchRun: There is none.
            AmbiguousName: There are several.
            UnreadableRun: It cannot be read.
        """
        found = self._find(word)
        if len(found) > 1:
            has_copies = len({run.id for run in found}) < len(found)
            raise AmbiguousName(
                f"{len(found)} runs are called {word!r}: {self._some(found)}; name one by its "
                + ("path" if has_copies else "id")
            )
        return found[0]

    def _at(self, word: str) -> list[Summary]:
        """The runs in the folder `word`; none where it is not a folder of runs."""
        try:
            path = Path(word).expanduser()
            if not find_folders(path)[0]:
                return []
        except (OSError, RuntimeError):
            # Too long for a path, or ~ of an unknown user: at most a name.
            return []
        found, skipped = self._cache.read_all(path)
        if not found:
            reasons = "; ".join(f"{path}: {reason}" for path, reason in skipped[:_MOST_NAMED])
            raise UnreadableRun(f"no run in {word} can be read: {reasons}")
        return found

    def _special(self, word: str) -> Summary:
        runs = self.runs()
        if not runs:
            raise NoSuchRun(f"there are no runs in {self.root}, so {word!r} does not name one")
        if word == "@last":
            return runs[-1]
        kind, _, metric = word.partition(":")
        mode: Direction | None = None
        if metric.startswith(("min:", "max:")):
            mode, metric = ("min" if metric.startswith("min:") else "max"), metric[4:]
        if kind != "@best" or not metric:
            raise AmbiguousName(
                f"{word!r} is unknown; there are @last, @best:METRIC, @best:max:METRIC"
            )
        having = [run for run in runs if metric in run.metrics]
        verdict = judged(metric, having, mode)
        if having and verdict.direction is None:
            raise AmbiguousName(
                f"{word!r} does not name a run: {verdict.why}; use @best:min:{metric} or "
                f"@best:max:{metric}, or call run.define_metric"
            )
        found = [(best(run, metric, verdict.direction), run) for run in having]
        values = [(reached[0], run) for reached, run in found if reached is not None]
        if not values:
            names = sorted({name for run in runs for name in run.metrics})
            raise NoSuchRun(
                f"no run has the metric {metric!r}; there are {', '.join(names)}"
                + did_you_mean(metric, names)
            )
        pick = max if verdict.direction == "max" else min
        return pick(values, key=lambda pair: pair[0])[1]

    def _why_none(self) -> str:
        is_there = self.root.exists()
        return ". There are no runs at all" if is_there else ". That folder does not exist"

    @staticmethod
    def _some(runs: Sequence[Summary]) -> str:
        newest = runs[-_MOST_NAMED:]
        has_copies = len({run.id for run in newest}) < len(newest)
        words = [run.path if has_copies else run.id for run in newest]
        shown = [f"{w} ({r.experiment}/{r.name})" for w, r in zip(words, newest, strict=True)]
        more = len(runs) - len(shown)
        return ", ".join(shown) + (f" and {more} more" if more else "")
