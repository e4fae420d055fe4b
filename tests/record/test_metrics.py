"""The metrics file: what was appended is read back, whatever happens in between."""

import math
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_track.record import metrics
from mlflow_track.record.append_file import Span
from mlflow_track.record.metrics import MetricsFile
from mlflow_track.record.rows import iterate_rows, read_header, read_rows

NAMES = st.sampled_from(["loss", "lr", 'a "b", c', "é", "x/y", "acc"])
ROWS = st.lists(
    st.tuples(st.integers(0, 2**53), st.dictionaries(NAMES, st.floats(), min_size=1, max_size=6)),
    max_size=30,
)


def write(path: Path, rows: list[tuple[int, dict[str, float]]]) -> MetricsFile:
    file = MetricsFile(path)
    for step, values in rows:
        file.append(step, tuple(values), list(values.values()))
    return file


def same(left: dict[str, float], right: dict[str, float]) -> bool:
    return left.keys() == right.keys() and all(
        a == b or (math.isnan(a) and math.isnan(b)) for a, b in ((left[k], right[k]) for k in left)
    )


@given(rows=ROWS)
def test_every_float_and_name_comes_back_exactly(
    rows: list[tuple[int, dict[str, float]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("m") / "metrics.csv"
    write(path, rows).close()
    read = list(iterate_rows(path))
    assert [row.step for row in read] == [step for step, _ in rows]
    assert all(same(row.values, values) for row, (_, values) in zip(read, rows, strict=True))


@given(rows=ROWS, piece=st.integers(1, 200))
def test_reading_in_pieces_gives_the_rows_of_reading_at_once(
    rows: list[tuple[int, dict[str, float]]],
    piece: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("m") / "metrics.csv"
    write(path, rows).close()
    steps, position = [], 0
    while (part := read_rows(path, position, piece)).position > position:
        steps += [row.step for row in part.rows]
        position = part.position
    assert steps == [step for step, _ in rows]


@given(rows=ROWS, last=st.integers(0, 2**53))
def test_a_rewind_moves_exactly_the_later_rows(
    rows: list[tuple[int, dict[str, float]]], last: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("m")
    path, aside = folder / "metrics.csv", folder / "aside.csv"
    file = write(path, rows)
    before = path.read_bytes()[read_header(path)[1] :]
    rewind = file.rewind(Span(last), aside)
    kept = [step for step, _ in rows if step <= last]
    moved = [step for step, _ in rows if step > last]
    assert [row.step for row in iterate_rows(path)] == kept
    assert [row.step for row in iterate_rows(aside)] == moved
    assert rewind.rows == len(moved)
    # The removed ranges turn a position in the old file into one in the new file.
    for begin, end in reversed(rewind.wide.removed):
        before = before[:begin] + before[end:]
    assert path.read_bytes()[read_header(path)[1] :] == before
    file.append(7, ("loss",), [1.0])
    assert [row.step for row in iterate_rows(path)] == [*kept, 7]


def test_a_new_name_widens_the_header_and_leaves_the_rows_alone(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    file = write(path, [(0, {"loss": 1.0})])
    _, length = read_header(path)
    body, position = path.read_bytes()[length:], file.positions().wide
    file.append(1, ("val", "loss"), [2.0, 3.0])
    names, length = read_header(path)
    assert names == ("loss", "val")
    assert path.read_bytes()[length:].startswith(body)
    assert read_rows(path, position).rows[0].values == {"loss": 3.0, "val": 2.0}
    frame = pd.read_csv(path)
    assert list(frame.columns) == ["step", "time", "loss", "val"]
    assert frame["val"].isna().tolist() == [True, False]


def test_a_torn_last_line_is_not_read_and_the_next_writer_cuts_it_off(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    write(path, [(0, {"loss": 1.0}), (1, {"loss": 2.0})]).close()
    os.truncate(path, path.stat().st_size - 3)
    assert [row.step for row in iterate_rows(path)] == [0]
    write(path, [(1, {"loss": 2.5})]).close()
    assert [row.values["loss"] for row in iterate_rows(path)] == [1.0, 2.5]


def test_a_line_that_is_not_a_row_is_skipped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    write(path, [(0, {"loss": 1.0})]).close()
    with open(path, "ab") as file:
        file.write(b"what,is,this\n\0\0\0\n2,3.0,4.0\n")
    read = read_rows(path)
    assert ([row.step for row in read.rows], read.damaged) == ([0, 2], 2)


def test_threads_lose_no_row_while_the_header_widens(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    file = MetricsFile(path)

    def work(worker: int) -> None:
        for step in range(300):
            file.append(step, (f"m{worker}.{step // 100}",), [float(step)])

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = list(iterate_rows(path))
    assert len(rows) == 1200
    for worker in range(4):
        mine = [r.step for r in rows if next(iter(r.values)).startswith(f"m{worker}.")]
        assert mine == list(range(300))


def test_a_rewind_leaves_a_damaged_line_where_it_is(tmp_path: Path) -> None:
    path, aside = tmp_path / "metrics.csv", tmp_path / "aside.csv"
    write(path, [(step, {"loss": 1.0}) for step in range(4)]).close()
    body = path.read_bytes()
    damaged = body.index(b"\n2,") + 1
    path.write_bytes(body[:damaged] + bytes(6) + body[damaged + 6 :])
    MetricsFile(path).rewind(Span(0), aside)
    assert [row.step for row in iterate_rows(path)] == [0]
    assert [row.step for row in iterate_rows(aside)] == [1, 3]
    assert bytes(6) in path.read_bytes() and read_rows(path).damaged == 1


def at_the_rename(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """While the first wider file is renamed, its process gets a signal."""
    rename = os.rename

    def rename_and_signal(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "rename", rename)
        os.kill(os.getpid(), number)
        time.sleep(0.05)
        rename(source, target)

    monkeypatch.setattr(os, "rename", rename_and_signal)


@pytest.mark.parametrize("survives", [True, False])
def test_rows_survive_a_ctrl_c_while_the_header_widens(
    survives: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ctrl_c: None
) -> None:
    path = tmp_path / "metrics.csv"
    file = write(path, [(0, {"loss": 1.0})])
    if not survives:
        monkeypatch.setattr(metrics, "undisturbed", lambda work: work())
    dup2, descriptor = os.dup2, file._wide.descriptor

    def interrupted_dup2(*arguments: int, inheritable: bool) -> None:
        # Between the rename and what follows it: the file of the old descriptor has no name.
        os.kill(os.getpid(), signal.SIGINT)
        dup2(*arguments, inheritable=inheritable)

    monkeypatch.setattr(os, "dup2", interrupted_dup2)
    with pytest.raises(KeyboardInterrupt):
        file.append(1, ("new",), [1.0])
    monkeypatch.setattr(os, "dup2", dup2)
    file.append(2, ("loss",), [2.0])
    file.append(3, ("loss", "newer"), [3.0, 4.0])
    assert file._wide.descriptor == descriptor
    assert ([row.step for row in iterate_rows(path)] == [0, 2, 3]) is survives


@pytest.mark.parametrize("survives", [True, False])
def test_a_signal_handler_that_logs_while_the_header_widens_loses_no_row(
    survives: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.csv"
    file = write(path, [(0, {"loss": 1.0})])
    if not survives:
        monkeypatch.setattr(metrics, "undisturbed", lambda work: work())
    at_the_rename(monkeypatch, signal.SIGUSR2)

    def on_signal(*_: object) -> None:
        file.append(1, ("loss",), [2.0])
        file.append(2, ("other",), [3.0])

    former = signal.signal(signal.SIGUSR2, on_signal)
    try:
        file.append(3, ("new",), [1.0])
    finally:
        signal.signal(signal.SIGUSR2, former)
    steps = [row.step for row in iterate_rows(path)]
    assert (sorted(steps) == [0, 1, 2, 3]) is survives


def test_a_signal_handler_may_log_a_new_name_in_the_middle_of_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "metrics.csv", [(0, {"loss": 1.0})])
    os_write = os.write

    def write_and_log(descriptor: int, line: bytes) -> int:
        monkeypatch.setattr(os, "write", os_write)
        file.append(1, ("new",), [1.0])
        return os_write(descriptor, line)

    monkeypatch.setattr(os, "write", write_and_log)
    file.append(2, ("loss",), [2.0])
    assert [row.step for row in iterate_rows(file.path)] == [0, 1, 2]


CRASH = """
import os, sys
from pathlib import Path
from mlflow_track.record.metrics import MetricsFile
file = MetricsFile(Path("metrics.csv"))
if sys.argv[1] == "buffered":
    import io
    stream = open("metrics.csv", "ab")
    os.write = lambda descriptor, line: stream.write(line)
for step in range(5000):
    file.append(step, ("loss",), [float(step)])
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize(("mode", "survives"), [("as it is", True), ("buffered", False)])
def test_rows_survive_sigkill_and_buffered_ones_would_not(
    mode: str,
    survives: bool,
    run_script: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    assert run_script(CRASH, mode).returncode == -9
    rows = [row.step for row in iterate_rows(tmp_path / "metrics.csv")]
    assert (rows == list(range(5000))) is survives


def test_a_fork_does_not_double_rows(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    file = write(path, [(0, {"loss": 1.0})])
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    file.append(1, ("loss",), [1.0])
    assert [row.step for row in iterate_rows(path)] == [0, 1]
