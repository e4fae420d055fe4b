"""The wording of messages: expectations with the given value, counts, sizes, verdicts."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

_MOST_SHOWN, _MOST_REASONS = 200, 20
# Control characters but tab and newline, changes of the direction of writing, separators of lines,
# and half characters, which no encoding has.
UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
_SIZE = re.compile(r"(\d{1,20}(?:\.\d{1,20})?(?:e\d{1,2})?) ?(?:([kmgtp])(i?))?b?", re.IGNORECASE)
_MOST_BYTES = 2**62


def expected(name: str, what: str, got: str) -> str:
    """The message of a failed check: "step must be an integer, got 'x' (str)".

    Args:
        name: The name of the value, as the caller knows it.
        what: The expectation, to follow "must be".
        got: The given value: the result of `shown` or `typed`, or a description.
    """
    return f"{name} must be {what}, got {got}"


def value_error(name: str, what: str, got: str, more: str = "") -> ValueError:
    """The error for a value of a valid type; see `expected`. `more` follows: what to do instead."""
    return ValueError(expected(name, what, got) + more)


def type_error(name: str, what: str, got: str, more: str = "") -> TypeError:
    """The error for a value of another type; see `value_error`."""
    return TypeError(expected(name, what, got) + more)


def shown(value: Any) -> str:
    """A value as Python writes it, on one line; of a long one the beginning."""
    text = re.sub(r"\s*\n\s*", " ", repr(value))
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}… ({len(text):,} characters)"


def typed(value: Any) -> str:
    """A value with its type, for where the type is wrong: 'x' (str), None, or a class alone."""
    if value is None:
        return "None"
    kind = type(value).__name__
    # The address of an object says nothing, and differs from process to process.
    return kind if " at 0x" in repr(value) else f"{shown(value)} ({kind})"


def count_text(count: int, noun: str) -> str:
    """1 run, 2 runs, 1,000 runs.

    Args:
        noun: The noun in the singular; its plural must end in s.
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def size_text(size: int) -> str:
    """A number of bytes: 0 B, 999 B, 1.5 kB, 2.0 GB."""
    if size < 1000:
        return f"{size} B"
    value, unit = float(size), 0
    # What would be rounded to 1000.0 belongs to the next unit.
    while value >= 999.95 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:,.1f} {_UNITS[unit]}"


def size_of(name: str, text: str) -> int:
    """The number of bytes that a text names: 500000, 1e9, 1.5 GB, 10GiB.

    Args:
        name: The name of the value, for a message.
        text: A number, and where it is not of bytes its unit.

    Raises:
        ValueError: It is not a size; the message shows some.
    """
    if found := _SIZE.fullmatch(text.strip()):
        number, unit, is_binary = found.groups()
        power = 0 if unit is None else 1 + "kmgtp".index(unit.lower())
        size = Fraction(number) * (1024 if is_binary else 1000) ** power
        if size.denominator == 1 and size <= _MOST_BYTES:
            return int(size)
    wanted = "a number of bytes, like 500000, 1e9, 1.5GB or 10GiB"
    raise value_error(name, wanted, shown(text))


def command_text(arguments: Sequence[str] | None) -> str:
    """The command that starts Python with these arguments, to paste into a shell; "" without any.

    Args:
        arguments: The command line as run.json has it: without the interpreter.
    """
    return shlex.join(["python", *arguments]) if arguments else ""


def escaped(text: str) -> str:
    r"""The text with control characters as escapes like `\x1b`."""
    return UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def shortened(text: str, most: int) -> str:
    """The text on one line, escaped; of a long one the beginning and the end."""
    line = " ".join(escaped(text).split())
    if len(line) <= most:
        return line
    # The end of a name is what tells it from its neighbours.
    end = max(1, most // 2 - 1)
    return f"{line[: most - 1 - end]}…{line[-end:]}"


def missing_text(item: str) -> str:
    """What is wrong with a server that lacks what it acknowledged."""
    return (
        f"the server acknowledged {item} and does not have it: something before the server answers "
        "in its place, or it was lost there"
    )


def verdict_text(differences: Sequence[str], unknown: Sequence[str]) -> str:
    """Whether a continuation is exact, with the first of the reasons where it is not."""
    doubt = f"unknown: {first_of(unknown, _MOST_REASONS)}" if unknown else ""
    if differences:
        reasons = first_of(differences, _MOST_REASONS)
        return f"exact: no ({reasons})" + (f"; {doubt}" if doubt else "")
    return f"exact: {doubt or 'yes'}"


def first_of(reasons: Sequence[str], most: int) -> str:
    """The first reasons, and how many more there are."""
    more = len(reasons) - most
    return "; ".join([*reasons[:most], *([f"and {more:,} more"] if more > 0 else [])])
