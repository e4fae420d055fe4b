"""Images, texts and histograms of steps: what is written, refused, waited for and rewound."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

import mlflow_track as mt
from mlflow_track.media import log, values
from mlflow_track.media.histograms import counted
from mlflow_track.record import files, layout
from mlflow_track.record.media.index import file_of, read_media

Script = Callable[..., subprocess.CompletedProcess[str]]
RED = np.zeros((2, 5, 3), np.uint8)
RED[..., 0] = 255


def listed(path: Path) -> list[tuple[str, str, int]]:
    return [item.identity for item in read_media(path)]


def test_media_of_steps_are_files_and_an_index() -> None:
    figure = SimpleNamespace(savefig=lambda buffer, **_: buffer.write(b"drawn"))
    with mt.start_run() as run:
        paths = [
            run.log_image(RED, "samples/red", step=3),
            run.log_image(RED, "samples/red.png", step=12),
            run.log_figure(figure, "figure", step=0),
            run.log_text("hé", "sample", step=3),
            run.log_text("# hé", "notes.md", step=2**40),
            run.log_histogram("grad", [1, 2, 2], step=3, bins=2),
        ]
    names = [path.relative_to(run.path / "artifacts").as_posix() for path in paths]
    assert names == [
        *("samples/red/step-000000003.png", "samples/red/step-000000012.png"),
        *("figure/step-000000000.png", "sample/step-000000003.txt"),
        *(f"notes/step-{2**40}.md", "grad/step-000000003.json"),
    ]
    items = read_media(run.path)
    assert [item.identity for item in items] == [
        *(("image", "samples/red", 3), ("image", "samples/red", 12), ("image", "figure", 0)),
        *(("text", "sample", 3), ("text", "notes", 2**40), ("histogram", "grad", 3)),
    ]
    assert [file_of(run.path, item) for item in items] == paths
    assert all(abs(item.time - time.time()) < 100 for item in items)
    assert (np.asarray(Image.open(paths[0])) == RED).all()
    assert paths[2].read_bytes() == b"drawn"
    assert [path.read_text(encoding="utf-8") for path in paths[3:5]] == ["hé", "# hé"]
    assert json.loads(paths[5].read_text()) == {
        **{"edges": [1.0, 1.5, 2.0], "counts": [1, 2]},
        **{"nan": 0, "inf": 0, "-inf": 0},
    }


@pytest.mark.parametrize(
    "image",
    [
        RED,
        RED.astype(np.int64),
        RED / 255,
        (RED / 255).astype(np.float16),
        RED > 0,
        np.asfortranarray(RED),
        RED.transpose(2, 0, 1),
        torch.from_numpy(RED),
        torch.from_numpy(RED).permute(2, 0, 1),
        torch.tensor(RED / 255, dtype=torch.bfloat16, requires_grad=True),
        torch.from_numpy(RED > 0),
        torch.complex(torch.zeros(RED.shape), torch.tensor(RED / -255).float()).conj().imag,
        RED.tolist(),
        Image.fromarray(RED),
        Image.fromarray(RED).convert("RGBA"),
        Image.fromarray(RED).convert("P"),
    ],
)
def test_log_image_of_a_step_copies_what_it_is_given(image: Any) -> None:
    with mt.start_run() as run:
        release = hold(run)
        path = run.log_image(image, "a", step=0)
        if isinstance(image, np.ndarray):
            kept = image.copy()
            image[:] = 0
        elif isinstance(image, torch.Tensor):
            kept = image.detach().clone()
            image.data.zero_()
        release()
    if isinstance(image, np.ndarray):
        image[:] = kept
    elif isinstance(image, torch.Tensor):
        image.data.copy_(kept)
    found = np.asarray(Image.open(path).convert("RGB"))
    assert (found == RED).all()


def hold(run: mt.Run) -> Callable[[], None]:
    """Let the thread that encodes wait until the result is called."""
    may_go = threading.Event()
    run._attempt.media.log(
        "text", "hold", 0, lambda name: values.Encodable(1, lambda: b"x" * may_go.wait(60))
    )
    return may_go.set


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda run: run.log_image(RED, "a", step=-1), "step must be"),
        (lambda run: run.log_image(RED, "a", step=1.5), "step must be an integer"),
        (lambda run: run.log_image(RED, "../a", step=1), "artifact's name must be"),
        (lambda run: run.log_image(RED, 7, step=1), "artifact's name must be a string"),
        (lambda run: run.log_image(RED, "a.jpg", step=1), r"ending in .png, .* got 'a.jpg'"),
        (lambda run: run.log_image(RED, "a\udc80", step=1), "characters of text"),
        (lambda run: run.log_image(RED, "", step=1), "artifact's name must be"),
        (lambda run: run.log_image(RED, ".", step=1), "characters of text, got '.'"),
        (lambda run: run.log_image(RED, "/a", step=1), "artifact's name must be"),
        (lambda run: run.log_image(RED, "a/" * 260 + "b", step=1), "1 to 500 characters"),
        (lambda run: run.log_image(np.zeros((2, 2, 5)), "a", step=1), r"shape \(2, 2, 5\)"),
        (lambda run: run.log_image(np.zeros((0, 2)), "a", step=1), r"shape \(0, 2\)"),
        (lambda run: run.log_image(RED * 1.0, "a", step=1), "from 0 to 1, got 0.0 to 255.0"),
        (lambda run: run.log_image(np.full((2, 2), np.nan), "a", step=1), "got nan to nan"),
        (lambda run: run.log_image(RED.astype(complex), "a", step=1), "ndarray of complex128"),
        (lambda run: run.log_image([[1], [2, 3]], "a", step=1), "array or tensor of numbers"),
        (lambda run: run.log_image("a.png", "a", step=1), "'a' must be a PIL image, or an array"),
        (lambda run: run.log_image(Image.new("F", (2, 2)), "a", step=1), "mode .* got F"),
        (lambda run: run.log_image(Image.new("L", (0, 2)), "a", step=1), r"size \(0, 2\)"),
        (lambda run: run.log_text(7, "a", step=1), "text for 'a' must be a string, got int"),
        (lambda run: run.log_figure(7, "a", step=1), "must be a matplotlib Figure, got int"),
        (lambda run: run.log_histogram([1], "a", step=1), r"got \[1\].* are name, values\)"),
        (lambda run: run.log_histogram("a", [], step=1), r"one number or more, got the shape"),
        (lambda run: run.log_histogram("a", ["x"], step=1), "must be numbers"),
        (lambda run: run.log_histogram("a", [1], step=1, bins=0), "bins must be .* 1 to 4096"),
        (lambda run: run.log_histogram("a", [1], step=1, bins=2.5), "bins must be an integer"),
        (lambda run: run.log_histogram("a", [1], step=1, bins=True), "bins must be"),
    ],
)
def test_what_is_wrong_is_refused_at_the_call_by_every_backend(
    call: Callable[[mt.Run], Any], message: str
) -> None:
    said = set()
    for backend in ("local", "off"):
        with mt.start_run(backend=backend) as run:
            with pytest.raises((TypeError, ValueError), match=message) as error:
                call(run)
            if backend == "local":
                assert listed(run.path) == []
        said.add((error.type, str(error.value).replace(str(run.path), "")))
    assert len(said) == 1
    with pytest.raises(RuntimeError, match="has ended"):
        call(run)


def test_off_writes_nothing() -> None:
    with mt.start_run(backend="off") as run:
        run.log_image(RED, "a", step=0)
    assert os.listdir() == []


def test_a_step_that_is_logged_twice_keeps_both_files_and_counts_the_later() -> None:
    with mt.start_run() as run:
        release = hold(run)
        paths = [run.log_text(text, "a", step=5) for text in ("one", "two")]
        release()
    assert [path.name for path in paths] == ["step-000000005.txt", "step-000000005-2.txt"]
    assert [path.read_text() for path in paths] == ["one", "two"]
    (item,) = [item for item in read_media(run.path) if item.key == "a"]
    assert file_of(run.path, item) == paths[1]


# --- histograms ---

LARGEST = np.finfo("float64").max


@given(
    arrays.arrays(st.sampled_from(["float64", "float32", "int64", "bool"]), st.integers(1, 30)),
    st.integers(1, 100),
)
def test_a_histogram_counts_every_value_once(numbers: np.ndarray, bins: int) -> None:
    found = counted(numbers, bins)
    edges, numbers = np.array(found["edges"]), numbers.astype("float64")
    finite = numbers[np.isfinite(numbers)]
    assert len(found["counts"]) == bins and len(edges) == bins + 1
    assert sum(found["counts"]) == finite.size
    assert found["nan"] + found["inf"] + found["-inf"] == numbers.size - finite.size
    assert np.isfinite(edges).all() and (edges[1:] >= edges[:-1]).all()
    if finite.size:
        assert edges[0] <= finite.min() and finite.max() <= edges[-1]


@pytest.mark.parametrize(
    "numbers",
    [
        *([5.0], [0.0], [LARGEST, -LARGEST], [LARGEST], [0.0, 5e-324], [1.0, 1 + 2.0**-52]),
        *([1e300], [np.nan], [np.inf, -np.inf, np.nan, 3.0], [2**63 - 1.0]),
    ],
)
def test_a_histogram_of_an_extreme_range_is_one(numbers: list[float]) -> None:
    test_a_histogram_counts_every_value_once.hypothesis.inner_test(np.array(numbers), 64)


def test_a_histogram_is_that_of_numpy() -> None:
    numbers = np.random.default_rng(0).standard_normal(1000)
    found, (counts, edges) = counted(numbers.reshape(10, 100), 64), np.histogram(numbers, 64)
    assert found["counts"] == counts.tolist() and found["edges"] == edges.tolist()


# --- beside the loop ---


def test_a_full_queue_waits_at_the_call_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(log, "_MOST_WAITING", 3)
    with mt.start_run() as run:
        release = hold(run)
        logged: list[int] = []

        def loop() -> None:
            for step in range(20):
                run.log_text("x", "a", step=step)
                logged.append(step)

        thread = threading.Thread(target=loop)
        thread.start()
        time.sleep(0.2)
        assert len(logged) == 2 and len(run._attempt.media._queue) == 3
        release()
        thread.join()
    assert [step for _, key, step in listed(run.path) if key == "a"] == list(range(20))
    assert capsys.readouterr().err.count("the calls wait") == 1


def test_bytes_that_wait_are_bounded_but_one_item_may_be_larger(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(log, "_MOST_WAITING_BYTES", 20)
    with mt.start_run() as run:
        run.log_image(np.zeros((30, 30)), "large", step=0)
        release = hold(run)
        assert run._attempt.media._waiting_bytes <= 20
        release()
        for step in range(5):
            run.log_text("x" * 15, "a", step=step)
    assert len(listed(run.path)) == 7


def test_finish_waits_for_what_is_not_written_yet() -> None:
    with mt.start_run() as run:
        release = hold(run)
        for step in range(50):
            run.log_image(RED, "a", step=step)
        threading.Timer(0.1, release).start()
    assert len(listed(run.path)) == 51
    assert not [each for each in threading.enumerate() if "media" in each.name]


def test_threads_may_log_at_once() -> None:
    with mt.start_run() as run:

        def loop(key: str) -> None:
            for step in range(25):
                run.log_text(f"{key}{step}", key, step=step)

        threads = [threading.Thread(target=loop, args=(key,)) for key in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    items = read_media(run.path)
    assert [item.number for item in items] == list(range(100))
    for item in items:
        assert (run.path / "artifacts" / item.file).read_text() == f"{item.key}{item.step}"


def test_a_full_disk_is_a_warning_and_the_rest_is_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    is_full = threading.Event()

    def replace_file(path: Path, content: bytes) -> None:
        if is_full.is_set():
            raise OSError(28, "No space left on device", str(path))
        files.replace_file(path, content)

    monkeypatch.setattr(log, "replace_file", replace_file)
    with mt.start_run() as run:
        run.log_text("x", "a", step=0)
        run._attempt.media.drain()
        is_full.set()
        for step in (1, 2, 3):
            run.log_text("x", "a", step=step)
        run._attempt.media.drain()
        is_full.clear()
        run.log_text("x", "a", step=4)
    assert [step for *_, step in listed(run.path)] == [0, 4]
    said = capsys.readouterr().err
    assert said.count("text 'a' of step 1 is not kept: No space left on device") == 1
    assert "WARNING: 3 media items could not be written" in said
    assert mt.load_run(run.path).status == "FINISHED"


def test_an_index_with_a_full_disk_leaves_no_file(
    small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (700, 700, 3), np.uint8)
    with mt.start_run(directory=small_disk) as run:
        for step in range(10):
            run.log_image(noise, "a", step=step)
        run.log_metrics({"loss": 1.0}, step=0)
    kept = listed(run.path)
    assert 1 <= len(kept) < 10
    assert "is not kept: No space left on device" in capsys.readouterr().err
    names = {path.name for path in (run.path / "artifacts/a").iterdir()}
    assert names == {f"step-{step:09d}.png" for *_, step in kept}


def test_an_index_that_cannot_be_opened_is_a_warning(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with mt.start_run() as run:
        run.log_text("x", "a", step=0)
    (run.path / "media.jsonl").unlink()
    (run.path / "media.jsonl").symlink_to("/etc/hostname")
    with mt.start_run(resume=run.id) as again:
        again.log_text("x", "a", step=1)
        again.log_metrics({"loss": 1.0}, step=0)
    assert again.id == run.id and "is a link" in capsys.readouterr().err
    assert "not kept" in (run.path / "training.log").read_text()


def test_a_text_that_a_child_logs_is_refused_and_the_parents_are_kept(run_script: Script) -> None:
    done = run_script(
        """
        import os, mlflow_track as mt
        with mt.start_run(directory="runs") as run:
            for step in range(20):
                run.log_text("x", "a", step=step)
            if not (child := os.fork()):
                try:
                    run.log_text("x", "a", step=99)
                except RuntimeError as error:
                    os._exit(7 if "forked" in str(error) else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        """
    )
    assert done.returncode == 0, done.stderr
    (run,) = mt.load_runs("runs")
    assert [step for *_, step in listed(run.path)] == list(range(20))


# --- resumes ---

LOOP = """
import os, sys, torch, numpy, mlflow_track as mt
crash_at, signal_at = int(sys.argv[1]), int(sys.argv[2])
state = {"x": torch.zeros(3)}
with mt.start_run(run_name="r", resume="auto", directory="runs") as run:
    checkpoints = run.checkpoints(save=mt.EverySteps(4))
    for step in range(checkpoints.restore(state), 20):
        state["x"] += 1
        run.log_text(f"{step} {run._attempt.record.attempt}", "text", step=step)
        run.log_metrics({"loss": float(step)}, step=step)
        run.log_text(f"{step * 100}", "tokens", step=step * 100)
        checkpoints.step(step, state)
        run.log_text("late", "late", step=step)
        if step == crash_at:
            run._attempt.media.drain()
            os.kill(os.getpid(), 9)
        if step == signal_at:
            os.kill(os.getpid(), 15)
        if run.should_stop:
            break
"""


def texts_of(path: Path, key: str) -> dict[int, str]:
    items = [item for item in read_media(path) if item.key == key]
    return {item.step: (path / "artifacts" / item.file).read_text() for item in items}


def test_a_resume_moves_what_comes_again_aside_and_a_kill_loses_nothing_that_was_written(
    run_script: Script,
) -> None:
    for arguments in (("10", "-1"), ("-1", "14"), ("-1", "-1")):
        done = run_script(LOOP, *arguments)
        assert done.returncode == (-9 if arguments[0] == "10" else 0), done.stderr
    (run,) = mt.load_runs("runs")
    attempts = [1] * 9 + [2] * 7 + [3] * 4
    assert texts_of(run.path, "text") == {s: f"{s} {a}" for s, a in enumerate(attempts)}
    # Logged after the save of their step, and over another axis: none is missing, none twice.
    assert sorted(texts_of(run.path, "late")) == list(range(20))
    assert sorted(texts_of(run.path, "tokens")) == [100 * step for step in range(20)]
    names = sorted(path.name for path in (run.path / "artifacts/text").iterdir())
    assert names == [f"step-{step:09d}.txt" for step in range(20)]
    aside = run.path / "media.rewound-2/text"
    assert [path.read_text() for path in sorted(aside.iterdir())] == ["9 1", "10 1"]
    assert "media items after step 8 aside" in (run.path / "training.log").read_text()


def test_a_file_that_a_kill_has_left_unlisted_is_replaced_by_the_resumed_run() -> None:
    with mt.start_run(run_name="r") as run:
        kept, torn = [run.log_text("old", "sample", step=step) for step in (0, 1)]
        run.finish("KILLED")
    index = run.path / layout.MEDIA
    index.write_bytes(index.read_bytes().splitlines(keepends=True)[0])
    (torn.parent / "step-000000002.txt").mkdir()
    with mt.start_run(resume=run.id) as run:
        paths = [run.log_text(f"new {step}", "sample", step=step) for step in range(3)]
        run._attempt.media.drain()
        paths.append(run.log_text("newer", "sample", step=1))
    names = ["step-000000000-2", "step-000000001", "step-000000002-2", "step-000000001-2"]
    assert [path.stem for path in paths] == names
    assert kept.read_text() == "old" and torn.read_text() == "new 1"
    assert [file_of(run.path, item) for item in read_media(run.path)] == [
        paths[i] for i in (0, 2, 3)
    ]


def test_a_run_without_checkpoints_that_starts_again_moves_its_media_aside() -> None:
    run_id = "never"
    for attempt in (1, 2):
        with mt.start_run(resume=run_id) as run:
            run_id = run.id
            for step in range(3):
                run.log_metrics({"loss": 1.0}, step=step)
                run.log_text(f"{attempt}", "a", step=step)
    assert texts_of(run.path, "a") == dict.fromkeys(range(3), "2")
    assert len(list((run.path / "artifacts/a").iterdir())) == 3
    assert len(list((run.path / "media.rewound-2/a").iterdir())) == 3


def test_a_rewind_of_media_alone_stands_in_run_json() -> None:
    state = {"x": torch.zeros(3)}
    run_id = "never"
    for _ in (1, 2):
        with mt.start_run(resume=run_id) as run:
            run_id = run.id
            checkpoints = run.checkpoints(save=mt.AtSteps([1]))
            first = checkpoints.restore(state)
            run.log_metrics({"loss": 1.0}, step=first)
            if not first:
                checkpoints.save(1, state)
                run.log_text("x", "a", step=5)
    rewinds = json.loads((run.path / "run.json").read_text())["rewinds"]
    assert [(each["step"], each.get("rows", 0)) for each in rewinds] == [(1, 0)]
    assert listed(run.path) == [] and mt.load_run(run.path).status == "FINISHED"


# --- a device ---


class OnDevice:
    """What is asked of a tensor on a CUDA device."""

    is_cuda, is_sparse = True, False

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor, self.dtype, self.shape = tensor, tensor.dtype, tensor.shape

    def detach(self) -> OnDevice:
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tensor, name)


def test_a_tensor_of_a_device_is_waited_for_beside_the_loop(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    has_arrived = threading.Event()

    def wait_for(tensor: OnDevice) -> torch.Tensor:
        assert has_arrived.wait(60)
        if tensor.shape == (3, 3):
            raise RuntimeError("CUDA error")
        return tensor.tensor

    monkeypatch.setattr(
        values, "CudaCopy", lambda tensor: SimpleNamespace(wait_for_tensor=lambda: wait_for(tensor))
    )
    with mt.start_run() as run:
        with pytest.raises(ValueError, match=r"shape \(2, 5, 2\)"):
            run.log_image(OnDevice(torch.zeros(2, 5, 2)), "a", step=0)
        path = run.log_image(OnDevice(torch.from_numpy(RED)), "a", step=0)
        run.log_histogram("h", OnDevice(torch.zeros(4)), step=0)
        run.log_image(OnDevice(torch.full((2, 2), 7.0)), "wrong", step=0)
        run.log_image(OnDevice(torch.zeros(3, 3)), "failed", step=0)
        assert listed(run.path) == []
        has_arrived.set()
    assert (np.asarray(Image.open(path)) == RED).all()
    assert listed(run.path) == [("image", "a", 0), ("histogram", "h", 0)]
    said = capsys.readouterr().err
    assert "'wrong' of step 0 is not kept" in said and "from 0 to 1, got 7.0 to 7.0" in said
    assert "2 media items could not be written" in said
