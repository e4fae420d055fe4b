"""A power loss at any moment takes nothing that was promised: of a save, a rewind, a new column, …

A schedule is one such loss: a story, the operation after which the power fails, and what of the
unsynced has reached the disk. It follows from one number, which the message of a failure names.
"""

from __future__ import annotations

import functools
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.campaign import again, seeds
from tests.power_loss.disk import Disk
from tests.power_loss.recording import Change, Note, Operation, Recorder, Sync, Write, tree_of
from tests.power_loss.stories import (
    STORIES,
    all_rows,
    examine,
    examine_server,
    go_on,
    here,
    mirrored,
    new_columns,
    new_run,
    record,
    rewind,
    saves,
    steady,
    told,
)

Log = list[Operation]


@functools.cache
def log_of(story: Callable[..., None]) -> Log:
    with tempfile.TemporaryDirectory() as folder:
        return record(story, Path(folder) / "runs")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    # What the checks write has to survive nothing.
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    with here():
        yield tmp_path


def lose_power(log: Log, seed: int, folder: Path, ends: Sequence[int] = ()) -> None:
    """Try one schedule in the empty folder `folder`.

    Args:
        log: The operations.
        seed: Says the rest.
        folder: An empty folder.
        ends: After how many operations the power may fail; after any, where there is none.

    Raises:
        AssertionError: Something that was promised is not there.
    """
    rng = random.Random(seed)
    root = folder / "runs"
    notes: Log = []
    begin = 0
    # Now and then the power fails again while the run goes on after the first time.
    for attempt in range(1 + (rng.random() < 0.2)):
        end = rng.choice(ends or range(begin, len(log) + 1))
        ends = ()
        shown = folder / f"shown-{attempt}"
        Disk(log[:end]).show(shown, rng)
        shutil.rmtree(root, ignore_errors=True)
        shown.rename(root)
        notes += [operation for operation in log[:end] if isinstance(operation, Note | Sync)]
        examine(root, told(notes))
        notes.append(Note("survived", all_rows(root, told(notes))))
        recorder = Recorder(root)
        begin = len(recorder.log)
        with steady(1_900_000_000 + 10**6 * attempt, f"{seed} {attempt}"), recorder.recording():
            go_on(recorder.note, root, told(notes), by_id=rng.random() < 0.5)
        log = recorder.log
    notes += [operation for operation in log if isinstance(operation, Note | Sync)]
    examine(root, told(notes))
    examine_server(root, told(notes))


def failure(log: Log, seed: int, folder: Path, ends: Sequence[int] = ()) -> str:
    """What is wrong after one schedule; nothing where all is well."""
    place = folder / str(seed)
    place.mkdir()
    try:
        lose_power(log, seed, place, ends)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        shutil.rmtree(place)
    return ""


def try_schedules(schedules: list[int], folder: Path) -> None:
    for seed in schedules:
        story = random.Random(~seed).choice(STORIES)
        wrong = failure(log_of(story), seed, folder)
        assert not wrong, f"{story.__name__}: {wrong}\nagain: {again(seed, 'schedules')}"


@pytest.mark.faults
def test_some_schedules_take_nothing_that_was_promised(folder: Path) -> None:
    try_schedules(seeds(40), folder)


PARTS = 20


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(PARTS))
def test_many_schedules_take_nothing_that_was_promised(part: int, folder: Path) -> None:
    try_schedules(seeds(10_000)[part::PARTS], folder)


# --- what is recorded ---


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
def test_a_recording_misses_nothing(story: Callable[..., None], tmp_path: Path) -> None:
    log = record(story, tmp_path / "runs")
    Disk(log).show(tmp_path / "shown", None)
    assert tree_of(tmp_path / "shown") == tree_of(tmp_path / "runs")


def test_two_recordings_are_of_the_same_operations(tmp_path: Path) -> None:
    def outline(log: Log) -> list[tuple[Any, ...]]:
        return [
            (*operation[:3], len(operation.data or b""))
            if isinstance(operation, Write)
            else operation
            for operation in log
        ]

    first, second = (record(saves, tmp_path / name) for name in ("first", "other"))
    assert outline(first) == outline(second)


def test_a_recording_of_all_ways_to_write_misses_nothing(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    root.mkdir()
    (root / "before").write_bytes(b"here before")
    recorder = Recorder(root)
    with recorder.recording():
        (root / "a").mkdir()
        (root / "a" / "text").write_text("größe\n" * 3000, encoding="utf-8")
        with open(root / "a" / "text", "r+b") as file:
            file.seek(10)
            file.write(b"in the middle")
            file.truncate(100)
        with open(root / "a" / "text", "a") as file:
            print("at the end", file=file)
        descriptor = os.open("before", os.O_RDWR, dir_fd=(folder := os.open(root, os.O_RDONLY)))
        os.pwrite(descriptor, b"there", 50)
        os.posix_fallocate(descriptor, 0, 70)
        os.ftruncate(descriptor, 60)
        os.close(descriptor)
        os.close(folder)
        (root / "b").mkdir()
        os.replace(root / "a" / "text", root / "b" / "moved")
        (root / "b" / "gone").touch()
        (root / "b" / "gone").unlink()
        (root / "c" / "d").mkdir(parents=True)
        (root / "c" / "d" / "e").write_bytes(b"e")
        shutil.rmtree(root / "c")
    Disk(recorder.log).show(tmp_path / "shown", None)
    assert tree_of(tmp_path / "shown") == tree_of(root)
    assert tree_of(root)["before"] is not None and "b/moved" in tree_of(root)


# --- controls: without what makes it durable, something is lost ---


def without(log: Log, is_left_out: Callable[[Sync], bool]) -> Log:
    """The same calls, some of which make nothing durable."""
    return [
        operation._replace(node=-1)
        if isinstance(operation, Sync) and is_left_out(operation)
        else operation
        for operation in log
    ]


def is_ever_lost(log: Log, folder: Path, ends: Sequence[int] = ()) -> bool:
    return any(failure(log, seed, folder, ends) for seed in range(300))


@pytest.mark.parametrize(
    ("story", "file"),
    [
        (saves, "/state.safetensors"),
        (saves, "/state.json"),
        (saves, "/manifest.json"),
        (saves, "/metrics.csv"),
        (new_run, "/.tmp-run.json"),
        (new_run, "/.tmp-config.json"),
        (new_columns, "/.tmp-metrics.csv"),
        (rewind, "/.tmp-metrics.csv"),
        (rewind, "/.tmp-metrics.rewound"),
    ],
)
def test_without_the_fsyncs_of_a_file_something_is_lost(
    story: Callable[..., None], file: str, folder: Path
) -> None:
    log = log_of(story)
    reduced = without(log, lambda sync: file in sync.path)
    assert reduced != log
    assert is_ever_lost(reduced, folder)


@pytest.mark.parametrize("story", [saves, new_columns, rewind], ids=lambda story: story.__name__)
def test_without_the_fsyncs_of_folders_something_is_lost(
    story: Callable[..., None], folder: Path
) -> None:
    log = log_of(story)
    folders = {
        change.entries[0][2]
        for change in log
        if isinstance(change, Change) and change.made == "folder"
    }
    assert is_ever_lost(without(log, lambda sync: sync.node in folders), folder)


def test_a_server_has_a_step_twice_without_a_durable_mirror_state(
    folder: Path,
) -> None:
    log = log_of(mirrored)
    renames = {
        at
        for at, operation in enumerate(log)
        if isinstance(operation, Change) and operation.path.endswith("/mirror/mlflow.json")
    }
    reduced = [
        operation._replace(node=-1)
        if isinstance(operation, Sync) and at - 1 in renames
        else operation
        for at, operation in enumerate(log)
    ]
    assert reduced != log
    sent = [
        at
        for at, operation in enumerate(log)
        if isinstance(operation, Note) and operation.kind == "sent"
    ]
    # What comes soon after, and most of it before a rewind.
    ends = [at + more for at in sent for more in (2, 3, 4)]
    assert is_ever_lost(reduced, folder, ends)


def test_removing_the_older_checkpoint_before_the_commit_would_lose_it(folder: Path) -> None:
    log = log_of(saves)

    def is_removal(operation: Operation) -> bool:
        return isinstance(operation, Change) and ".trash-step-000000000" in operation.path

    def is_commit(operation: Operation) -> bool:
        return isinstance(operation, Change) and operation.path.endswith("/step-000000001")

    removal = [operation for operation in log if is_removal(operation)]
    rest = [operation for operation in log if not is_removal(operation)]
    commit = next(at for at, operation in enumerate(rest) if is_commit(operation))
    synced = [Sync("", number) for number in {e[0] for change in removal for e in change.entries}]
    reordered = [*rest[:commit], *removal, *synced, *rest[commit:]]
    assert is_ever_lost(reordered, folder, range(commit, len(rest)))
