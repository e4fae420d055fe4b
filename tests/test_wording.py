"""The words of messages: an expectation, and the value that came in its place."""

from __future__ import annotations

import pytest

from mlflow_track.wording import command_text, expected, shown, size_of, size_text, typed


def test_expected_names_what_was_wanted_and_given() -> None:
    assert expected("step", "an integer", typed("x")) == "step must be an integer, got 'x' (str)"


def test_shown_cuts_a_long_value_and_says_its_length() -> None:
    assert shown("x" * 198) == repr("x" * 198)
    assert shown("x" * 199) == f"'{'x' * 199}… (201 characters)"


class Lines:
    def __repr__(self) -> str:
        return "Lines(1,\n      2)"


def test_shown_is_one_line() -> None:
    assert shown(Lines()) == "Lines(1, 2)"


@pytest.mark.parametrize(
    ("value", "text"), [(1.5, "1.5 (float)"), (None, "None"), (True, "True (bool)")]
)
def test_typed_shows_the_type_unless_the_value_does(value: object, text: str) -> None:
    assert typed(value) == text


def test_typed_is_the_same_in_every_process() -> None:
    assert typed(object()) == "object"


def test_command_text_is_a_line_for_a_shell() -> None:
    assert command_text(["-m", "train", "--run-name", "a b"]) == "python -m train --run-name 'a b'"
    assert command_text([]) == command_text(None) == ""


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *(("0", 0), ("500000", 500_000), ("1e9", 10**9), ("1.5 GB", 1_500_000_000)),
        *(("10gb", 10**10), ("10GiB", 10 * 2**30), ("2k", 2000), ("7 B", 7), (" 1PB ", 10**15)),
        *((size_text(n), n) for n in (999, 1500, 2_000_000)),
    ],
)
def test_size_of_reads_what_size_text_writes_and_more(text: str, size: int) -> None:
    assert size_of("x", text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1", "1.5", "1e99", "1e999999999", "10 XB", "1,000"])
def test_size_of_refuses_other_texts_with_examples(text: str) -> None:
    with pytest.raises(ValueError, match=r"^x must be a number of bytes, like .*1e9.*10GiB, got"):
        size_of("x", text)
