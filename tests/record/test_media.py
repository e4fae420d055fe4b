"""The index of media: what is torn or damaged, numbers, and rewinds that crash half-way."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_track.record import layout
from mlflow_track.record.media import writer
from mlflow_track.record.media.index import MediaEntry, MediaReader, file_of, read_media
from mlflow_track.record.media.writer import MediaIndex


def entry(number: int, step: int, key: str = "a", **fields: Any) -> MediaEntry:
    file = f"{key}/{layout.media_file(step, '.png')}"
    return MediaEntry(
        **{"number": number, "kind": "image", "key": key, "step": step, "time": 1.0, "file": file}
        | fields
    )


def write(index: MediaIndex, path: Path, *steps: int) -> None:
    """Log images of some steps, with their files."""
    for step in steps:
        item = entry(index.take_number(), step)
        file = path / layout.ARTIFACTS / item.file
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{item.number}")
        index.append(item)


def rewind(index: MediaIndex, attempt: int, *span: int, **named: int) -> int:
    plan = index.plan_rewind(*span, **named)
    index.rewind(attempt, plan)
    return len(plan.moved)


def steps_in(path: Path) -> list[int]:
    return [item.step for item in read_media(path)]


def test_the_index_continues_behind_a_torn_line(tmp_path: Path) -> None:
    index = MediaIndex(tmp_path)
    write(index, tmp_path, 0, 1)
    index.close()
    file = tmp_path / layout.MEDIA
    whole = file.read_bytes()
    for cut in range(len(whole)):
        file.write_bytes(whole[:cut])
        kept = whole[:cut].count(b"\n")
        assert steps_in(tmp_path) == [0, 1][:kept]
        again = MediaIndex(tmp_path)
        assert again.number == kept
        write(again, tmp_path, 7)
        again.close()
        assert steps_in(tmp_path) == [*[0, 1][:kept], 7]


@settings(max_examples=60)
@given(data=st.data())
def test_a_damaged_line_takes_no_other_with_it(data: st.DataObject, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("run")
    index = MediaIndex(path)
    write(index, path, *range(5))
    index.close()
    file = path / layout.MEDIA
    lines = file.read_bytes().splitlines(keepends=True)
    hit = data.draw(st.integers(0, 4))
    damaged = bytearray(lines[hit])
    for _ in range(data.draw(st.integers(1, 5))):
        damaged[data.draw(st.integers(0, len(damaged) - 2))] = data.draw(st.integers(0, 255))
    lines[hit] = bytes(damaged)
    file.write_bytes(b"".join(lines))
    reader = MediaReader(file)
    reader.read()
    others = [entry(number, number) for number in range(5) if number != hit]
    assert [item for item in others if item in reader.entries] == others
    assert reader.damaged + len(reader.entries) >= 5


@pytest.mark.parametrize(
    "wrong",
    [
        {"file": "../run.json"},
        {"file": "/etc/passwd"},
        {"file": "a/../../run.json"},
        {"file": "a/."},
        {"number": -1},
        {"step": 2**60},
        {"key": ""},
        {"time": float("nan")},
    ],
)
def test_an_entry_that_leads_out_or_is_out_of_bounds_is_damaged(
    tmp_path: Path, wrong: dict[str, Any]
) -> None:
    line = msgspec.json.encode(msgspec.to_builtins(entry(0, 0)) | wrong)
    (tmp_path / layout.MEDIA).write_bytes(line + b"\n")
    reader = MediaReader(tmp_path / layout.MEDIA)
    reader.read()
    assert (reader.entries, reader.damaged) == ([], 1)


def test_file_of_follows_no_link(tmp_path: Path) -> None:
    run, outside = tmp_path / "run", tmp_path / "outside"
    for folder in (run / layout.ARTIFACTS, outside):
        folder.mkdir(parents=True)
    item = entry(0, 0)
    (outside / Path(item.file).name).write_text("secret")
    (run / layout.ARTIFACTS / "a").symlink_to(outside)
    assert file_of(run, item) is None
    (run / layout.ARTIFACTS / "a").unlink()
    (run / layout.ARTIFACTS / "a").mkdir()
    (run / layout.ARTIFACTS / item.file).symlink_to(outside / Path(item.file).name)
    assert file_of(run, item) is None
    (run / layout.ARTIFACTS / item.file).unlink()
    os.mkfifo(run / layout.ARTIFACTS / item.file)
    assert file_of(run, item) is None


def test_an_index_that_is_a_link_or_a_pipe_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / layout.MEDIA).symlink_to("/etc/hostname")
    with pytest.raises(OSError, match="link"):
        read_media(tmp_path)
    (tmp_path / layout.MEDIA).unlink()
    os.mkfifo(tmp_path / layout.MEDIA)
    with pytest.raises(OSError, match="regular"):
        read_media(tmp_path)


def test_of_one_kind_key_and_step_the_later_counts(tmp_path: Path) -> None:
    index = MediaIndex(tmp_path)
    for item in (entry(0, 5), entry(1, 5, file="a/other.png"), entry(2, 5, kind="text")):
        index.append(item)
    assert [(i.number, i.kind) for i in read_media(tmp_path)] == [(1, "image"), (2, "text")]


def test_the_reader_follows_what_is_appended_and_what_is_rewound(tmp_path: Path) -> None:
    reader, index = MediaReader(tmp_path / layout.MEDIA), MediaIndex(tmp_path)
    assert not reader.read()
    write(index, tmp_path, 0, 1)
    assert reader.read() and len(reader.entries) == 2
    assert not reader.read()
    write(index, tmp_path, 2)
    assert reader.read() and len(reader.entries) == 3
    rewind(index, 1, past=0)
    assert reader.read() and [item.step for item in reader.entries] == [0]
    write(index, tmp_path, 1)
    assert reader.read() and [item.number for item in reader.entries] == [0, 3]


# --- rewinds ---


def test_a_rewind_moves_lines_and_files_aside(tmp_path: Path) -> None:
    index = MediaIndex(tmp_path)
    write(index, tmp_path, 0, 1, 2, 3)
    assert rewind(index, 2, past=1) == 2
    write(index, tmp_path, 2)
    assert rewind(index, 2, past=1) == 1
    index.close()
    assert steps_in(tmp_path) == [0, 1]
    assert sorted(p.name for p in (tmp_path / "artifacts/a").iterdir()) == [
        layout.media_file(step, ".png") for step in (0, 1)
    ]
    asides = [(2, "media.rewound-2"), (3, "media.rewound-2"), (2, "media.rewound-2-2")]
    texts = [
        (tmp_path / folder / "a" / layout.media_file(step, ".png")).read_text()
        for step, folder in asides
    ]
    assert texts == ["2", "3", "4"]
    assert [p.name for p in layout.media_indexes_aside(tmp_path)] == [
        *("media.rewound-2-2.jsonl", "media.rewound-2.jsonl")
    ]


def test_numbers_are_never_used_twice(tmp_path: Path) -> None:
    index = MediaIndex(tmp_path)
    write(index, tmp_path, 0, 1, 2)
    rewind(index, 1, past=0)
    index.close()
    assert MediaIndex(tmp_path).number == 3
    # A checkpoint knows of items that a crash took.
    assert index.first_later(10, 0) == writer.NOWHERE
    assert index.take_number() == 10


def test_first_later_begins_where_the_checkpoint_was_saved(tmp_path: Path) -> None:
    index = MediaIndex(tmp_path)
    # Logged over tokens, before the checkpoint of step 3; then step 3 once more, then a later one.
    write(index, tmp_path, 1000, 3, 4)
    assert index.first_later(1, 3) == 2
    assert index.first_later(0, 3) == 0
    assert index.first_later(3, 3) == writer.NOWHERE


def test_what_a_rewind_leaves_keeps_lines_of_newer_versions(tmp_path: Path) -> None:
    index = MediaIndex(tmp_path)
    write(index, tmp_path, 0, 9)
    index.close()
    newer = b'{"number": 7, "kind": "audio", "key": "k", "step": 0, "time": 1, "file": "k/x.wav"'
    with open(tmp_path / layout.MEDIA, "ab") as file:
        file.write(newer + b', "rate": 44100}\n{"damaged\n')
    again = MediaIndex(tmp_path)
    assert again.number == 8
    rewind(again, 1, past=5)
    lines = (tmp_path / layout.MEDIA).read_bytes().splitlines()
    assert lines[1:] == [newer + b', "rate": 44100}', b'{"damaged']
    assert b'"step":9' in (tmp_path / "media.rewound-1.jsonl").read_bytes()


class Crash(BaseException):
    """The end of a process."""


def test_a_rewind_that_crashes_anywhere_is_completed_by_the_next_writer(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call that changes the disk is the last one once."""
    counter = 0

    def crashing(function: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal counter
            counter -= 1
            if counter == 0:
                raise Crash
            return function(*arguments, **named)

        return call

    for name in ("replace_file", "make_folder"):
        monkeypatch.setattr(writer, name, crashing(getattr(writer, name)))
    monkeypatch.setattr(writer.os, "rename", crashing(os.rename))
    crashes = 0
    for crash_at in range(1, 12):
        path = tmp_path_factory.mktemp("run")
        counter = 0
        index = MediaIndex(path)
        write(index, path, 0, 1, 2, 3)
        counter = crash_at
        try:
            rewind(index, 1, past=1)
        except Crash:
            crashes += 1
        index.close()
        counter = 0
        again = MediaIndex(path)
        assert again.number == 4
        # What has begun is complete.
        assert steps_in(path) == ([0, 1] if layout.media_indexes_aside(path) else [0, 1, 2, 3])
        rewind(again, 2, past=1)
        assert steps_in(path) == [0, 1]
        kept = sorted(file.read_text() for file in (path / "artifacts").rglob("*.png"))
        moved = sorted(file.read_text() for file in path.glob("media.rewound-*/a/*.png"))
        assert (kept, moved) == (["0", "1"], ["2", "3"]), crash_at
    assert crashes >= 6


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32))
def test_the_index_equals_a_model_of_it(seed: int, tmp_path_factory: Any) -> None:
    """Appends, rewinds and restarts in any order: nothing is lost, no number comes twice."""
    generator, path = random.Random(seed), tmp_path_factory.mktemp("run")
    index, model, gone = MediaIndex(path), [], []
    for attempt in range(1, 8):
        for _ in range(generator.randrange(6)):
            step = generator.randrange(10)
            write(index, path, step)
            model.append((index.number - 1, step))
        if generator.random() < 0.5:
            past, begin = generator.randrange(10), generator.randrange(index.number + 1)
            before = generator.randrange(index.number + 1)
            taken = [(n, s) for n, s in model if begin <= n < before and s > past]
            assert rewind(index, attempt, past, begin, before) == len(taken)
            model = [item for item in model if item not in taken]
            gone += taken
        if generator.random() < 0.5:
            index.close()
            index = MediaIndex(path)
    reader = MediaReader(path / layout.MEDIA)
    reader.read()
    assert [(item.number, item.step) for item in reader.entries] == model
    aside = [MediaReader(file) for file in layout.media_indexes_aside(path)]
    for each in aside:
        each.read()
    found = sorted((item.number, item.step) for each in aside for item in each.entries)
    assert found == sorted(gone)
