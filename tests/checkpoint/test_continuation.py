"""What a resume compares beside the state, at the restore and at the first steps."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import mlflow_track as mt
from mlflow_track.checkpoint.exact import fingerprint, kernels
from mlflow_track.checkpoint.exact.changed_params import changed_params, is_harmless
from mlflow_track.checkpoint.exact.fingerprint import Fingerprints
from mlflow_track.checkpoint.exact.replaced import Replaced, put_back, replaced_settings


@pytest.fixture
def newer_precision() -> Iterator[None]:
    """torch's older setting cannot be read while the newer one is set."""
    place: Any = torch.backends
    before = place.mkldnn.matmul.fp32_precision
    place.mkldnn.matmul.fp32_precision = "bf16"
    place.cuda.matmul.fp32_precision = "tf32"
    yield
    place.mkldnn.matmul.fp32_precision = before
    place.cuda.matmul.fp32_precision = "none"


def restored(save: Callable[[], dict[str, Any]], now: Callable[[], dict[str, Any]]) -> mt.Run:
    with mt.start_run() as run:
        run.checkpoints().save(0, save())
    with mt.start_run(resume=run.id) as again:
        again.checkpoints().restore(now())
    return again


def log_of(run: mt.Run) -> str:
    return (run.path / "training.log").read_text()


def linear() -> dict[str, Any]:
    return {"model": nn.Linear(2, 1)}


def test_newer_precision_neither_stops_a_save_nor_a_restore(newer_precision: None) -> None:
    assert kernels.kernels("cuda")["cuda.matmul.fp32_precision"] == "tf32"
    assert "exact: yes" in log_of(restored(linear, linear))


def test_newer_precision_that_differs_is_named(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whatever ran before in this process, or the environment, may have set it.
    place: Any = torch.backends
    monkeypatch.setattr(place.mkldnn.matmul, "fp32_precision", "none")

    def now() -> dict[str, Any]:
        request.getfixturevalue("newer_precision")
        return linear()

    assert "exact: no (mkldnn.matmul.fp32_precision none -> bf16)" in log_of(restored(linear, now))


def test_setting_that_cannot_be_read_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> bool:
        raise RuntimeError("refused")

    monkeypatch.setitem(kernels._SWITCHES[""], "mkldnn", refuse)
    assert "mkldnn" not in kernels.kernels("cpu")
    assert "exact: yes" in log_of(restored(linear, linear))


def test_settings_of_cuda_do_not_matter_on_a_cpu() -> None:
    assert not [name for name in kernels.kernels("cpu (AVX2)") if name.startswith("cud")]


def test_data_that_came_back_is_compared_with_the_checkpoint_and_not_with_the_first() -> None:
    def attempt(sha256: str, step: int, **options: Any) -> mt.Run:
        with mt.start_run(**options) as run:
            run.log_input("text", sha256=sha256, size_bytes=1)
            checkpoints = run.checkpoints()
            checkpoints.restore({"n": 0})
            checkpoints.save(step, {"n": 0})
            run.finish("FAILED")
        return run

    run = attempt("aa", 0)
    attempt("bb", 1, resume=run.id)
    attempt("aa", 2, resume=run.id)
    attempt("aa", 3, resume=run.id)
    verdicts = [line.partition("exact: ")[2] for line in log_of(run).splitlines()]
    assert [v for v in verdicts if v] == [
        "no (data.text 'aa' -> 'bb')",
        "no (data.text 'bb' -> 'aa')",
        "yes",
    ]


def test_flags_that_are_other_only_at_steps_in_between_are_settled_by_the_next_save() -> None:
    model = nn.Dropout()
    with mt.start_run() as run:
        run.checkpoints(save=mt.EverySteps(2)).step(2, {"model": model})
    with mt.start_run(resume=run.id) as again:
        checkpoints = again.checkpoints(save=mt.EverySteps(2))
        checkpoints.restore({"model": model})
        checkpoints.step(3, {"model": model.eval()})
        checkpoints.step(4, {"model": model.train()})
    said = [line.partition("exact: ")[2] for line in log_of(run).splitlines() if "exact: " in line]
    assert said == ["yes", "unknown: training of model True -> False so far", "yes"]
    (restore,) = json.loads((run.path / "run.json").read_text())["restores"]
    assert restore["is_exact"]


def verdicts_of_a_loop_that_evaluates(*, trains_again: bool, breaks: int) -> list[str]:
    """Model in eval mode from each evaluation, at every fifth step, to the top of the next step."""

    def loop(end: int, resume: str | None = None, is_broken: bool = False) -> mt.Run:
        model = nn.Dropout()
        with mt.start_run(resume=resume) as run:
            checkpoints = run.checkpoints(save=mt.AtSteps([10, 13, 15]), keep=mt.Keep(last=9))
            for step in range(checkpoints.restore({"model": model}), end):
                model.train(not is_broken)
                if step % 5 == 0:
                    model.eval()
                checkpoints.step(step, {"model": model})
        return run

    run = loop(breaks)
    loop(19, run.id, is_broken=not trains_again)
    return [line.partition("exact: ")[2] for line in log_of(run).splitlines() if "exact: " in line]


def test_a_loop_that_leaves_the_model_in_eval_mode_until_the_next_step_is_exact() -> None:
    so_far = "unknown: training of model False -> True so far"
    found = verdicts_of_a_loop_that_evaluates(trains_again=True, breaks=12)
    # The save of step 13 is of another kind of step than that of 10; step 15 is of the same.
    assert found == ["yes", so_far, "yes"]
    assert verdicts_of_a_loop_that_evaluates(trains_again=True, breaks=14) == ["yes"]


def test_a_loop_that_never_trains_again_is_not_exact_after_any_step() -> None:
    found = verdicts_of_a_loop_that_evaluates(trains_again=False, breaks=14)
    assert found == ["yes", "unknown: training of model True -> False so far"]


def test_flags_are_compared_where_the_checkpoint_was_made() -> None:
    model = nn.Dropout()
    with mt.start_run() as run:
        run.checkpoints().save(0, {"model": model.eval()})
    with mt.start_run(resume=run.id) as again:
        checkpoints = again.checkpoints()
        checkpoints.restore({"model": model})
        checkpoints.step(1, {"model": model.train()})
        assert log_of(run).count("exact: ") == 1
        checkpoints.save(1, {"model": model})
    assert "at step 1, continued from step 0: exact: no (training of model False -> True)" in (
        log_of(run)
    )
    (restore,) = json.loads((run.path / "run.json").read_text())["restores"]
    assert restore["differences"] == ["training of model False -> True"]


def test_checkpoint_without_facts_is_compared_by_what_it_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def state(rate: float) -> dict[str, Any]:
        model = nn.Linear(2, 1)
        return {"model": model, "opt": torch.optim.SGD(model.parameters(), lr=rate)}

    with monkeypatch.context() as patch:
        patch.setattr(fingerprint, "packed", lambda facts: "")
        with mt.start_run() as run:
            run.checkpoints().save(0, state(0.1))
    with mt.start_run(resume=run.id) as again:
        again.checkpoints().restore(state(0.2))
    words = "exact: yes; replaced by the checkpoint: opt.param_groups.0.lr: 0.1 of the checkpoint"
    assert words in log_of(run)


@pytest.mark.parametrize("text", ["", "?", "AAAA", "eJwDAAAAAAE=", "eJyrVgIAAHkA6A=="])
def test_fingerprint_that_cannot_be_read_is_none(text: str) -> None:
    assert fingerprint.unpacked(text) is None


def test_fingerprint_comes_back_as_it_was() -> None:
    facts = Fingerprints().take({**linear(), "other": [nn.Dropout(0.1)]}, "step")
    assert fingerprint.unpacked(fingerprint.packed(facts)) == facts
    assert facts.static["other.0"] == "Dropout(p=0.1, inplace=False)"


def test_fingerprints_hold_no_model_alive() -> None:
    import gc
    import weakref

    fingerprints, state = Fingerprints(), linear()
    state["opt"] = torch.optim.SGD(state["model"].parameters(), lr=0.1)
    fingerprints.take(state)
    dead = weakref.ref(state["model"])
    state.clear()
    gc.collect()
    assert dead() is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((name, True) for name in ("log_interval", "logEvery", "save.every_n_steps", "notes")),
        *((name, True) for name in ("print_freq", "checkpoint_dir")),
        *(
            (name, False)
            for name in ("lr", "steps", "eval_interval", "log_softmax", "blog", "seed")
        ),
    ],
)
def test_param_is_harmless_only_by_whole_words(name: str, expected: bool) -> None:
    assert is_harmless(name) == expected


RATE = Replaced("opt.param_groups.0.lr", 0.1, 0.2, 0.05)


@pytest.mark.parametrize(
    ("then", "now", "is_explained"),
    [
        ({"lr": 0.1}, {"lr": 0.2}, True),
        ({"optimizer.learning_rate": 0.1}, {"optimizer.learning_rate": 0.2}, True),
        ({"lr": 0.1}, {"lr": 0.3}, False),
        ({"label_smoothing": 0.1}, {"label_smoothing": 0.2}, False),
    ],
)
def test_param_is_a_replaced_setting_by_name_and_both_values(
    then: dict[str, Any], now: dict[str, Any], is_explained: bool
) -> None:
    found = changed_params(then, now, allow_changed=(), replaced=[RATE])
    assert (len(found.replaced), len(found.unknown)) == (is_explained, not is_explained)


def test_settings_that_a_schedule_moves_are_not_changes_of_the_code() -> None:
    code = {"opt.param_groups.0.lr": 0.1, "opt.param_groups.0.initial_lr": 0.1}
    used = {"opt.param_groups.0.lr": 0.03, "opt.param_groups.0.initial_lr": 0.1}
    assert replaced_settings(code, code, used) == replaced_settings(None, code, used) == []
    other = {**code, "opt.param_groups.0.lr": 0.2}
    assert [str(item) for item in replaced_settings(code, other, used)] == [
        "opt.param_groups.0.lr: 0.03 of the checkpoint is used, not 0.2"
    ]


def test_setting_that_is_put_back_is_named() -> None:
    assert put_back([RATE], {RATE.path: 0.05}) == []
    words = "opt.param_groups.0.lr 0.05 -> 0.2, set after the restore"
    assert put_back([RATE], {RATE.path: 0.2}) == [words]


@pytest.mark.parametrize("patterns", [[3], 3, "lr", [None]])
def test_patterns_of_params_are_checked_at_the_call(patterns: Any) -> None:
    with mt.start_run() as run:
        with pytest.raises(TypeError, match="require_same must be a list of names or patterns"):
            run.checkpoints(require_same=patterns)
