"""The words of messages: an expectation, and the value that came in its place."""

from __future__ import annotations

import pytest

from mlflow_track.wording import command_text, expected, shown, typed


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
