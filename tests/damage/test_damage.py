"""Whatever a run's folder holds, no reader ends in a traceback or hangs, and other runs are served.

What is damaged is said in a line; nothing outside the folder of runs is shown or changed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import forked
from tests.campaign import again, sampled, seeds
from tests.damage import readers
from tests.damage.mutants import VICTIMS, Mutant, make
from tests.damage.readers import Readers

# What serves starts once in a parallel run.
together = pytest.mark.xdist_group("damage")


@pytest.fixture(scope="module")
def served() -> Iterator[Readers]:
    process = Readers()
    yield process
    process.close()


def try_mutants(cases: list[int], served: Readers) -> None:
    for case in cases:
        what, found = served.examine(case)
        wrong = "\n".join(f"  {name}: {words}" for name, words in found)
        assert not found, f"{what}\n{wrong}\nagain: {again(case, 'mutants')}"


@together
@pytest.mark.faults
@pytest.mark.timeout(600)
def test_some_mutants_are_named_and_cost_no_other_run(served: Readers) -> None:
    try_mutants(seeds(12), served)


PARTS = 20


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(PARTS))
def test_many_mutants_are_named_and_cost_no_other_run(part: int, served: Readers) -> None:
    try_mutants(seeds(2_000)[part::PARTS], served)


@pytest.mark.faults
@pytest.mark.parametrize("case", sampled(1, 3))
def test_mutants_in_processes_of_their_own(case: int, tmp_path: Path) -> None:
    mutant = make(case, tmp_path)
    for words in (
        ("ls", "runs"),
        ("compare", "-d", "runs"),
        ("show", "-d", "runs", mutant.victim.name),
    ):
        done = forked.run(
            [sys.executable, "-m", "mlflow_track.cli", *words],
            env={**os.environ, "PYTHONPATH": str(readers.ROOT)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=60,
        )
        said = done.stdout + done.stderr
        assert "Traceback" not in said, (mutant.what, words, said, again(case, "mutants"))
        assert words[0] == "show" or "resumed twice" in said or mutant.neighbour.name in said


@together
def test_good_runs_are_read_by_every_reader(served: Readers) -> None:
    try_mutants([~number for number in range(len(VICTIMS))], served)


# --- controls: a reader that does what it must not is found ---


def hangs(mutant: Mutant) -> None:
    os.mkfifo("pipe")
    Path("pipe").read_bytes()


def dies(mutant: Mutant) -> None:
    os._exit(3)


def hoards(mutant: Mutant) -> None:
    bytearray(8 << 30)


def fails(mutant: Mutant) -> None:
    raise AttributeError("a list for a mapping")


def writes_outside(mutant: Mutant) -> None:
    (mutant.root.parent / "secret.csv").write_text("")


def is_well(mutant: Mutant) -> None: ...


@pytest.mark.parametrize(
    ("reader", "wrong"),
    [
        (hangs, "hangs"),
        (dies, "kills its process"),
        (hoards, "MemoryError"),
        (fails, "AttributeError: a list for a mapping"),
        (writes_outside, "changes a file outside the run"),
        (is_well, None),
    ],
)
def test_a_reader_that_is_wrong_is_found_and_the_next_one_is_tried(
    reader: Callable[[Mutant], None],
    wrong: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(readers, "HANG_SECONDS", 2.0)
    found: list[tuple[str, str]] = []
    mutant = make(1, tmp_path / "mutant")
    readers.attempt(mutant, [("this", reader), ("next", fails)], found, {})
    assert [name for name, _ in found] == ["this", "next"][wrong is None :]
    if wrong is not None:
        assert found[0][1].startswith(wrong)
