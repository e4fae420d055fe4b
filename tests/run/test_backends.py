"""Every backend is the same program: what one refuses, all refuse, with the same words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import mlflow_track as mt
from mlflow_track.artifacts import Artifacts

pytestmark = pytest.mark.xdist_group("server")

Call = Callable[[mt.Run], Any]


def figure() -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(1, 1))


def checkpoints(run: mt.Run, **options: Any) -> Any:
    return run.checkpoints(**options)


# For each verb of a run and of its checkpoints: calls that are right, and calls that are not.
CALLS: dict[str, Call] = {
    "log_metrics": lambda r: r.log_metrics({"a": 1, "b": float("nan")}, step=0),
    "log_metrics nothing": lambda r: r.log_metrics({}, step=0),
    "log_metrics tensor": lambda r: r.log_metrics({"t": torch.tensor(1.5)}, step=1),
    "log_metrics text": lambda r: r.log_metrics({"a": "x"}, step=0),  # type: ignore[dict-item]
    "log_metrics vector": lambda r: r.log_metrics({"a": torch.ones(2)}, step=0),  # type: ignore
    "log_metrics negative step": lambda r: r.log_metrics({"a": 1.0}, step=-1),
    "log_metrics reserved": lambda r: r.log_metrics({"time": 1.0}, step=0),
    "log_metrics no step": lambda r: r.log_metrics({"a": 1.0}),  # type: ignore[call-arg]
    "log_metric": lambda r: r.log_metric("a", 2.0, step=2),
    "log_metric empty name": lambda r: r.log_metric("", 1.0, step=0),
    "log_params": lambda r: r.log_params({"lr": 0.1, "model": {"depth": 3}}),
    "log_params changed": lambda r: r.log_params({"lr": 0.2}),
    "log_params opaque": lambda r: r.log_params({"a": object()}),
    "log_params one name": lambda r: r.log_params({1: "a", "1": "b"}),
    "log_params too large": lambda r: r.log_params({"a": torch.zeros(1001)}),
    "log_params list": lambda r: r.log_params([1]),
    "log_param": lambda r: r.log_param("seed", 1),
    "log_param no name": lambda r: r.log_param("", 1),
    "set_tag": lambda r: r.set_tag("stage", "pretrain"),
    "set_tag empty": lambda r: r.set_tag("", "x"),
    "set_tags": lambda r: r.set_tags({"a": "b"}),
    "set_tags list": lambda r: r.set_tags(["a"]),  # type: ignore[arg-type]
    "define_metric": lambda r: r.define_metric("acc", mode="max"),
    "define_metric wrong mode": lambda r: r.define_metric("acc", mode="up"),
    "define_metric contradicted": lambda r: checkpoints(
        r, save=mt.OnImprovement("acc", "min"), keep=mt.Keep(best=1, metric="acc", mode="max")
    ),
    "Keep unknown direction": lambda r: checkpoints(r, keep=mt.Keep(best=1, metric="zzz")),
    "log_input": lambda r: r.log_input("d", sha256="1", size_bytes=3),
    "log_input wrong kind": lambda r: r.log_input("d", sha256="1", size_bytes="x"),  # type: ignore
    "log_input typo": lambda r: r.log_input("d", sha="1"),  # type: ignore[call-arg]
    "log_artifact": lambda r: r.log_artifact(__file__),
    "log_artifact missing": lambda r: r.log_artifact("no/such/file"),
    "log_artifact outside": lambda r: r.log_artifact(__file__, "../x"),
    "log_artifacts": lambda r: r.log_artifacts(Path(__file__).parent / "nothing"),
    "log_artifacts file": lambda r: r.log_artifacts(__file__),
    "log_text": lambda r: r.log_text("x", "a/b.txt"),
    "log_text wrong kind": lambda r: r.log_text(3, "a.txt"),  # type: ignore[arg-type]
    "log_text outside": lambda r: r.log_text("a", "../a.txt"),
    "log_dict": lambda r: r.log_dict({"a": [1]}, "a.json"),
    "log_dict opaque": lambda r: r.log_dict(object(), "a.json"),
    "log_figure": lambda r: r.log_figure(figure(), "a.png"),
    "log_figure wrong kind": lambda r: r.log_figure(3, "a.png"),
    "log_figure wrong ending": lambda r: r.log_figure(figure(), "a.xyz"),
    "log_image": lambda r: r.log_image(torch.zeros(3, 4, 5), "a.png"),
    "log_image wrong kind": lambda r: r.log_image("text", "a.png"),
    "log_image wrong shape": lambda r: r.log_image(torch.zeros(2, 4, 5), "a.png"),
    "log_image wrong numbers": lambda r: r.log_image(torch.full((4, 5), 2.0), "a.png"),
    "log_image wrong ending": lambda r: r.log_image(torch.zeros(4, 5), "a.jpg"),
    "log_table": lambda r: r.log_table({"a": [1, 2]}, "a.csv"),
    "log_table uneven": lambda r: r.log_table({"a": [1], "b": []}, "a.csv"),
    "log_table wrong ending": lambda r: r.log_table({"a": [1]}, "a.txt"),
    "log_summary": lambda r: r.log_summary({"acc": 0.5, "loss": float("nan"), "note": "a"}),
    "log_summary list": lambda r: r.log_summary([1]),  # type: ignore[arg-type]
    "log_summary no name": lambda r: r.log_summary({"": 1}),
    "log_summary vector": lambda r: r.log_summary({"a": torch.ones(2)}),
    "log_handler": lambda r: type(r.log_handler()).__name__,
    "print": lambda r: r.print("a line", is_shown=False),
    "metrics": lambda r: type(r.metrics()).__name__,
    "_repr_html_": lambda r: type(r._repr_html_()).__name__,
    "should_stop": lambda r: r.should_stop,
    "stop_reason": lambda r: r.stop_reason,
    "finish bad": lambda r: r.finish("BAD"),
    "checkpoints typo": lambda r: checkpoints(r, sav=1),
    "checkpoints wrong save": lambda r: checkpoints(r, save="x"),
    "checkpoints wrong keep": lambda r: checkpoints(r, keep=3),
    "checkpoints wrong stop": lambda r: checkpoints(r, stop="val/loss"),
    "checkpoints wrong max_steps": lambda r: checkpoints(r, max_steps=0),
    "checkpoints wrong require_same": lambda r: checkpoints(r, require_same=[3]),
    "checkpoints wrong upload": lambda r: checkpoints(r, upload="some"),
    "checkpoints best without metric": lambda r: checkpoints(r, upload="best"),
    "restore of no step": lambda r: checkpoints(r).restore({"s": 1}, step=77),
    "load of no step": lambda r: checkpoints(r).load(step=77),
    "report": lambda r: checkpoints(r).report,
    "plan": lambda r: [
        save.step for save in checkpoints(r, save=mt.EverySteps(2), max_steps=9).plan().saves
    ],
    "log_histogram": lambda r: r.log_histogram("h", [1.0, 2.0], step=1),
    "log_histogram of text": lambda r: r.log_histogram("h", "text", step=1),
    "plan opaque": lambda r: checkpoints(r, save=mt.EverySteps(2)).plan({"s": object()}),
    "plan of a string": lambda r: checkpoints(r).plan("state"),
    "put_generators_back": lambda r: checkpoints(r).put_generators_back(),
    "due": lambda r: checkpoints(r, save=mt.EverySteps(2)).due(2),
    "due negative": lambda r: checkpoints(r).due(-1),
    "step": lambda r: checkpoints(r, save=mt.EverySteps(1)).step(1, {"s": 1}),
    "step that is not due": lambda r: checkpoints(r, save=mt.EverySteps(2)).step(1, {"s": 1}),
    "step of a string": lambda r: checkpoints(r).step(0, "state"),
    "step opaque": lambda r: checkpoints(r, save=mt.EverySteps(1)).step(1, {"s": object()}),
    "step negative": lambda r: checkpoints(r).step(-1, {}),
    "step wrong metrics": lambda r: checkpoints(r).step(1, {}, {"a": "x"}),
    "save": lambda r: checkpoints(r).save(3, {"s": 1}).step,
    "save opaque": lambda r: checkpoints(r).save(4, {"s": object()}),
    "save state_dict": lambda r: checkpoints(r).save(4, {"m": torch.nn.Linear(1, 1).state_dict()}),
    "restore list": lambda r: checkpoints(r).restore([1]),
    "wait": lambda r: checkpoints(r).wait(),
    "list": lambda r: type(checkpoints(r).list()).__name__,
    "close": lambda r: checkpoints(r).close(),
}
# What differs with where a run is: these are tried elsewhere.
ELSEWHERE = {"url", "sync_status", "finish", "checkpoints"}


def outcome(call: Call, run: mt.Run) -> str:
    """What a call gave, or how it was refused; where the run lies is its own."""
    try:
        text = f"accepted: {call(run)}"
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
    for own in (str(run.path), run.id):
        text = text.replace(own, "…")
    return text


def outcomes(backend: str) -> dict[str, str]:
    run = mt.start_run(backend=backend, directory=Path(backend))
    found = {name: outcome(call, run) for name, call in CALLS.items()}
    run.finish()
    found["log after finish"] = outcome(CALLS["log_metric"], run)
    found["text after finish"] = outcome(CALLS["log_text"], run)
    return found


@pytest.fixture
def local() -> dict[str, str]:
    return outcomes("local")


def test_off_answers_as_local(local: dict[str, str]) -> None:
    assert outcomes("off") == local
    assert not Path("off").exists()


def test_mlflow_answers_as_local(local: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    # Nobody listens there: what a server does changes no answer.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_TRACK_FINISH_TIMEOUT", "0")
    monkeypatch.setenv("MLFLOW_TRACK_MIRROR_LINGER", "0")
    assert outcomes("mlflow") == local


def test_right_calls_are_accepted_and_wrong_ones_refused(local: dict[str, str]) -> None:
    wrong = {name for name, text in local.items() if not text.startswith("accepted")}
    assert {name for name in CALLS if name not in wrong} >= {
        name for name in CALLS if name in dir(mt.Run) and name != "log_artifacts"
    }
    assert len(wrong) > 30


def test_every_verb_is_tried() -> None:
    verbs = {n for kind in (mt.Run, mt.Checkpoints) for n in dir(kind) if not n.startswith("_")}
    assert verbs - ELSEWHERE <= {name.split()[0] for name in CALLS}


def test_an_answer_that_differs_is_found(
    local: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control: a backend that checks less."""
    monkeypatch.setattr(Artifacts, "write_json", lambda self, content, name: Path(name))
    assert outcomes("off") != local
