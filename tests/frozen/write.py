"""Write the frozen folders: run by hand, by the version whose layout they are; never by a test.

    PYTHONPATH=. python tests/frozen/write.py

It works in /srv/demo, which must not exist, so that no path of the machine gets into the record:
each run is made there by `python train.py NAME`, a copy of this file, through the public interface
alone. What the trainer hands over it also notes beside the record, and that becomes the
`expected-v<layout>.json` that the tests compare with: what was meant, not what a reader said.

Then, by hand so to speak:
- host, user, platform, packages become neutral, and lock files empty;
- "killed" gets a torn last line, as a power loss leaves it;
- runs-v0 is made of the oldest forms that are still read: a run.json with only what the first
  versions wrote, a config.json without changes, digests by sha256.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

HOME = Path("/srv/demo")
HERE = Path(__file__).resolve().parent
PARTS = ("kinds", "failed", "killed", "resumed", "rewound", "mirrored", "half-mirrored")
STORE = f"sqlite:///{HOME}/mlflow.db"
INPUT = {"name": "corpus", "sha256": "ab" * 32, "size_bytes": 1234, "source": "data/corpus.bin"}


class Diary:
    """What a run was given, beside its record; goes on over the attempts of the run."""

    def __init__(self, part: str) -> None:
        self._path = HOME / "diary" / f"{part}.json"
        self.content: dict[str, Any] = {
            "attempts": [],
            "params": {},
            "tags": {},
            "rows": [],
            "rewound": {},
            "checkpoints": {},
        }
        if self._path.exists():
            self.content = json.loads(self._path.read_text())

    def __getitem__(self, key: str) -> Any:
        return self.content[key]

    def begin(self, run: Any, status: str) -> None:
        self.content |= {"id": run.id, "name": run.name, "status": status}
        self["attempts"].append(status)

    def log(self, run: Any, metrics: dict[str, float], step: int) -> None:
        run.log_metrics(metrics, step=step)
        self["rows"].append([step, {name: legal(value) for name, value in metrics.items()}])

    def rewind(self, step: int) -> None:
        kept = [row for row in self["rows"] if row[0] <= step]
        gone = [row for row in self["rows"] if row[0] > step]
        if gone:
            self["rewound"][f"metrics.rewound-{len(self['attempts'])}.csv"] = gone
        self.content["rows"] = kept

    def save(self, checkpoints: Any, step: int, state: Any, metrics: Any = None) -> None:
        from tests.frozen.states import draws, told

        checkpoints.save(step, state, metrics=metrics)
        self["checkpoints"][str(step)] = {
            "state": {name: told(entry) for name, entry in state.items()},
            "draws": draws(),
        }
        checkpoints.wait()
        held = {str(checkpoint.step) for checkpoint in checkpoints.list()}
        self.content["checkpoints"] = {k: v for k, v in self["checkpoints"].items() if k in held}

    def close(self) -> None:
        self._path.parent.mkdir(exist_ok=True)
        self._path.write_text(json.dumps(self.content))


def legal(value: float) -> float | str:
    return value if math.isfinite(value) else repr(value)


# --- the runs, each attempt in a process of its own ---


def kinds(diary: Diary) -> None:
    """Every kind of param, metric and artifact; changes; inputs; system metrics."""
    import mlflow_track as mt

    params: dict[str, Any] = {
        "learning_rate": 1e-3,
        "steps": 12,
        "big": 2**70,
        "tiny": 5e-324,
        "flag": True,
        "nothing": None,
        "text": 'größe, "quoted"\nline two',
        "empty": {},
        "none of them": [],
        "list": [1, 2.5, None, "a", [True]],
        "optimizer": {"name": "adamw", "betas": [0.9, 0.95], "schedule": {"warmup": 3}},
        "a.b": "a dot in the name",
    }
    tags = {"team": "vision", "note": 'größe "quoted"\nline two', "empty": ""}
    given = {**params, "limit": math.inf, "pair": (1, 2)}
    run = mt.start_run(experiment="demo", run_name="all kinds", params=given, tags=tags)
    diary.begin(run, "FINISHED")
    rows: list[tuple[int, dict[str, float]]] = [
        (0, {"train/loss": 0.1 + 0.2, "count": 2**53}),
        (1, {"train/loss": math.nan}),
        (2, {"train/loss": math.inf, "count": 3}),
        (3, {"train/loss": -math.inf}),
        (4, {"train/loss": 5e-324, 'needs, "quotes"': 1.5}),
        (5, {"count": -0.0, "größe": 1.7976931348623157e308}),
        (5, {"train/loss": 1 / 3}),
        (7, {"train/loss": 1e16, "val/acc@1": 0.5, " space ": -1e-5}),
        (6, {"train/loss": 6.0}),
        (7, {"val/acc@1": 0.625}),
        (2**40, {"train/loss": 123456789.123456789}),
    ]
    for number, (step, metrics) in enumerate(rows):
        diary.log(run, metrics, step)
        if number == 5:
            run.log_params({"optimizer": {"schedule": {"warmup": 4}}, "late": "came later"})
            run.set_tags({"team": "vision and text", "late": "1"})
    run.log_input("corpus", **{k: v for k, v in INPUT.items() if k != "name"})
    run.print("a line of the trainer: größe")
    log_artifacts(run)
    run.finish()
    params["optimizer"]["schedule"]["warmup"] = 4
    diary.content["params"] = {**params, "limit": "inf", "pair": [1, 2], "late": "came later"}
    diary.content["changes"] = {"optimizer.schedule.warmup": [3, 4]}
    diary.content["tags"] = {**tags, "team": "vision and text", "late": "1"}
    diary.content["inputs"] = [{**INPUT, "context": "training"}]


def log_artifacts(run: Any) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib.figure import Figure

    folder = HOME / "made"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "one file.bin").write_bytes(bytes(range(256)))
    (folder / "deep" / "er" / "two.txt").write_text("two\r\n")
    run.log_text("größe\n", "notes/read me.txt")
    run.log_dict({"a": [1, None], "größe": {"b": 0.1}}, "report.json")
    run.log_artifact(folder / "one file.bin", "files")
    run.log_artifacts(folder, "nested")
    run.log_table({"x": [1, 2], 'y, "quoted"': ["a", "b\nc"]}, "table.csv")
    run.log_table({"x": [0.5, 1.5]}, "table.json")
    figure = Figure(figsize=(1, 1))
    axes = figure.add_subplot()
    axes.plot([1, 3, 2])
    axes.axis("off")
    run.log_figure(figure, "figure.svg")
    shutil.rmtree(folder)


def failed(diary: Diary) -> None:
    """An error in the loop."""
    import mlflow_track as mt

    with mt.start_run(experiment="demo", run_name="failed", params={"learning_rate": 3.0}) as run:
        diary.begin(run, "FAILED")
        diary["params"]["learning_rate"] = 3.0
        diary.content["error"] = "RuntimeError: the loss is gone"
        diary.log(run, {"train/loss": 9.5}, 0)
        diary.log(run, {"train/loss": 99.5}, 1)
        diary.close()
        raise RuntimeError("the loss is gone")


def killed(diary: Diary) -> None:
    """SIGKILL; an experiment whose name is no folder's, a run without a name."""
    import mlflow_track as mt
    from tests.frozen import states

    states.seed()
    run = mt.start_run(experiment="sweep/1", params={"learning_rate": states.LEARNING_RATE})
    diary.begin(run, "KILLED")
    diary["params"]["learning_rate"] = states.LEARNING_RATE
    state = states.fresh_state(has_all_kinds=True)
    state["kinds"] = states.all_kinds()
    checkpoints = run.checkpoints()
    for step in range(6):
        diary.log(run, {"train/loss": states.train_step(state)}, step)
        state["kinds"]["step"] = step
        if step in (2, 4):
            diary.save(checkpoints, step, state, {"train/loss": math.nan})
    kill(diary)


def resumed(diary: Diary) -> None:
    """Killed, resumed, killed, resumed with another param, finished; retention all along."""
    import mlflow_track as mt
    from tests.frozen import states

    attempt = len(diary["attempts"])
    last = (7, 10, 12)[attempt]
    rate = 0.01 if attempt < 2 else 0.005
    states.seed()
    params = {"learning_rate": rate, "width": 3}
    tags = {"attempt": str(attempt + 1), f"only {attempt + 1}": "yes"}
    run = mt.start_run(
        experiment="demo", run_name="resumed twice", resume="auto", params=params, tags=tags
    )
    diary.begin(run, "FINISHED" if attempt == 2 else "KILLED")
    diary.content["params"] = params
    diary.content["changes"] = {"learning_rate": [0.01, 0.005]}
    diary["tags"].update(tags)
    state = states.fresh_state()
    checkpoints = run.checkpoints(keep=mt.Keep(last=1, best=1, metric="val/loss"))
    start = checkpoints.restore(state)
    diary.rewind(start - 1)
    for step in range(start, last + 1):
        metrics = {"train/loss": states.train_step(state)}
        if step % 3 == 2:
            # The best is the one of step 5.
            metrics["val/loss"] = abs(step - 5) + 0.25
        diary.log(run, metrics, step)
        if step % 3 == 2:
            diary.save(checkpoints, step, state, metrics)
    if attempt < 2:
        kill(diary)
    run.finish()


def rewound(diary: Diary) -> None:
    """Taken back to an older checkpoint, which is pinned, and stopped."""
    import mlflow_track as mt
    from tests.frozen import states

    states.seed()
    is_first = not diary["attempts"]
    with mt.start_run(experiment="demo", run_name="rewound", resume="auto") as run:
        diary.begin(run, "KILLED")
        state = states.fresh_state()
        checkpoints = run.checkpoints()
        start = checkpoints.restore(state, step=None if is_first else 3)
        diary.rewind(start - 1)
        for step in range(start, 8 if is_first else 6):
            diary.log(run, {"train/loss": states.train_step(state), "note": -1.0}, step)
            if is_first and step in (3, 6):
                diary.save(checkpoints, step, state)
        if is_first:
            diary["attempts"][-1] = "FAILED"
            diary.close()
            raise RuntimeError("to be taken back")
        pin = ["-m", "mlflow_track.cli", "ckpt", "pin", str(run.path), "3"]
        subprocess.run([sys.executable, *pin], check=True)
        diary["checkpoints"].pop("6")
        diary.content["pinned"] = [3]
        run.finish("KILLED", error="a person ended it")
    diary.content["error"] = "a person ended it"


def mirrored(diary: Diary) -> None:
    """All of it is at an MLflow store."""
    mirror_part(diary, "mirrored", backend="mlflow").finish()
    diary["attempts"][-1] = diary.content["status"] = "FINISHED"


def half_mirrored(diary: Diary) -> None:
    """A first attempt is at an MLflow store; a second one, which rewinds it, was local."""
    import mlflow_track as mt
    from tests.frozen import states

    if not diary["attempts"]:
        mirror_part(diary, "half mirrored", backend="mlflow").finish("KILLED")
        diary.content["sent"] = diary["rows"]
        return
    run = mt.start_run(
        experiment="mirror", run_name="half mirrored", resume="must", backend="local"
    )
    diary.begin(run, "FINISHED")
    state = states.fresh_state()
    checkpoints = run.checkpoints()
    start = checkpoints.restore(state)
    diary.rewind(start - 1)
    for step in range(start, 9):
        diary.log(run, {"train/loss": states.train_step(state), "late": step / 8}, step)
    run.log_text("later\n", "later.txt")
    run.set_tag("late", "yes")
    diary["tags"]["late"] = "yes"
    run.finish()


def mirror_part(diary: Diary, name: str, backend: str) -> Any:
    import mlflow_track as mt
    from tests.frozen import states

    states.seed()
    params = {"learning_rate": states.LEARNING_RATE, "nested": {"width": 3}}
    tags = {"team": "vision"}
    run = mt.start_run(
        experiment="mirror", run_name=name, params=params, tags=tags, backend=backend
    )
    diary.begin(run, "KILLED")
    diary.content["params"] = params
    diary.content["tags"] = dict(tags)
    state = states.fresh_state()
    checkpoints = run.checkpoints()
    for step in range(6):
        diary.log(run, {"train/loss": states.train_step(state)}, step)
        if step == 3:
            diary.save(checkpoints, step, state)
    run.log_text("notes\n", "notes.txt")
    return run


def kill(diary: Diary) -> None:
    diary.close()
    os.kill(os.getpid(), signal.SIGKILL)


# --- what is done to the folders afterwards ---


def main() -> None:
    if there := list(HERE.glob("runs-v*")):
        raise SystemExit(f"{there[0]} is there already: what is frozen is not written again")
    HOME.mkdir()
    try:
        make_repository()
        for part in PARTS:
            for _ in range({"resumed": 3, "rewound": 2, "half-mirrored": 2}.get(part, 1)):
                subprocess.run(
                    [sys.executable, "train.py", part], cwd=HOME, env=environment(part), check=False
                )
        expected = []
        for part in PARTS:
            content = json.loads((HOME / "diary" / f"{part}.json").read_text())
            (folder,) = (HOME / "runs").glob(f"*/{content['id']}")
            make_neutral(folder)
            expected.append(completed(content, folder))
            if part == "killed":
                with open(folder / "metrics.csv", "ab") as metrics:
                    metrics.write(b"6,17000000")
        publish("runs-v1", HOME / "runs", expected)
        publish("runs-v0", HOME / "older", make_older(HOME / "older", HOME / "runs", expected))
    finally:
        shutil.rmtree(HOME)


def environment(part: str) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(HERE.parents[1]),
        "HOME": str(HOME),
        "USER": "demo",
        "LOGNAME": "demo",
        "TZ": "UTC",
        "LC_ALL": "C.UTF-8",
        "MPLCONFIGDIR": str(HOME / ".matplotlib"),
        "MLFLOW_TRACKING_URI": STORE,
        "MLFLOW_TRACK_BACKEND": "local",
        "MLFLOW_TRACK_FINISH_TIMEOUT": "300",
        "MLFLOW_TRACK_MIRROR_NICE": "0",
        "MLFLOW_TRACK_SYSTEM_METRICS": "0.2" if part in ("kinds", "mirrored") else "0",
    }


def make_repository() -> None:
    """A commit and a change that is not committed, for the provenance."""

    def git(*words: str) -> None:
        own = {"PATH": os.environ["PATH"], "HOME": str(HOME), "GIT_CONFIG_NOSYSTEM": "1"}
        who = ["-c", "user.name=demo", "-c", "user.email=demo@example.org"]
        subprocess.run(["git", *who, *words], cwd=HOME, env=own, check=True)

    (HOME / "notes.md").write_text("one\n")
    git("init", "--quiet", "--initial-branch=main")
    git("add", "notes.md")
    git("commit", "--quiet", "--message=Begin")
    (HOME / "notes.md").write_text("one\ntwo\n")
    shutil.copy(__file__, HOME / "train.py")


def make_neutral(folder: Path) -> None:
    """Host, platform and packages of nobody, and lock files without the room that they reserve."""
    for lock in folder.rglob("*.lock"):
        lock.write_bytes(b"")
    sizes = {path: path.stat().st_size for path in folder.glob("*")}
    info = json.loads((folder / "run.json").read_text())
    for attempt in info["attempts"]:
        attempt["host"] = "trainer-1"
    if info["provenance"]:
        info["provenance"]["platform"] = "Linux-6.1-x86_64-with-glibc2.36"
    write_json(folder / "run.json", info)
    (folder / "mirror.log").unlink(missing_ok=True)
    if (folder / "requirements.txt").exists():
        (folder / "requirements.txt").write_text("numpy==2.0.0\ntorch==2.6.0\n")
    if (folder / "mirror.json").exists():
        state = json.loads((folder / "mirror.json").read_text())
        for path, size in sizes.items():
            stamp = state["artifacts"].get(f"record/{path.name}")
            if stamp is not None and stamp[0] == size and path.exists():
                stamp[0] = path.stat().st_size
        (folder / "mirror.json").write_text(json.dumps(state, indent=1, ensure_ascii=False))


def completed(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What else the run must read as, taken from its files by plain means."""
    info = json.loads((folder / "run.json").read_text())
    system = []
    if (folder / "system_metrics.csv").exists():
        with open(folder / "system_metrics.csv", newline="") as file:
            for row in csv.DictReader(file):
                cells = {k: float(v) for k, v in row.items() if v and k not in ("step", "time")}
                system.append([int(row["step"]), cells])
    files = sorted(path for path in (folder / "artifacts").rglob("*") if path.is_file())
    return {
        **content,
        "folder": f"{folder.parent.name}/{folder.name}",
        "experiment": info["experiment"],
        "created": info["created"],
        "ended": info["ended"],
        "system": system,
        "artifacts": {
            path.relative_to(folder / "artifacts").as_posix(): sha256(path) for path in files
        },
    }


def make_older(root: Path, newer: Path, expected: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The oldest forms that are still read."""
    bare_id, former_id = "20231114-221320-0a1b2c", "20231115-080910-3d4e5f"
    bare = root / "demo" / bare_id
    bare.mkdir(parents=True)
    write_json(
        bare / "run.json", {"status": "RUNNING", "created": 1700000000.5, "tags": {"number": 7}}
    )
    write_json(bare / "config.json", {"params": {"learning_rate": 0.1}})
    (bare / "metrics.csv").write_text(
        "step,time,loss,late\n0,1700000001.5,0.5\n1,1700000002.5,0.25\n2,1700000003.5,,1.5\n"
    )
    (source,) = [e for e in expected if e["name"] == "rewound"]
    former = root / "demo" / former_id
    shutil.copytree(newer / source["folder"], former)
    info = json.loads((former / "run.json").read_text())
    for name in ("layout", "name_given", "restores", "rewinding", "checkpoints", "inputs"):
        info.pop(name)
    info |= {"id": former_id, "name": "former", "created": 1700035750.25}
    write_json(former / "run.json", info)
    shutil.rmtree(former / "checkpoints" / "rewound-2")
    (former / "checkpoints" / ".lock").unlink()
    shutil.copy(former / "config.json", root / "config.json")
    for manifest in former.glob("checkpoints/step-*/manifest.json"):
        digest_by_sha256(manifest, former_id)
    (root / "config.json").unlink()
    common = {"artifacts": {}, "system": [], "experiment": "demo"}
    return [
        {
            **common,
            "id": bare_id,
            "name": bare_id,
            "folder": f"demo/{bare_id}",
            "status": "KILLED",
            "attempts": [],
            "created": 1700000000.5,
            "ended": None,
            "params": {"learning_rate": 0.1},
            "tags": {"number": "7"},
            "rows": [[0, {"loss": 0.5}], [1, {"loss": 0.25}], [2, {"late": 1.5}]],
            "rewound": {},
            "checkpoints": {},
        },
        {
            **source,
            "id": former_id,
            "name": "former",
            "folder": f"demo/{former_id}",
            "created": 1700035750.25,
        },
    ]


def digest_by_sha256(path: Path, run_id: str) -> None:
    """The manifest as the first versions wrote it."""
    manifest = json.loads(path.read_text())
    del manifest["digest"]
    manifest |= {"algorithm": "sha256", "run_id": run_id}
    for name, entry in manifest["files"].items():
        entry["chunks"] = [sha256(path.parent / name)]
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    manifest["digest"] = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(json.dumps(manifest, indent=1))


def publish(name: str, source: Path, expected: list[dict[str, Any]]) -> None:
    shutil.copytree(source, HERE / name)
    lines = ",\n".join(json.dumps(run, ensure_ascii=False) for run in expected)
    (HERE / f"{name.replace('runs', 'expected')}.json").write_text(f"[\n{lines}\n]\n")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__" and len(sys.argv) == 1:
    main()
elif __name__ == "__main__":
    diary = Diary(sys.argv[1])
    globals()[sys.argv[1].replace("-", "_")](diary)
    diary.close()
