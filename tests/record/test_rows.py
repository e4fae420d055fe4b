"""The one reader of metrics: its ways to parse agree, and nothing that lies there harms it."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlflow_track.analysis import frames
from mlflow_track.record import row_format, rows
from mlflow_track.record.row_format import (
    LONG_HEADER,
    MOST_STEP,
    Columns,
    cell_of_name,
    header_line,
    long_lines,
    parse_rows,
    parse_values,
    row_line,
)
from mlflow_track.record.rows import (
    Reader,
    count_lines,
    iterate_rows,
    names_in,
    read_piece,
    read_rows,
)

NAMES = ("a", "b", "c")
CELL = st.one_of(
    st.floats(),
    st.integers(-(2**63), 2**64 - 1),
    st.none(),
)
ROWS = st.lists(
    st.tuples(
        st.integers(0, MOST_STEP), st.floats(0, 1e10), st.lists(CELL, min_size=1, max_size=3)
    ),
    max_size=8,
)
# What a disk, an editor or an enemy puts in the place of a cell.
ODD = st.sampled_from(
    [
        *b"1_0| 1|1 |+1|01|1.|.5|1e5|1e400|-1e400|4e-400|nan|-nan|inf|-inf|infinity".split(b"|"),
        *b'NaN|null|true|[1]|{}|"1"||-|e|\0\0\0|\xff|9007199254740993|-1|-0.0'.split(b"|"),
        *b"18446744073709551615|18446744073709551616|1,1|1,1,1,1|1\n1|\r".split(b"|"),
        *b"INF|Inf|NA|None|N/A|True|0x10|1d3|1E3|'1'|#|1#|;|1;1|\t1|\v1|\0001".split(b"|"),
        *(b"1" * 400, b"1" * 5000),
    ]
)


def same(left: Columns, right: Columns) -> bool:
    def plain(columns: Columns) -> str:
        # repr: nan is itself there, and 0.0 is not -0.0.
        metrics = {
            name: ([*column.rows], [float(value) for value in column.values])
            for name, column in columns.metrics.items()
        }
        times = [float(time) for time in columns.times]
        return repr((columns.steps, times, metrics, [*columns.lines], columns.damaged))

    return plain(left) == plain(right)


@settings(max_examples=300)
@given(lines=ROWS, odd=st.lists(st.tuples(st.integers(0, 200), ODD), max_size=3))
@example(lines=[(0, 1.0, [1.0])] * 3, odd=[(1, b"1,1,1,1")])
@example(lines=[(0, 1.0, [0.0])], odd=[(1, b"-0")])
@example(lines=[(0, 1.0, [None])], odd=[(0, b"1,1,1,1")])
def test_the_quick_way_reads_what_the_way_line_by_line_reads(
    lines: list, odd: list[tuple[int, bytes]]
) -> None:
    body = damaged(b"".join(row_line(*line) for line in lines), odd)
    by_line = row_format._parse_line_by_line(NAMES, body)
    assert same(parse_rows(NAMES, body), by_line)
    assert len(by_line.steps) + by_line.damaged == body.count(b"\n")
    assert odd or by_line.damaged == 0
    # The parsers of Arrow and of pandas agree, or leave it to the other.
    piece = rows.Piece(NAMES, body, b"", 0, False, True)
    steps, own = frames._table([[piece]])
    for has_arrow in (True, False):
        together = in_frames(NAMES, body, has_arrow)
        if together is not None:
            together = together.groupby("step").last()
            pd.testing.assert_frame_equal(together, pd.DataFrame(own, pd.Index(steps, name="step")))


def in_frames(names: tuple[str, ...], body: bytes, has_arrow: bool) -> pd.DataFrame | None:
    """The lines as the frames of many runs are read; None where they are left to `row_format`."""
    names, plain = frames._plain([[rows.Piece(names, body, b"", 0, False, True)]])
    with pytest.MonkeyPatch.context() as patch:
        if not has_arrow:
            patch.setattr(frames, "pyarrow", None)
        return frames._parse_together(names, [plain], body.count(b"\n")) if plain else None


def damaged(body: bytes, odd: list[tuple[int, bytes]]) -> bytes:
    """The body with cells replaced by others."""
    cells = body.replace(b"\n", b",\n").split(b",")
    for at, cell in odd:
        if at < len(cells) and cells[at].strip():
            cells[at] = (b"\n" if cells[at].startswith(b"\n") else b"") + cell
    return b",".join(cells).replace(b",\n", b"\n")


TEXTS = st.sampled_from(["loss", 'a "b"', "p,q", "é", '"', ",", "a\\b", "nan", "1.5", " "])
VALUES = st.lists(
    st.tuples(st.integers(0, MOST_STEP), st.floats(0, 1e10), TEXTS, st.floats()), max_size=8
)


@settings(max_examples=300)
@given(values=VALUES, odd=st.lists(st.tuples(st.integers(0, 200), ODD), max_size=3))
def test_both_ways_read_lines_of_one_value_alike(
    values: list, odd: list[tuple[int, bytes]]
) -> None:
    whole = b"".join(long_lines(s, t, [cell_of_name(n)], [v]) for s, t, n, v in values)
    columns = parse_values(whole)
    assert columns.damaged == 0 and columns.steps == [step for step, *_ in values]
    for name, column in columns.metrics.items():
        own = [(row, value) for row, (_, _, n, value) in enumerate(values) if n == name]
        assert repr(own) == repr([*zip(column.rows, map(float, column.values), strict=True)])
    body = damaged(whole, odd)
    quick = parse_values(body)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_format, "_parse_values_quickly", lambda body: None)
        assert same(quick, parse_values(body))


def test_a_number_is_read_exactly_and_what_is_none_is_damage() -> None:
    lines = b"1,1.0,1e308\n2,1.0,-1e308\n3,1.0,nan\n4,1.0,-inf\n5,1.0,1e309\n6,1.0,1_0\n"
    column = parse_rows(("a",), lines).metrics["a"]
    assert [*column.values[:2], column.values[3]] == [1e308, -1e308, -math.inf]
    assert math.isnan(column.values[2]) and parse_rows(("a",), lines).damaged == 2


@pytest.mark.parametrize(
    ("line", "is_row"),
    [
        (b"9007199254740992,1.0,1.0\n", True),
        (b"9007199254740993,1.0,1.0\n", False),
        (b"-1,1.0,1.0\n", False),
        (b"1.0,1.0,1.0\n", False),
        (b"1,1e12,1.0\n", False),
        (b"1,-1.0,1.0\n", False),
        (b"1,nan,1.0\n", False),
        (b"1,,1.0\n", False),
        (b"1" * 400 + b",1.0,1.0\n", False),
        (b"1," + b"1" * 400 + b",1.0\n", False),
    ],
)
def test_a_step_and_a_time_have_bounds(line: bytes, is_row: bool) -> None:
    good = b"0,1.0,1.0\n"
    for body in (line, good + line, line + good):
        assert parse_rows(("a",), body).damaged == (not is_row)
        long = body.replace(b",1.0\n", b",a,1.0\n")
        assert parse_values(long).damaged == (not is_row)
        assert all((in_frames(("a",), body, has) is not None) is is_row for has in (True, False))


def test_short_lines_among_long_ones_need_no_more_memory_than_they_have() -> None:
    # 50,000 short lines and one of 100,000 cells: as a table they would be five billion.
    names = [f"n{number}" for number in range(100_000)]
    body = b"1,2.0\n" * 50_000 + b"1,2.0" + b",1" * 100_000 + b"\n"
    columns = parse_rows(names, body)
    assert len(columns.steps) == 50_001 and columns.metrics["n99999"].rows == [50_000]


# --- what else may lie there ---


def _link(path: Path) -> None:
    path.with_name("elsewhere").write_bytes(b"step,time,secret\n1,2.0,3.0\n")
    path.symlink_to("elsewhere")


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        folder = os.getcwd()
        os.chdir(path.parent)
        server.bind(path.name)
        os.chdir(folder)


def _sparse(path: Path) -> None:
    path.write_bytes(b"step,time,a\n1,2.0,3.0\n")
    os.truncate(path, 1 << 36)


NO_FILES: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "folder": os.mkdir,
    "link": _link,
    "dangling link": lambda path: path.symlink_to("nowhere"),
    "link to a device": lambda path: path.symlink_to("/dev/zero"),
    "socket": _socket,
    "foreign": lambda path: path.write_bytes(b"\x89PNG\xff\n\n"),
    "nested quotes": lambda path: path.write_bytes(b'step,time,"' + b"a" * (200 << 10) + b'"\n'),
}


@pytest.mark.parametrize("name", ["metrics.csv", "metrics.long.csv"])
@pytest.mark.parametrize("what", NO_FILES)
def test_what_is_not_a_metrics_file_is_named_at_once(what: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    NO_FILES[what](path)
    for read in (read_piece, read_rows, lambda path: list(Reader(path).new())):
        with pytest.raises((OSError, ValueError), match=name):
            read(path)
    assert count_lines(path, 0) == (0, 0)


@pytest.mark.parametrize("name", ["metrics.csv", "metrics.long.csv"])
@pytest.mark.parametrize(
    "header",
    [
        *(b"", b"step,ti", b"\0" * 12 + b"\n1,2.0,3.0\n"),
        *(b"step,time,a,\0\0\n1,2.0,3.0\n", b"s" * (5 << 20)),
    ],
    ids=len,
)
def test_a_header_that_is_not_whole_is_one_damaged_line_and_no_row(
    header: bytes, name: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(header)
    assert read_rows(path, 7) == ([], [], 7, 1)
    ((columns, is_beginning),) = Reader(path).new()
    assert (columns.steps, columns.damaged, is_beginning) == ([], 1, True)
    assert frames.read_frame(path).empty and rows.read_end(path, 100)[1]
    with pytest.raises(rows.TornHeader, match=f"the first line of .*{name} is not whole"):
        rows.read_header(path)


def test_a_hole_of_64_gigabytes_is_not_read(tmp_path: Path) -> None:
    _sparse(tmp_path / "metrics.csv")
    assert [row.step for row in iterate_rows(tmp_path / "metrics.csv")] == [1]


@given(lines=ROWS, piece=st.integers(1, 300), torn=st.integers(0, 40))
def test_pieces_from_any_position_are_the_rows_of_the_whole(
    lines: list, piece: int, torn: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("m") / "metrics.csv"
    header, body = header_line(NAMES), b"".join(row_line(*line) for line in lines)
    whole = body[: max(0, len(body) - torn)]
    path.write_bytes(header + whole)
    left = whole.count(b"\n")
    read, position = [], 0
    while (part := read_rows(path, position, piece)).position > position:
        assert part.ends == [*part.ends] and part.damaged == 0
        for row, end in zip(part.rows, part.ends, strict=True):
            assert whole[:end].endswith(b"\n") and whole[:end].count(b"\n") == len(read) + 1
            read.append(row.step)
        position = part.position
    assert read == [step for step, *_ in lines[:left]]
    assert count_lines(path, position) == (left, 0)
    assert count_lines(path, 0) == (left, left)


def test_a_reader_gives_each_row_once_and_starts_over_after_a_rewind(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    reader, steps = Reader(path), []

    def read() -> list[int]:
        for columns, is_beginning in reader.new():
            if is_beginning:
                steps.clear()
            steps.extend(columns.steps)
        return steps

    lines = [row_line(step, 1.0, [float(step)]) for step in range(9)]
    path.write_bytes(header_line(["a"]) + b"".join(lines[:5]))
    assert read() == [0, 1, 2, 3, 4] == read()
    # A new metric widens the header: positions stay true.
    path.write_bytes(header_line(["a", "b"]) + b"".join(lines[:6]) + lines[6][:4])
    assert read() == [0, 1, 2, 3, 4, 5] and reader.names == ("a", "b")
    path.write_bytes(header_line(["a", "b"]) + b"".join([*lines[:3], *lines[7:], *lines]))
    assert read() == [0, 1, 2, 7, 8, *range(9)]
    path.write_bytes(header_line(["a", "b"]))
    assert read() == []


def test_a_file_that_is_long_is_known_by_its_name(tmp_path: Path) -> None:
    # Metrics may be called so.
    wide = tmp_path / "metrics.csv"
    wide.write_bytes(LONG_HEADER + b"1,2.0,3.0,4.0\n")
    assert [row.values for row in iterate_rows(wide)] == [{"metric": 3.0, "value": 4.0}]
    long = tmp_path / "metrics.long.csv"
    long.write_bytes(LONG_HEADER + b"1,2.0,a,4.0\n")
    assert [row.values for row in iterate_rows(long)] == [{"a": 4.0}]


def test_names_in_a_file_whose_header_is_torn_are_none(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_bytes(b"step,time,loss\n0,1.5,0.25\n")
    (tmp_path / "metrics.damaged-1.csv").write_bytes(b"step,time,lo")
    assert list(names_in(tmp_path / "metrics.csv")) == ["loss"]
    assert list(names_in(tmp_path / "metrics.damaged-1.csv")) == []
