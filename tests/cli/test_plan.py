"""`mlflow-track plan`: what it refuses, and what it says of a plan that surprises."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from mlflow_track.checkpoint.disk import publish
from mlflow_track.cli.checkpoint.plan import plan

ENDLESS = "there is no limit to what follows"


def answer(line: str, folder: Path, *, status: int = 0) -> str:
    result = CliRunner().invoke(plan, [*shlex.split(line), "-d", str(folder)])
    assert result.exit_code == status, result.output
    return " ".join(result.output.split())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--max-steps 0", "--max-steps must be an integer of at least 1, got 0"),
        ("--max-steps 9 --warmup-steps -1", "--warmup-steps must be an integer of at least 0"),
        ("--max-steps 9 --max-checkpoints 0", "--max-checkpoints must be an integer of at least 1"),
        ("--every 0", "--every must be an integer of at least 1, got 0"),
        ("--at -5", "--at must be an integer of at least 0, got -5"),
        ("--every-minutes nan", "--every-minutes must be a finite number above 0, got nan"),
        ("--budget 0", "--budget must be a finite number above 0, got 0.0"),
        ("--budget 2", "--budget must be a share below 1, got 2.0"),
        ("--every 5 --keep-last 0", "--keep-last must be an integer of at least 1, got 0"),
        ("--every 5 --max-bytes 10XB", "must be a number of bytes, like 500000, 1e9"),
        ("--every 5 --max-bytes 0", "--max-bytes must be an integer of at least 1, got 0"),
        ("--max-steps 9 --from-step 9", "--from-step must be below --max-steps 9, got 9"),
        ("--warmup-steps 5", "--warmup-steps must be given together with --max-steps"),
        ("--keep-last 2", "--max-steps, or another policy"),
        ("--every 5 --keep-best 2", "--keep-best must be given together with --metric"),
        ("--every 5 --metric loss", "--metric must be given together with --keep-best"),
        (
            "--every 5 --min-delta 1",
            "--min-delta must be given together with --save-on-improvement",
        ),
        ("--max-steps 9 --step-seconds 1", "must be given together with --every-minutes"),
        ("--every 5 --state-bytes 9 --checkpoint x", "cannot be combined with --checkpoint"),
    ],
)
def test_plan_refuses_by_the_name_of_the_option(line: str, message: str, tmp_path: Path) -> None:
    assert message in answer(line, tmp_path, status=2)


@pytest.mark.parametrize(
    ("line", "note"),
    [
        ("--max-steps 100 --warmup-steps 99", "EvenlySpaced makes 1 save, not 5: the warm-up of"),
        ("--max-steps 3", "EvenlySpaced makes 3 saves, not 5: there are no more steps"),
        ("--max-steps 20 --at 5,20,30", "AtSteps: 20, 30 are after the last step, 19"),
        ("--max-steps 20 --every 20", "EverySteps: 20 is after the last step, 19"),
        ("--max-steps 20 --state-bytes 9000 --max-bytes 8000", "only the newest stays"),
    ],
)
def test_plan_notes_what_arguments_do_not_get(line: str, note: str, tmp_path: Path) -> None:
    assert note in answer(line, tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        "--max-steps 100 --warmup-steps 95",
        "--max-steps 5",
        "--max-steps 20 --at 5,19",
        "--max-steps 20 --every 19",
        "--at 5,20",
        "--max-steps 20 --state-bytes 9e3 --max-bytes 80kB",
    ],
)
def test_plan_has_no_note_where_all_is_as_asked(line: str, tmp_path: Path) -> None:
    text = answer(line, tmp_path)
    assert not any(word in text for word in ("makes", "after the last", "only the newest"))


@pytest.mark.parametrize(
    ("line", "verdict", "fits"),
    [
        ("--max-steps 100", "the plan fits", True),
        ("--max-steps 100 --every-minutes 9 --keep-last 2", "the plan fits", True),
        ("--max-steps 999999999 --continuous", "the certain saves fit, but not all that may", True),
        ("--every 5 --keep-last 2", "the plan fits", True),
        ("--every 5", ENDLESS, None),
        ("--every-minutes 9", ENDLESS, True),
    ],
)
def test_plan_says_that_it_fits_only_where_all_of_it_does(
    line: str,
    verdict: str,
    fits: bool | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(publish, "free_bytes", lambda folder: 10**12)
    line += " --state-bytes 1000000"
    text = answer(line, tmp_path)
    assert verdict in text and (verdict == "the plan fits" or "the plan fits" not in text)
    document = CliRunner().invoke(plan, [*shlex.split(line), "-d", str(tmp_path), "--json"]).output
    assert json.loads(document)["fits"] is fits


def test_plan_shows_a_range_only_where_its_ends_look_different(tmp_path: Path) -> None:
    line = "--max-steps 9000 --every 9 --every-minutes 9 --keep-last 3 --state-bytes 1000000000"
    text = answer(line, tmp_path)
    assert "at the end 3.0 GB free" in text and "to 3.0 GB" not in text


def test_plan_shows_steps_that_leave_no_room_for_the_rest(tmp_path: Path) -> None:
    text = answer(f"--max-steps {10**80}", tmp_path)
    assert f"{10**80 - 1} Evenly… step" in text


def test_plan_counts_the_kept_where_not_even_one_step_can_be_shown(tmp_path: Path) -> None:
    text = answer("--max-steps 999999999999 --state-bytes 1000", tmp_path)
    assert " 3 of them " in text
