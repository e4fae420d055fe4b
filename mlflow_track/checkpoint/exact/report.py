"""The report of a restore: what was restored, and whether the continuation is exact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from mlflow_track.wording import verdict_text


class Findings(NamedTuple):
    """Readable findings about a continuation.

    Attributes:
        differences: What makes it inexact.
        unknown: What may make it so, and cannot be known here.
        may_matter: What differs and probably changes nothing.
    """

    differences: Sequence[str] = ()
    unknown: Sequence[str] = ()
    may_matter: Sequence[str] = ()

    @classmethod
    def of_ranks(cls, ranks: Sequence[Findings]) -> Findings:
        """Those of all ranks, each once; a finding of only some has the first of their ranks."""
        lists = []
        for of_each in zip(*ranks, strict=True):
            first: dict[str, int] = {}
            for rank, found in enumerate(of_each):
                for words in found:
                    first.setdefault(words, rank)
            lists.append([w if not rank else f"{w} (rank {rank})" for w, rank in first.items()])
        return cls(*lists)


@dataclass(frozen=True, kw_only=True)
class Report:
    """The result of a restore.

    Attributes:
        step: The step restored.
        restored: The names of the restored entries.
        differences: Readable differences that make the continuation inexact.
        unknown: Reasons why it cannot be known whether it is exact.
        replaced: Settings of the code that are not used, because the checkpoint has others.
        may_matter: What differs and probably changes nothing.
        free: Params that differ, as the caller allowed.
    """

    step: int
    restored: Sequence[str]
    differences: Sequence[str] = ()
    unknown: Sequence[str] = ()
    replaced: Sequence[str] = ()
    may_matter: Sequence[str] = ()
    free: Sequence[str] = ()

    @property
    def is_exact(self) -> bool:
        return not self.differences and not self.unknown

    @property
    def verdict(self) -> str:
        """Whether the continuation is exact, with the reasons where it is not."""
        return verdict_text(self.differences, self.unknown)

    def __str__(self) -> str:
        beside = "".join(
            f"; {title}: {'; '.join(words)}"
            for title, words in (
                ("replaced by the checkpoint", self.replaced),
                ("may matter", self.may_matter),
                ("free to differ", self.free),
            )
            if words
        )
        return f"restored {', '.join(self.restored)} from step {self.step}; {self.verdict}{beside}"

    def with_difference(self, *differences: str) -> Report:
        return replace(self, differences=(*self.differences, *differences))

    def with_findings(self, found: Findings) -> Report:
        return replace(
            self,
            differences=(*self.differences, *found.differences),
            unknown=(*self.unknown, *found.unknown),
            may_matter=(*self.may_matter, *found.may_matter),
        )

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "is_exact": self.is_exact}
