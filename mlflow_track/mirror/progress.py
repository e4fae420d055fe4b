"""How far a backend has come with each part of a record."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Position:
    """The progress with one file of metrics.

    Attributes:
        acknowledged: Bytes after its header that the destination has acknowledged.
        sending: The end of everything ever sent; a lost answer leaves it ahead.
        rewinds: For each rewind of the file, how many of the bytes set aside the destination has.
        values: The number of values of the row at `acknowledged` at the destination.
        unknown: Other content of the file, by a newer version; it is kept.
    """

    acknowledged: int = 0
    sending: int = 0
    rewinds: list[int] = field(default_factory=list)
    values: int = 0
    unknown: dict[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """The text form, a part of `MetricPoint.position`."""
        return f"{self.acknowledged}:{self.sending}:{self.rewinds_text()}:{self.values}"

    def rewinds_text(self) -> str:
        return ",".join(map(str, self.rewinds))

    @classmethod
    def of_text(cls, text: str) -> Position:
        """Parses the result of `text`; raises ValueError where it is not one."""
        acknowledged, sending, rewinds, values = text.split(":")
        numbers = [int(number) for number in rewinds.split(",") if number]
        return cls(int(acknowledged), int(sending), numbers, int(values))


def positions_of(text: str) -> dict[str, Position]:
    """Parses the result of `MirrorState.text`, by the names of the files.

    Raises:
        ValueError: It is something else.
    """
    parts = (part.split("=") for part in text.split(" ") if part)
    return {name: Position.of_text(position) for name, position in parts}


@dataclass
class MediaProgress:
    """The progress with images, texts and histograms of steps.

    Attributes:
        is_taken: Whether the backend has `log_media`; else their files are artifacts.
        acknowledged: The number of the first item that it has not acknowledged.
        sending: The same of everything ever sent; a lost answer leaves it ahead.
        again: Numbers before `acknowledged` that the destination has removed.
        last_step: The largest step of everything ever sent; -1 for nothing.
        rewinds: The indexes of rewound media that were taken out of the destination.
        kept: Those of a destination that removes nothing, each with the number of the first item
            that it does not have.
        unknown: Other content of the file, by a newer version; it is kept.
    """

    is_taken: bool = False
    acknowledged: int = 0
    sending: int = 0
    again: list[int] = field(default_factory=list)
    last_step: int = -1
    rewinds: list[str] = field(default_factory=list)
    kept: dict[str, int] = field(default_factory=dict)
    unknown: dict[str, Any] = field(default_factory=dict)
