"""All that reads a folder of runs, tried on a mutant by processes that may die or hang of it.

    python -m tests.damage.readers [SEED]...

serves `Readers`: for each line of standard input, the folder and seed of a mutant, one line of JSON
with what was wrong. With seeds as arguments it tries these and says how each reader fared.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ |= {
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }

from click.testing import CliRunner

import mlflow_track as mt
from mlflow_track.cli import main
from tests import forked
from tests.damage.mutants import OUTSIDE, SECRET, VICTIMS, Mutant, make, undamaged

ROOT = Path(__file__).resolve().parent.parent.parent
HANG_SECONDS = float(os.environ.get("FAULT_HANG_SECONDS") or 15)
# A reader that wants more than this on top of what the process holds reads what it should not.
MOST_BYTES = 1 << 30


class Wrong(Exception):
    """A reader did what it must not."""


# --- the commands ---


def commands(mutant: Mutant) -> list[tuple[str, ...]]:
    """Each is tried; the ones that change something come last."""
    root, run = str(mutant.root), str(mutant.victim)
    steps = [str(int(path.name[5:])) for path in sorted(mutant.victim.glob("checkpoints/step-*"))]
    step = steps[0] if steps else "last"
    at = ("-d", root, run)
    return [
        ("ls", root),
        ("ls", root, "--json"),
        ("ls", root, "--sort", "train/loss"),
        ("ls", root, "--filter", "params.learning_rate < 1 and metrics.train/loss < 1e9"),
        ("show", *at),
        ("show", *at, "--json"),
        ("show", "-d", root, "@last"),
        ("show", "-d", root, mutant.victim.name[:12]),
        ("compare", "-d", root),
        ("compare", "-d", root, "--json"),
        ("compare", *at, str(mutant.neighbour), "--code"),
        ("plot", "-d", root),
        # Matplotlib takes as long as all others together.
        *([("plot", "-d", root, "-o", "plot.svg")] if _draws(mutant) else []),
        ("plot", *at, "--x", "time", "--log"),
        ("report", "-d", root, "-o", "report.html"),
        ("export", "-d", root),
        ("export", "-d", root, "--json"),
        ("tail", *at, "--no-follow"),
        ("tail", *at, "--no-follow", "--json"),
        ("wait", *at, "--timeout", "0"),
        ("ckpt", "ls", *at),
        ("ckpt", "ls", *at, "--json"),
        ("ckpt", "verify", *at),
        ("ckpt", "show", *at, step),
        ("ckpt", "show", *at, step, "--json"),
        ("ckpt", "show", *at, "best"),
        ("ckpt", "diff", *at, step, "last", "--values"),
        ("ckpt", "export", *at, step, "-o", "model.safetensors"),
        ("ckpt", "prune", *at, "--last", "1", "--dry-run"),
        ("doctor", run),
        ("rm", *at, "--dry-run"),
        ("gc", root, "--dry-run"),
        ("ckpt", "pin", *at, step),
        ("ckpt", "prune", *at, "--last", "1"),
        ("ckpt", "unpin", *at, step),
        ("gc", root),
    ]


def _draws(mutant: Mutant) -> bool:
    """Of some mutants, and where a value is what can be wrong."""
    is_picked = sum(mutant.what.encode()) % 8 == 0
    return is_picked or " column " in mutant.what or mutant.what == "nothing"


# Show all runs that there are.
LISTING = {"ls", "compare", "export", "report"}


def command(words: tuple[str, ...]) -> Callable[[Mutant], None]:
    def run(mutant: Mutant) -> None:
        made = [Path("report.html"), Path("plot.svg")]
        for path in made:
            path.unlink(missing_ok=True)
        result = CliRunner().invoke(main, list(words), prog_name="mlflow-track")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        said = result.output
        shown = "\n".join([said, *(p.read_text(errors="replace") for p in made if p.exists())])
        if "Traceback (most recent call last)" in said:
            raise Wrong("prints a traceback")
        if SECRET in shown:
            raise Wrong("shows a file outside the run")
        if "--json" in words:
            for text in result.stdout.splitlines() if words[0] == "tail" else [result.stdout]:
                _require_json(text)
        # `tail` says by its status how the run ended.
        if result.exit_code and not said.strip() and words[0] != "tail":
            raise Wrong(f"ends with status {result.exit_code} without a word")
        if len(said.encode()) > 20 << 20:
            raise Wrong("prints more than 20 MB")
        is_about_all = words[0] in LISTING and str(mutant.victim) not in words
        if is_about_all and mutant.neighbour.name not in shown and "resumed twice" not in shown:
            raise Wrong(f"the other run is missing (status {result.exit_code}): {_tail(said)}")
        if mutant.is_unreadable and is_about_all and mutant.victim.name not in said:
            raise Wrong(f"the damaged run is not named: {_tail(said)}")

    return run


def _require_json(text: str) -> None:
    try:
        json.loads(text)
    except ValueError as error:
        raise Wrong(f"prints what is not one JSON document: {error}") from None


def _tail(text: str) -> str:
    return repr(text.strip()[-60:])


# --- the interface for programs ---


def load_run(mutant: Mutant) -> None:
    with _refused_in_one_line(mutant):
        run = mt.load_run(mutant.victim)
        (
            repr(run),
            run._repr_html_(),
            run.summary,
            run.seconds,
            run.status,
            run.tags,
            run.checkpoints,
        )
        with _refused_in_one_line(mutant):
            _ = run.params
        run.metrics()
        run.metrics("system_metrics.csv")
        run.media()


def load_runs(mutant: Mutant) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        runs = mt.load_runs(mutant.root)
        mt.load_runs(mutant.root, where="metrics.train/loss < 1e9 and status = 'FINISHED'")
    _require_neighbour(mutant, [run.path for run in runs])
    text = "\n".join(str(warning.message) for warning in said)
    if mutant.is_unreadable and mutant.victim.name not in text:
        raise Wrong("the damaged run is not named")


def load_metrics(mutant: Mutant) -> None:
    with warnings.catch_warnings(), _refused_in_one_line(mutant):
        warnings.simplefilter("ignore")
        frame = mt.load_metrics(mt.load_runs(mutant.root))
        if mutant.neighbour.name not in frame.index.get_level_values(0):
            raise Wrong("the other run is missing")


def compare(mutant: Mutant) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = mt.compare(mt.load_runs(mutant.root))
        repr(table), table._repr_html_()
    if mutant.neighbour.name not in table.index:
        raise Wrong("the other run is missing")


def ui_store(mutant: Mutant) -> None:
    from mlflow.exceptions import MlflowException

    from mlflow_track.ui.address import uri_of
    from mlflow_track.ui.artifacts import RecordArtifacts
    from mlflow_track.ui.store import RecordStore

    store = RecordStore(f"mlflow-track://{mutant.root}")
    experiments = [experiment.experiment_id for experiment in store.search_experiments()]
    runs = store.search_runs(experiments, "", 1, 100)
    if mutant.neighbour.name not in [run.info.run_id for run in runs]:
        raise Wrong("the other run is missing")
    for run in runs:
        for name in run.data.metrics:
            store.get_metric_history(run.info.run_id, name)
            store.get_metric_history_bulk_interval([run.info.run_id], name, 10, None, None)
    artifacts = RecordArtifacts(uri_of(mutant.victim))
    if any(path.lstat().st_size > 1 << 30 for path in mutant.victim.rglob("*")):
        return  # A download of it takes as long as a copy does.
    for folder in ("", "record", "checkpoints"):
        for info in artifacts.list_artifacts(folder):
            try:
                path = Path(artifacts.download_artifacts(info.path))
            except (MlflowException, OSError):
                continue
            if (
                path.is_file()
                and path.stat().st_size < 1 << 20
                and SECRET in path.read_text(errors="replace")
            ):
                raise Wrong("serves a file outside the run")


class _refused_in_one_line:
    """What cannot be read is refused by an error that a caller can expect and that says what."""

    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        if error is None or isinstance(error, Wrong):
            return False
        # What these are subclasses of says little: a bug raises them, too.
        is_meant = isinstance(error, OSError | ValueError | RuntimeError | LookupError)
        is_meant = is_meant and not isinstance(
            error, KeyError | IndexError | RecursionError | UnicodeError
        )
        if not is_meant:
            return False
        text = str(error)
        names = {path.name for path in self._mutant.victim.rglob("*")} | {self._mutant.victim.name}
        if not any(name in text for name in names) or len(text.splitlines()) > 1:
            raise Wrong(f"{type(error).__name__} that does not say what in one line: {text[:90]!r}")
        return True


def _require_neighbour(mutant: Mutant, found: list[Path]) -> None:
    if mutant.neighbour not in found:
        raise Wrong("the other run is missing")


def resume_by_id(mutant: Mutant) -> None:
    with (
        _refused_in_one_line(mutant),
        mt.start_run(resume=mutant.victim.name, directory=mutant.root, backend="local") as run,
    ):
        _train_on(mutant, run)


def resume_auto(mutant: Mutant) -> None:
    with (
        _refused_in_one_line(mutant),
        mt.start_run(
            experiment=_experiment(mutant), resume="auto", directory=mutant.root, backend="local"
        ) as run,
    ):
        run.log_metrics({"train/loss": 0.5}, step=100)


def _experiment(mutant: Mutant) -> str:
    from urllib.parse import unquote

    return unquote(mutant.victim.parent.name)


def _train_on(mutant: Mutant, run: Any) -> None:
    from tests.frozen.states import fresh_state

    state = fresh_state(has_all_kinds=mutant.has_all_kinds)
    checkpoints = run.checkpoints()
    step = checkpoints.restore(state)
    run.log_metrics({"train/loss": 0.5, "new": 1.0}, step=step)
    run.log_params({"new": 1})
    run.set_tag("new", "yes")


# --- trying them ---


def readers(mutant: Mutant) -> list[tuple[str, Callable[[Mutant], None]]]:
    """All readers by name. Those that change the run get a copy of the mutant."""
    found: list[tuple[str, Callable[[Mutant], None]]] = []
    for function in (load_run, load_runs, load_metrics, compare, ui_store):
        found.append((function.__name__, function))
    for words in commands(mutant):
        name = " ".join(w for w in words if not w.startswith("/"))
        found.append((name, command(words)))
    return found


def changers() -> list[tuple[str, Callable[[Mutant], None]]]:
    return [(function.__name__, function) for function in (resume_by_id, resume_auto)]


def examine(seed: int) -> tuple[str, list[tuple[str, str]], dict[str, float]]:
    """What each reader does wrong with the mutant of this seed, and how long each took."""
    found: list[tuple[str, str]] = []
    seconds: dict[str, float] = {}
    folder = Path(tempfile.mkdtemp(prefix="mutant-"))
    try:
        # A seed below zero counts good runs.
        made = (
            functools.partial(make, seed)
            if seed >= 0
            else functools.partial(undamaged, VICTIMS[~seed])
        )
        mutant = made(folder / "read")
        attempt(mutant, readers(mutant), found, seconds)
        for changer in changers():
            attempt(made(folder / changer[0]), [changer], found, seconds)
        return mutant.what, found, seconds
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def attempt(
    mutant: Mutant,
    jobs: list[tuple[str, Callable[[Mutant], None]]],
    found: list[tuple[str, str]],
    seconds: dict[str, float],
) -> None:
    """One child for all; another one for the rest where it hangs or dies."""
    at = 0
    # Where three have hung, enough is known.
    while at < len(jobs) and sum(wrong == "hangs" for _, wrong in found) < 3:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            _work(mutant, jobs[at:], writing)
        os.close(writing)
        with os.fdopen(reading, "rb", buffering=0) as pipe:
            began, data = time.monotonic(), b""
            while True:
                left = began + HANG_SECONDS - time.monotonic()
                if left <= 0 or not select.select([pipe], [], [], left)[0]:
                    found.append((jobs[at][0], "hangs"))
                    at += 1
                    break
                piece = pipe.read(1 << 16)
                if not piece:
                    if at < len(jobs):
                        found.append((jobs[at][0], "kills its process"))
                        at += 1
                    break
                data += piece
                *lines, data = data.split(b"\n")
                for line in lines:
                    wrong = json.loads(line)
                    if wrong:
                        found.append((jobs[at][0], wrong))
                    now = time.monotonic()
                    seconds[jobs[at][0]] = now - began
                    began = now
                    at += 1
        try:
            os.killpg(child, signal.SIGKILL)
        except ProcessLookupError:
            pass
        os.waitpid(child, 0)


def _work(mutant: Mutant, jobs: list[tuple[str, Callable[[Mutant], None]]], answers: int) -> None:
    try:
        os.setsid()
        os.chdir(mutant.root.parent)
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        held = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (held + MOST_BYTES, held + MOST_BYTES))
        for _, job in jobs:
            wrong = ""
            try:
                job(mutant)
                _require_outside(mutant)
            except Wrong as error:
                wrong = str(error)
            except BaseException as error:
                wrong = _described(error)
            os.write(answers, json.dumps(wrong).encode() + b"\n")
    finally:
        os._exit(0)


def _require_outside(mutant: Mutant) -> None:
    """Nothing beside the runs was written, however a link leads there."""
    folder = mutant.root.parent
    for name, content in OUTSIDE.items():
        if (folder / name).read_bytes() != content.encode():
            (folder / name).write_text(content)
            raise Wrong("changes a file outside the run")
    if len(list((folder / "secrets").iterdir())) > 1:
        raise Wrong("makes a file outside the run")


def _described(error: BaseException) -> str:
    """The exception and the line of the package that it passed last."""
    place = ""
    for frame in traceback.extract_tb(error.__traceback__):
        if "mlflow_track/" in frame.filename and "tests/" not in frame.filename:
            file = frame.filename.rpartition("mlflow_track/")[2]
            place = f" at {file}:{frame.lineno} {frame.name}"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:80]}{place}"


def _prepare() -> None:
    """Load all that the readers need, once for all children, by reading a good run."""
    import torch

    from mlflow_track.record import provenance

    torch.set_num_threads(1)
    # What a machine is called and has installed is read nowhere, and takes seconds to find out.
    provenance.capture = lambda path: {}
    here = os.getcwd()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        os.chdir(folder)
        good = undamaged(VICTIMS[0], Path(folder) / "good")
        for _, job in [*readers(good), *changers()]:
            job(good)
        os.chdir(here)


class Readers:
    """The process that serves."""

    def __init__(self) -> None:
        self._process = forked.Popen(
            [sys.executable, "-m", "tests.damage.readers"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def examine(self, seed: int) -> tuple[str, list[list[str]]]:
        """What was done to the run of the mutant, and what each reader did wrong with it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{seed}\n")
        self._process.stdin.flush()
        what, found = json.loads(self._process.stdout.readline())
        return what, found

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def _serve() -> None:
    for line in sys.stdin:
        what, found, _ = examine(int(line))
        print(json.dumps([what, found]), flush=True)


if __name__ == "__main__":
    _prepare()
    if sys.argv[1:]:
        for word in sys.argv[1:]:
            what, found, seconds = examine(int(word))
            print(f"mutant {word}: {what}", flush=True)
            for name, wrong in found:
                print(f"  {name}: {wrong}", flush=True)
            if os.environ.get("FAULT_TIMES"):
                for name, value in sorted(seconds.items(), key=lambda item: -item[1])[:40]:
                    print(f"    {value:.3f} s {name}", flush=True)
    else:
        _serve()
