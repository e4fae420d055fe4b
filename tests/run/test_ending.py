"""Does the record say how a run ended, in one line that a person can use?"""

from __future__ import annotations

import pytest

import mlflow_track as mt
from mlflow_track.ending import ending_of, one_line


@pytest.mark.parametrize(
    ("error", "stop", "expected"),
    [
        (None, None, ("FINISHED", None)),
        (None, "SIGTERM", ("KILLED", "stopped: SIGTERM")),
        (KeyboardInterrupt(), None, ("KILLED", "interrupted")),
        (SystemExit(0), None, ("FINISHED", None)),
        (SystemExit(3), None, ("FAILED", "SystemExit: 3")),
        (ValueError("no"), "SIGTERM", ("FAILED", "ValueError: no")),
    ],
)
def test_status_and_reason(error, stop, expected):
    assert ending_of(error, stop) == expected


def test_a_message_of_many_lines_is_one_line_with_its_first_and_its_last():
    error = RuntimeError("Error(s) in loading state_dict:\n\tMissing key(s): 'a.weight'\n")
    assert one_line(error) == (
        "RuntimeError: Error(s) in loading state_dict: Missing key(s): 'a.weight'"
    )
    long = one_line(RuntimeError("first " + "x" * 5000 + " last"))
    assert len(long) <= 1000
    assert long.startswith("RuntimeError: first") and long.endswith("last")


def test_the_reason_is_in_the_record():
    with pytest.raises(ValueError), mt.start_run(backend="local") as run:
        raise ValueError("line one\nline two")
    (attempt,) = mt.load_run(run.directory).info["attempts"]
    assert attempt["error"] == "ValueError: line one line two"
