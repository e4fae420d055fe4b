"""The commands on real runs: what they print for people and for programs, what they refuse."""

import csv
import io
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import mlflow_track as mt
from mlflow_track.analysis import curves
from mlflow_track.cli import ckpt, main
from mlflow_track.cli.lazy import LazyGroup
from mlflow_track.record import trash
from tests import forked
from tests.analysis.records import DAMAGED, UNREADABLE, make_run, write
from tests.cli.schemas import check, strict

ROOT = Path(__file__).resolve().parents[2]
# Their examples need a server, which the tests below bring.
SERVED = ("sync", "doctor", "ui", "import")


def invoke(*words: str, status: int = 0) -> Result:
    result = CliRunner().invoke(main, list(words), prog_name="mlflow-track")
    assert result.exit_code == status, (words, result.output, result.exception)
    assert "Traceback" not in result.output
    return result


@pytest.fixture
def two_runs() -> list[mt.LoadedRun]:
    make_run("slow", lr=1e-3, floor=1.0, batch_size=4, context_length=8)
    make_run("fast one", lr=4e-3, floor=0.5, batch_size=4, context_length=8)
    return mt.load_runs("runs")


# --- help and examples ---


def examples_of(group: LazyGroup, name: str) -> list[str]:
    command = group.get_command(None, name)  # type: ignore[arg-type]
    assert command is not None and command.help
    lines = re.findall(r"^\s*(mlflow-track .*)$", command.help, re.MULTILINE)
    assert lines, name
    return lines


def examples(group: LazyGroup) -> list[str]:
    names = [n for n in group.list_commands(None) if n not in SERVED]  # type: ignore[arg-type]
    return [line for name in names for line in examples_of(group, name)]


@pytest.mark.parametrize("name", main.list_commands(None))  # type: ignore[arg-type]
def test_the_help_of_every_command_has_an_example(name: str) -> None:
    text = invoke(name, "--help").output
    assert re.search(rf"mlflow-track {name}\b", text.split("Example", 1)[1])


@pytest.mark.parametrize("width", [60, 80])
def test_help_is_as_wide_as_the_terminal_and_cuts_no_sentence(width: int) -> None:
    commands = [[], ["ckpt"], *([n] for n in main.list_commands(None))]  # type: ignore[arg-type]
    commands += [["ckpt", name] for name in ckpt.list_commands(None)]  # type: ignore[arg-type]
    for words in commands:
        help_ = CliRunner().invoke(main, [*words, "--help"], terminal_width=width).output
        lines = [line for line in help_.splitlines() if not line.startswith("Usage")]
        assert not [line for line in lines if line.endswith("...")], words
        # An example is for copying, and is not wrapped.
        is_prose = [80 if "mlflow-track " in line else width for line in lines]
        assert [x for x, most in zip(lines, is_prose, strict=True) if len(x) > most] == [], words


@pytest.mark.parametrize("line", examples(main))
def test_the_examples_of_the_help_do_what_they_say(line: str) -> None:
    make_run("lr-1e-3", experiment="demo", learning_rate=1e-3, batch_size=4, context_length=8)
    make_run("lr-2e-3", experiment="demo", learning_rate=2e-3, batch_size=4, context_length=8)
    assert invoke(*shlex.split(line)[1:]).output


TRAINER = """
import sys, torch, mlflow_track as mt
torch.manual_seed(int(sys.argv[2]))
model = torch.nn.Linear(2, 2)
with mt.start_run(experiment="demo", run_name=sys.argv[1], resume="auto") as run:
    checkpoints = run.checkpoints(save=mt.AtSteps(100, 101))
    for step in range(checkpoints.restore({"model": model}), 102):
        torch.nn.init.constant_(model.weight, float(step))
        checkpoints.step(step, {"model": model})
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs of a program, which has checkpoints and can be replayed."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "trainer.py").write_text(TRAINER)
    for seed, name in enumerate(("other-run", "demo")):
        forked.run(
            [sys.executable, folder / "trainer.py", name, str(seed)],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=True,
        )
    return folder / "runs"


@pytest.mark.xdist_group("trained")
@pytest.mark.parametrize("line", examples(ckpt))
def test_the_examples_of_the_help_about_checkpoints_do_what_they_say(
    line: str, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained, "runs")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert invoke(*shlex.split(line)[1:]).output


def test_the_examples_of_the_help_about_a_server_do_what_they_say(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run("lr-1e-3", experiment="digits")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    for name, came in (("sync", "mlflow has everything"), ("doctor", "status       sent")):
        for line in examples_of(main, name):
            words = shlex.split(line.replace("http://127.0.0.1:5000", store))[1:]
            assert came in invoke(*words).output
    logger = Path("lightning_logs/version_0/metrics.csv")
    logger.parent.mkdir(parents=True)
    logger.write_text("step,loss\n0,1.5\n1,1.25\n")
    for line in examples_of(main, "import"):
        assert "1 run" in invoke(*shlex.split(line)[1:]).output


def test_the_example_of_the_help_of_ui_serves_a_page() -> None:
    make_run("lr-1e-3")
    (line,) = examples_of(main, "ui")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    words = shlex.split(line.replace("5000", str(port)))[1:]
    with subprocess.Popen(
        [sys.executable, "-m", "mlflow_track.cli", *words, "--json"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as server:
        assert server.stdout is not None
        document = strict(server.stdout.readline())
        check(document, "ui")
        page = document["url"]
        assert page.startswith(f"http://127.0.0.1:{port}/#/experiments/")
        with urllib.request.urlopen(page, timeout=30) as answer:
            assert answer.status == 200
        server.send_signal(signal.SIGTERM)
    assert server.returncode == 0


def test_help_loads_nothing_heavy() -> None:
    program = (
        "import sys; from mlflow_track.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = ('torch', 'mlflow', 'pandas', 'numpy', 'matplotlib', 'rich', 'orjson')\n"
        "print([name for name in heavy if name in sys.modules], file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert ran.stderr.strip() == "[]" and "compare" in ran.stdout


def test_a_mistyped_word_is_told_what_it_may_have_meant(two_runs: list[mt.LoadedRun]) -> None:
    for words, status, meant in (
        (["shwo"], 2, "there is no command 'shwo'; did you mean 'show'?"),
        (["show", "Fast on"], 3, "did you mean 'fast one'?"),
        (["show", "@best:val/los"], 3, "did you mean 'val/loss'?"),
        (["compare", "--metric", "val/los"], 3, "did you mean 'val/loss'?"),
        (["plot", "--metric", "val/los"], 3, "did you mean 'val/loss'?"),
        (["ls", "--metric", "val/los"], 0, "did you mean 'val/loss'?"),
        (["ls", "--status", "runing"], 2, "is not one of"),
    ):
        assert meant in invoke(*words, status=status).output
    assert "did you mean" not in invoke("show", "nobody", status=3).output


# --- ls ---


def test_ls_lists_runs_with_the_metric_that_matters(two_runs: list[mt.LoadedRun]) -> None:
    header, first, second = invoke("ls").output.splitlines()
    assert (
        header.split() == "ID EXPERIMENT NAME STATUS STARTED DURATION STEPS val/loss SIZE".split()
    )
    assert two_runs[0].id in first and first.split()[-4:-2] == ["20", "1.125"]
    assert "fast one" in second


def test_ls_sorts_filters_and_limits(two_runs: list[mt.LoadedRun]) -> None:
    slow, fast = two_runs

    def ids(*words: str) -> list[str]:
        return [line.split()[0] for line in invoke("ls", *words).output.splitlines()[1:]]

    assert ids("--sort", "val/loss") == [fast.id, slow.id]
    assert ids("--sort", "params.lr", "--reverse") == [fast.id, slow.id]
    assert ids("--sort", "train/loss", "--limit", "1") == [fast.id]
    assert ids("--limit", "1") == [fast.id]
    assert ids("--filter", "min.val/loss < 1") == [fast.id]
    assert ids("--status", "failed") == []
    assert ids("--status", "finished", "runs/demo") == [slow.id, fast.id]
    assert "no run has 'x'" in invoke("ls", "--sort", "x", status=3).output
    assert "filter must be conditions" in invoke("ls", "--filter", "x", status=2).output


def test_ls_takes_an_experiment_for_a_folder(two_runs: list[mt.LoadedRun]) -> None:
    make_run("third", experiment="other")
    assert len(invoke("ls", "demo").output.splitlines()) == 3
    assert "no runs in nowhere" in invoke("ls", "nowhere", status=3).output


def test_a_word_for_runs_and_for_an_experiment_stands_for_neither(
    two_runs: list[mt.LoadedRun],
) -> None:
    named = make_run("demo", experiment="other")
    refusal = invoke("compare", "demo", status=2).output
    assert "is the name of 1 run and of an experiment of 2; use runs/demo" in refusal
    assert named.name in refusal
    assert "fast one" in invoke("compare", "runs/demo").output
    # One run was asked for, and one is called so.
    assert named.name in invoke("show", "demo").output


def test_ls_speaks_json_and_csv(two_runs: list[mt.LoadedRun]) -> None:
    rows = json.loads(invoke("ls", "--json").stdout)
    assert [row["id"] for row in rows] == [run.id for run in two_runs]
    assert rows[1]["params"]["lr"] == 4e-3 and rows[1]["metrics"]["val/loss"]["min_step"] == 19
    table = list(csv.DictReader(io.StringIO(invoke("ls", "--csv").stdout)))
    assert [float(row["val/loss"]) for row in table] == [1.125, 0.625]


def test_ls_shows_children_below_their_parent() -> None:
    parent = make_run("sweep")
    other = make_run("other")
    for name in ("a", "b"):
        with mt.start_run(
            experiment="demo", run_name=name, tags={"mlflow.parentRunId": parent.name}
        ):
            pass
    names = [line.split("  ")[2:4] for line in invoke("ls", "--tree").output.splitlines()[1:]]
    assert [" ".join(n).split()[0:2] for n in names][:3] != []
    text = invoke("ls", "--tree").output
    order = [text.index(word) for word in (parent.name, "└─ a", "└─ b", other.name)]
    assert order == sorted(order)


def test_ls_watches_until_no_run_runs() -> None:
    run = mt.start_run(run_name="live")
    process = forked.Popen(
        [sys.executable, "-m", "mlflow_track.cli", "ls", "--watch", "0.1"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    with process:
        assert process.stdout is not None
        seen = process.stdout.readline() + process.stdout.readline()
        assert "RUNNING" in seen
        run.finish()
        rest = process.stdout.read()
    assert process.returncode == 0 and "FINISHED" in rest


def test_watch_takes_seconds_or_a_folder_or_both_or_neither(two_runs: list[mt.LoadedRun]) -> None:
    make = [["--watch"], ["--watch", "runs"], ["--watch", "5", "runs"], ["runs", "--watch", "0.1"]]
    for words in [*make, ["--watch=3", "runs"], ["--watch", "--limit", "2"], ["runs", "--watch"]]:
        assert len(invoke("ls", *words).stdout.splitlines()) == 3, words
    assert "in elsewhere" in invoke("ls", "--watch", "elsewhere", status=3).stderr
    assert "is not in the range" in invoke("ls", "--watch", "-1", status=2).output


def test_every_command_begins_in_the_folder_of_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACK_DIR", "elsewhere")
    for command in ("ls", "compare", "plot", "report", "export", "ui"):
        assert "runs in elsewhere" in invoke(command, status=3).output, command


def test_ls_of_broken_folders_says_what_it_leaves_out() -> None:
    write(Path("runs/e/good"), [(0, {"a": 1.0})])
    with open("runs/e/good/metrics.csv", "ab") as file:
        file.write(b"x,y\n1,2.0")
    (write(Path("runs/e/bad one"), []) / "run.json").write_text("{")
    write(Path("runs/e/newer"), [], layout=9)
    write(Path("runs/e/empty"), [])
    (Path("runs/e/empty") / "metrics.csv").write_bytes(b"\x00\xff")
    result = invoke("ls")
    assert [line.split()[0] for line in result.stdout.splitlines()[1:]] == ["good", "empty"]
    assert "bad one: run.json cannot be read" in result.stderr and "layout 9" in result.stderr
    for command in ("show", "compare", "plot", "export"):
        invoke(command, "good")
        result = CliRunner().invoke(main, [command, "empty"])
        assert result.exception is None or isinstance(result.exception, SystemExit), command
    assert "there are no runs" in invoke("compare", "-d", "nowhere", status=3).output
    assert "there are no runs" in invoke("ls", "nowhere", status=3).stderr


# --- records that something happened to ---

# RUN stands for the record, by its path.
READERS = """
    ls RUN
    show RUN
    show RUN --json
    show RUN --csv
    tail RUN --no-follow
    compare RUN
    compare RUN whole
    plot RUN
    plot RUN --metric loss -o p.png
    report RUN whole
    export RUN
    export RUN -o m.csv
    rm RUN --dry-run
    doctor RUN --tracking-uri sqlite:///none/none.db
    ckpt ls RUN
    ckpt verify RUN
    ckpt show RUN
    ckpt diff RUN last last --values
    ckpt export RUN -o m.safetensors
    ckpt prune RUN --last 1 --dry-run
    ckpt prune RUN --last 1
    ckpt pin RUN
    ckpt unpin RUN
""".strip().splitlines()


def read_in_every_way(run: Path) -> dict[str, Result]:
    """What each command says to the record; none may end with a traceback."""
    results = {}
    for line in READERS:
        words = [str(run) if word == "RUN" else word for word in line.split()]
        result = results[line.strip()] = CliRunner().invoke(main, words)
        ended = result.exception
        assert ended is None or isinstance(ended, SystemExit), (line, ended, result.exc_info)
    return results


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with metrics and two checkpoints."""
    with mt.start_run(
        run_name="whole", directory=tmp_path_factory.mktemp("runs"), backend="local"
    ) as run:
        checkpoints = run.checkpoints(save=mt.EverySteps(1))
        for step in range(2):
            run.log_metrics({"loss": 1.0 / (step + 1)}, step=step)
            checkpoints.save(step, {"model": {"weight": float(step)}}, metrics={"loss": 1.0})
    return run.path


@pytest.fixture
def victim(whole: Path) -> Path:
    """A copy of it, beside an unharmed one."""
    for name in ("whole", "victim"):
        shutil.copytree(whole, Path("runs/e") / name)
    return Path("runs/e/victim")


@pytest.mark.parametrize("what", UNREADABLE)
def test_a_run_that_cannot_be_read_is_refused_with_the_reason(victim: Path, what: str) -> None:
    harm, reason = UNREADABLE[what]
    harm(victim)
    for line, result in read_in_every_way(victim).items():
        assert result.exit_code == 1 and reason in result.output, (line, result.output)
    assert reason in invoke("show", "victim", status=1).output


@pytest.mark.parametrize("what", DAMAGED)
def test_no_damage_of_a_record_is_a_traceback(victim: Path, what: str) -> None:
    DAMAGED[what](victim)
    read_in_every_way(victim)


def test_every_command_reads_a_whole_record(victim: Path) -> None:
    """The control of the two above."""
    for line, result in read_in_every_way(victim).items():
        assert result.exit_code == 0 or "sqlite" in line or "safetensors" in line, (line, result)


@pytest.mark.parametrize("word", ["a" * 300, "~nobody-of-that-name/x"])
def test_a_word_that_cannot_be_a_path_does_not_name_a_run(
    two_runs: list[mt.LoadedRun], word: str
) -> None:
    assert "no run in runs is called" in invoke("show", word, status=3).output


# --- show, compare, plot, export ---


def test_show_prints_all_of_a_run(two_runs: list[mt.LoadedRun]) -> None:
    text = invoke("show", "fast one").output
    for part in ("demo/fast one", "FINISHED", "lr", "0.004", "val/loss", "0.625", "█", "command"):
        assert part in text
    data = json.loads(invoke("show", "@best:val/loss", "--json").stdout)
    assert data["id"] == two_runs[1].id and data["run"]["provenance"]["platform"]
    rows = list(csv.DictReader(io.StringIO(invoke("show", "@last", "--csv").stdout)))
    assert {row["metric"]: row["count"] for row in rows}["val/loss"] == "4"
    assert "no run in runs is called" in invoke("show", "nobody", status=3).output
    command = next(line for line in text.splitlines() if line.startswith("  command "))
    assert shlex.split(command)[1:] == ["python", *sys.orig_argv[1:]]
    assert invoke("show").output == text
    assert invoke("tail", "--no-follow").output == invoke("tail", "@last", "--no-follow").output


def test_show_reads_the_metrics_once_however_many_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [(step, {f"layer{step}/norm": 1.5}) for step in range(40)]
    folder = write(Path("runs/e/wide"), rows)
    read, pieces = curves.Histories.refresh, []
    monkeypatch.setattr(curves.Histories, "refresh", lambda *a: pieces.append(a) or read(*a))
    text = invoke("show", str(folder)).output
    assert len(pieces) == 1 and text.count("▄") == 40
    assert mt.load_run(folder)._repr_html_().count("<tr>") > 30 and len(pieces) == 2


def test_settings_have_no_best_value(two_runs: list[mt.LoadedRun]) -> None:
    compared, shown = invoke("compare").output, invoke("show").output
    assert "train/lr  " in compared and "train/lr best" not in compared
    assert "train/lr best" in invoke("compare", "--max", "train/lr").output
    (line,) = [line for line in shown.splitlines() if line.startswith("train/lr ")]
    (loss,) = [line for line in shown.splitlines() if line.startswith("train/loss ")]
    assert len(line.split()) == len(loss.split()) - 2


def test_compare_marks_the_best_and_shows_only_what_differs(two_runs: list[mt.LoadedRun]) -> None:
    lines = {re.split(r"\s{2,}", line)[0]: line for line in invoke("compare").output.splitlines()}
    assert re.split(r"\s{2,}", lines["params.lr"])[1:] == ["0.001", "0.004"]
    assert "params.batch_size" not in lines
    assert lines["val/loss best"].endswith("0.625 *")
    flipped = invoke("compare", "--metric", "val/loss", "--max", "val/loss").output
    assert "2 *" in flipped.replace("1.5 *", "2 *") and "train/lr" not in flipped
    rows = list(csv.DictReader(io.StringIO(invoke("compare", "--csv").stdout)))
    assert rows[0]["params.lr"] == "0.001" and rows[1]["val/loss best step"] == "19"
    assert rows[0]["train/lr best"] == "" == rows[0]["train/lr best step"]
    assert "none of these runs" in invoke("compare", "--metric", "x", status=3).output


def compared(*words: str) -> dict[str, dict]:
    return {row["metric"]: row for row in json.loads(invoke("compare", *words, "--json").stdout)}


def test_compare_json_has_a_row_for_each_metric(two_runs: list[mt.LoadedRun]) -> None:
    rows = compared()
    assert list(rows) == ["train/loss", "train/lr", "val/loss"]
    assert rows["val/loss"] == {
        "metric": "val/loss",
        "direction": "min",
        "why": None,
        "values": {"slow": 1.125, "fast one": 0.625},
        "last": {"slow": 1.125, "fast one": 0.625},
        "best": "fast one",
    }
    lr = rows["train/lr"]
    assert (lr["direction"], lr["best"], lr["why"]) == (None, None, "direction unknown")
    assert lr["values"] == {"slow": 1e-3, "fast one": 1e-3}
    flipped = compared("--max", "val/loss", "--metric", "val/loss")["val/loss"]
    assert flipped["direction"] == "max" and flipped["best"] == "slow"
    assert flipped["values"] == {"slow": 1.5, "fast one": 1.0} and flipped["last"]["slow"] == 1.125


def test_compare_json_tells_nan_and_infinity_from_never_logged() -> None:
    nan, inf = float("nan"), float("inf")
    write(Path("runs/e/a"), [(0, {"loss": nan}), (1, {"acc": inf})], name="a")
    write(Path("runs/e/b"), [(0, {"loss": 2.0}), (1, {"loss": -inf})], name="b")
    write(Path("runs/e/c"), [(0, {"loss": inf, "acc": -inf})], name="c")
    rows = compared()
    assert rows["loss"]["values"] == {"a": "NaN", "b": 2.0, "c": "Infinity"}
    assert rows["loss"]["last"] == {"a": "NaN", "b": "-Infinity", "c": "Infinity"}
    assert rows["acc"]["values"] == {"a": "Infinity", "c": "-Infinity"}
    # The only one with a finite value is better than those that diverged.
    assert rows["loss"]["best"] == "b" and rows["acc"]["best"] is None
    assert invoke("show", "@best:loss").output.startswith("e/b\n")


def test_compare_says_why_there_is_no_star() -> None:
    for name, temperature, acc in (("a", 1.0, 0.5), ("b", 2.0, 0.25)):
        with mt.start_run(run_name=name) as run:
            run.log_metrics({"temperature": temperature, "acc": acc, "size": 1}, step=0)
            run.define_metric("acc", mode="max" if name == "a" else "min")
            run.define_metric("size", mode="none")
    text = invoke("compare").output
    assert "*" not in text and "temperature best" not in text
    advice = "give --min METRIC or --max METRIC, or call run.define_metric"
    assert f"no best value of temperature: direction unknown; {advice}" in text
    assert "no best value of acc: the runs disagree: 'max' and 'min' are recorded" in text
    assert "no best value of size: recorded with mode='none'" in text
    rows = compared("--min", "acc", "--max", "temperature")
    assert [rows[n]["best"] for n in ("temperature", "acc", "size")] == ["b", "b", None]
    assert "0.5 *" in invoke("compare", "--max", "acc").output
    assert (
        "--min and to --max" in invoke("compare", "--max", "acc", "--min", "acc", status=2).output
    )


def test_every_reader_takes_the_direction_that_the_runs_recorded() -> None:
    for name, loss in (("a", 1.0), ("b", 2.0)):
        with mt.start_run(run_name=name) as run:
            run.log_metrics({"val/loss": loss, "temperature": loss}, step=0)
            run.define_metric("val/loss", mode="max")
    assert compared()["val/loss"]["best"] == "b"
    assert "default/b\n" in invoke("show", "@best:val/loss").output
    assert "default/a\n" in invoke("show", "@best:min:val/loss").output
    refusal = invoke("show", "@best:temperature", status=2).output
    assert "direction unknown; use @best:min:temperature or @best:max:temperature" in refusal
    assert "no best value of temperature: direction unknown" in invoke("show").output
    invoke("report", "-o", "report.html")
    html = Path("report.html").read_text()
    assert 'Best (the largest) val/loss: <b class="best">b</b>, 2 at step 0' in html
    assert "no best value of temperature: direction unknown; --min METRIC" in html
    invoke("report", "-o", "report.html", "--metric", "temperature", "--min", "temperature")
    assert (
        'Best (the smallest) temperature: <b class="best">a</b>' in Path("report.html").read_text()
    )


def test_compare_shows_how_code_and_packages_differ(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(
            ["git", *who, *words], check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init", "-q")
    commits = []
    for number in range(2):
        Path("model.py").write_text(f"width = {number}\n")
        git("add", "model.py")
        git("commit", "-qm", "x")
        commits.append(git("rev-parse", "HEAD"))
    for number, commit in enumerate(commits):
        folder = write(Path(f"runs/e/r{number}"), [], provenance={"git": {"commit": commit}})
        (folder / "requirements.txt").write_text(f"torch==2.{number}\nnumpy==1\n")
        (folder / "code.patch").write_text(f"+{number}\n")
    text = invoke("compare").output
    assert "model.py" in text and "torch: 2.0 -> 2.1" in text and "numpy" not in text
    assert "+width" not in text and "+width = 1" in invoke("compare", "--code").output


@pytest.mark.parametrize("name", ["c.png", "c.svg", "c.pdf"])
def test_plot_writes_a_picture(two_runs: list[mt.LoadedRun], name: str) -> None:
    words = ["--metric", "train/loss", "--metric", "val/loss", "--smooth", "0.5", "--log"]
    invoke("plot", "demo", *words, "--x", "tokens", "-o", name)
    begin = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[name[2:]]
    assert Path(name).read_bytes().startswith(begin)


def test_plot_in_the_terminal_shows_curves_and_names(two_runs: list[mt.LoadedRun]) -> None:
    text = invoke("plot", "--metric", "train/loss", "--x", "seconds").output
    assert "slow" in text and "fast one" in text and re.search("[⠁-⣿]", text)
    logarithmic = invoke("plot", "--metric", "train/loss", "--log").output
    assert "log10" not in logarithmic
    # The ends of the axis and the legend are values as they were logged.
    for line in (text.splitlines()[1], *text.splitlines()[-2:]):
        assert line.split()[0 if "┤" in line else -1] in logarithmic
    assert "there are train/loss" in invoke("plot", "--metric", "x", status=3).output
    assert "ending in .png or .svg or .pdf" in invoke("plot", "-o", "x.gif", status=2).output
    make_run("no tokens", experiment="other")
    assert "tokens_per_step" in invoke("plot", "other", "--x", "tokens", status=1).output


def test_export_writes_every_row(two_runs: list[mt.LoadedRun]) -> None:
    import pandas

    expected = mt.load_metrics(two_runs).reset_index()
    for name, read in {"m.csv": pandas.read_csv, "m.parquet": pandas.read_parquet}.items():
        invoke("export", "-o", name)
        table = read(name)
        assert table["train/loss"].tolist() == expected["train/loss"].tolist()
    assert len(json.loads((invoke("export", "-o", "m.json") and Path("m.json")).read_text())) == 40
    assert "ending in .csv" in invoke("export", "-o", "m.xls", status=2).output


# --- tail ---


def test_tail_follows_a_run_to_its_end_however_it_ends() -> None:
    code = (
        "import sys, mlflow_track as mt\n"
        "with mt.start_run(run_name='live') as run:\n"
        "    run._attempt.provenance.join()\n"
        "    for step, line in enumerate(sys.stdin):\n"
        "        run.log_metric('loss', step / 4, step=step)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    trainer = forked.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, text=True, env=environment
    )
    assert trainer.stdin is not None
    deadline = time.monotonic() + 90
    while not list(Path("runs").glob("*/*/training.log")) and time.monotonic() < deadline:
        time.sleep(0.05)
    tail = forked.Popen(
        [sys.executable, "-m", "mlflow_track.cli", "tail", "live"],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert tail.stdout is not None
    with tail, trainer:
        assert "starts in" in tail.stdout.readline()
        trainer.stdin.write("\n\n")
        trainer.stdin.flush()
        assert re.fullmatch(r"step [01]  loss 0(\.25)?\n", tail.stdout.readline())
        trainer.send_signal(signal.SIGKILL)
        assert tail.stdout.read().endswith("run live KILLED\n")
    assert tail.returncode == 1


# --- rm and gc ---


def test_rm_moves_to_the_trash_and_gc_frees_the_space(two_runs: list[mt.LoadedRun]) -> None:
    slow, fast = two_runs
    before = sorted(p.name for p in slow.path.iterdir())
    assert "would move" in invoke("rm", "slow", "--dry-run").output and slow.path.exists()
    invoke("rm", "slow")
    moved = Path("runs/.trash/demo", slow.id)
    assert not slow.path.exists() and sorted(p.name for p in moved.iterdir()) == before
    assert [run.id for run in mt.load_runs("runs")] == [fast.id]
    leftover = fast.path / ".tmp-run.json-1234"
    leftover.write_text("x")
    os.utime(leftover, (0, 0))
    young = fast.path / ".tmp-config.json-1234"
    young.write_text("x")
    assert "would remove" in invoke("gc", "--dry-run").output and moved.exists()
    invoke("gc")
    assert not moved.exists() and not leftover.exists()
    assert young.exists() and (fast.path / "metrics.csv").exists()


def test_a_run_that_came_back_from_the_trash_is_whole(two_runs: list[mt.LoadedRun]) -> None:
    slow = two_runs[0]
    moved = trash.move_to_trash(slow.path)
    moved.rename(slow.path)
    assert mt.load_run(slow.path).metrics()["val/loss"].dropna().iloc[-1] == 1.125


def test_a_running_run_is_not_thrown_away(monkeypatch: pytest.MonkeyPatch) -> None:
    with mt.start_run(run_name="live") as run:
        assert "is running and was not moved" in invoke("rm", "live", status=1).output
        with pytest.raises(mt.RunHeldError):
            trash.move_to_trash(run.path)
        assert run.path.exists()
        # The guard is the lock: without the look at it the run would go.
        monkeypatch.setattr(trash, "take_lock", lambda path: os.open(path, os.O_RDONLY))
        moved = trash.move_to_trash(run.path)
        moved.rename(run.path)


def test_completion_offers_runs_and_scripts(two_runs: list[mt.LoadedRun]) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "COMP_WORDS": "mlflow-track show fa",
        "COMP_CWORD": "2",
        "_MLFLOW_TRACK_COMPLETE": "bash_complete",
    }
    program = [
        sys.executable,
        "-c",
        "from mlflow_track.cli import main; main(prog_name='mlflow-track')",
    ]
    ran = forked.run(program, env=environment, capture_output=True, text=True)
    assert "plain,fast one" in ran.stdout
    for shell in ("bash", "zsh", "fish"):
        assert "_MLFLOW_TRACK_COMPLETE" in invoke("completion", shell).output
