"""Nothing secret reaches a record, its server or its logs, and nothing logged leaves its folder."""

from __future__ import annotations

import logging
import re
import shutil
import string
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mlflow_track as mt
from mlflow_track.artifacts import Artifacts
from mlflow_track.mirror.process import open_backend, sync_run
from mlflow_track.record.directory import RunDirectory
from mlflow_track.record.find import find_folders
from tests.secret_shapes import HARMLESS, SHAPES
from tests.secret_shapes import SECRET as CANARY

Script = Callable[..., subprocess.CompletedProcess[str]]
SECRET = b"canary"

# Every place where a secret could come from has one of its own, so that a leak says which.
LEAKY = """
import logging, os, pathlib, subprocess, sys
import mlflow_track as mt
try:
    with mt.start_run(
        experiment="secrets",
        backend="local",
        params={
            "db": "mysql://u:canary-param@h/d",
            "api_key": "canary-name",
            "credentials": {"user": "u", "value": ("canary-nested",)},
            "n": {"lr": 0.1},
            "path": pathlib.Path("s3://u:canary-path@h/d"),
            "bytes": b"redis://:canary-bytes@h",
            "hosts": {"redis://:canary-key@h": 1},
        },
        tags={"origin": "https://canary-token-0123456789abc@github.com/a/b"},
    ) as run:
        run.log_metrics({"loss": 1.0}, step=0)
        run.log_params({"late": ["redis://:canary-late@h"]})
        run.set_tag("hf_token", "canary-tag")
        run.log_input("data", sha256="ab", size_bytes=1, source="https://u:canary-source@h/f")
        run.print("connected to postgresql://u:canary-print@h/d")
        raise RuntimeError("no answer from postgresql://u:canary-error@h/d")
except RuntimeError:
    pass
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def git(*arguments: str) -> None:
    identity = ("-c", "user.name=n", "-c", "user.email=e@x")
    subprocess.run(["git", *identity, *arguments], check=True, capture_output=True)


def run_leaky(script: str, run_script: Script) -> Path:
    """Run the script in a git repository, with secrets all around it; returns the run's folder."""
    Path("leaky.py").write_text(script)
    Path(".env").write_text("DATABASE_PASSWORD=nothing\n")
    Path("code.py").write_text("URI = ''\n")
    git("init", "-q")
    git("add", "--force", ".env", "code.py")
    git("commit", "-q", "-m", "c")
    git("remote", "add", "origin", "https://u:canary-remote@github.com/a/b")
    Path(".env").write_text("DATABASE_PASSWORD=canary-dotenv\n")
    Path("code.py").write_text("URI = 'postgresql://u:canary-patch@h/d'\n")
    done = run_script(
        # As a program of its own: its text is not a part of its command line.
        "import os, sys; os.execv(sys.executable, [sys.executable, 'leaky.py', *sys.argv[1:]])",
        *("--password=canary-flag", "--token-file", "x", "--api-key", "canary-word"),
        "postgresql://u:canary-uri@h/d",
        AWS_SECRET_ACCESS_KEY="canary-environment",
        MLFLOW_TRACKING_PASSWORD="canary-password",
    )
    assert done.returncode == 0, done.stderr
    (run,) = mt.load_runs("runs")
    return run.path.absolute()


def test_no_secret_reaches_the_record_or_the_server(
    run_script: Script, migrated_database: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = run_leaky(LEAKY, run_script)
    record = contents(path)
    assert {name for name, data in record.items() if SECRET in data} == set()
    assert b"code.py" in record["code.patch"] and b"postgresql://u:***@h/d" in record["code.patch"]
    assert b"no answer from postgresql://u:***@h/d" in record["run.json"]
    (tmp_path / "server").mkdir()
    shutil.copy(migrated_database, tmp_path / "server/mlflow.db")
    monkeypatch.chdir(tmp_path / "server")
    assert sync_run(
        path,
        "mlflow",
        open_backend("mlflow", {"tracking_uri": f"sqlite:///{tmp_path}/server/mlflow.db"}),
    ).is_complete
    assert {n for n, data in contents(tmp_path / "server").items() if SECRET in data} == set()


UNGUARDED = """
from mlflow_track import attempt, checks, param_kinds, param_values
from mlflow_track.record import exit_status
from mlflow_track.record import directory, provenance
from mlflow_track.record.git import patch
patch.may_hold_secret = lambda text: False
for module in (attempt, provenance, directory, checks, param_kinds, param_values, exit_status):
    module.mask_password = lambda text: text
provenance.mask_command = list
checks.is_secret = param_values.is_secret = lambda name, value: False
"""


def test_without_the_mask_each_of_them_would_leak(run_script: Script) -> None:
    path = run_leaky(UNGUARDED + LEAKY, run_script)
    text = b"".join(contents(path).values()).decode(errors="replace")
    leaking = (
        "param name nested path bytes key token late tag print error flag word uri patch".split()
    )
    for source in leaking:
        assert f"canary-{source}" in text, source
    for source in ("environment", "password", "dotenv", "remote"):
        assert f"canary-{source}" not in text, source


# --- every shape, in every place ---


def marked(place: str, shape: str) -> str:
    """A secret of its own for each place and shape, of the same length."""
    number = list(SHAPES).index(shape)
    return f"{CANARY}{place}{number:03d}"


def test_no_shape_of_a_secret_is_in_any_file(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In params, tags, inputs, the log, the command, the patch, the remote and the error."""

    def texts(place: str) -> dict[str, str]:
        return {name: text.format(marked(place, name)) for name, text in SHAPES.items()}

    git("init", "-q")
    for name in ("t.py", "conf.yaml", "notes.txt"):
        Path(name).write_text("x = 1\n" * 9)
    git("add", ".")
    git("commit", "-q", "-m", "c")
    git("checkout", "-q", "-b", f"token={CANARY}")
    git("remote", "add", "origin", f"https://{CANARY}@github.com/a/b")
    git("config", "http.extraHeader", f"Authorization: Bearer {CANARY}")
    quoted = "".join(f"TEXTS += [{text!r}]\n" for text in texts("py").values())
    Path("t.py").write_text("x = 1\n" * 9 + "TEXTS = []\n" + quoted)
    Path("notes.txt").write_text("x = 1\n" * 9 + "\n".join(texts("txt").values()))
    Path("conf.yaml").write_text("\n".join(texts("yaml").values()))
    arguments = [sys.executable, "t.py", *texts("arg").values()]
    monkeypatch.setattr(sys, "orig_argv", [*arguments, "--password", CANARY, f"dbPwd={CANARY}"])
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    monkeypatch.setenv("WANDB_MODE", "offline")
    params = {"list": [*texts("list").values()]}
    logger = logging.getLogger("corpus")
    logger.propagate = False
    name = "; ".join(texts("name").values())
    with pytest.raises(RuntimeError), mt.start_run(params=params, run_name=name) as run:
        logger.addHandler(run.log_handler())
        for name, text in texts("param").items():
            run.log_param(f"p {name}", text)
            run.set_tag(f"t {name}", texts("tag")[name])
            run.log_summary({f"s {name}": texts("sum")[name]})
            run.log_input(name, sha256="ab", size_bytes=1, source=texts("input")[name])
            # As names, too: a dataset is called as its address.
            run.set_tag(text.replace("\n", " "), "x")
            run.log_summary({text.replace("\n", " "): 1})
            run.log_input(text, sha256=text, size_bytes=1, context=text)
            run.log_params({text: {text: 1}})
        run.log_metric("a", 1.0, step=0)
        run.log_text("x", "texts", step=0)
        run.log_histogram("weights", [1.0, 2.0], step=0)
        for text in texts("print").values():
            run.print(text)
        for text in texts("logging").values():
            logger.warning("it said %s", text)
        for name in ("dbPassword", "githubToken", "openaiApiKey", "clientSecret", "userPwd"):
            run.log_params({name: CANARY, f"n.{name}2": [CANARY]})
            run.set_tag(name, CANARY)
        raise RuntimeError("; ".join(texts("error").values()))
    # Images, texts, histograms and everything else, as other trackers keep them.
    for backend in ("tensorboard", "wandb"):
        assert sync_run(run.path, backend, open_backend(backend)).is_complete
    record = contents(run.path)
    assert any("tfevents" in file for file in record) and any(".wandb" in file for file in record)
    leaks = {
        (file, found.decode())
        for file, data in record.items()
        for found in re.findall(b"canary7canary7[a-z0-9]*", data.lower())
    }
    assert leaks == set()
    assert b"+++ b/notes.txt" in record["code.patch"] and record["run.json"].count(b"***") > 100
    assert "canary7canary7" not in "".join(capfd.readouterr()).lower()


def test_harmless_texts_stay_in_every_file() -> None:
    params = {f"p{n}": text for n, text in enumerate(HARMLESS)}
    numbers = {"max_tokens": 512, "token_embedding": 64, "num_tokens": 10**9, "tokenizer": "gpt2"}
    with mt.start_run(params={**params, **numbers}) as run:
        for text in HARMLESS:
            run.print(text)
    assert mt.load_run(run.path).params == {**params, **numbers}
    log = (run.path / "training.log").read_text()
    assert all(text in log for text in HARMLESS)
    assert "***" not in "".join((run.path / n).read_text() for n in ("run.json", "config.json"))


# --- names cannot lead out ---

PARTS = st.one_of(
    st.sampled_from(["..", ".", "", "/", "~", "a", "\x00", "\n", ".tmp-x", "x" * 300, "link"]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
)


@pytest.fixture
def linked(tmp_path: Path) -> Artifacts:
    """Artifacts among which somebody has put a link that leads out."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts" / "link").symlink_to(tmp_path / "elsewhere")
    return Artifacts(tmp_path / "artifacts", require_open=lambda: None)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(PARTS, max_size=5), is_absolute=st.booleans())
def test_an_artifact_is_inside_its_folder_or_refused(
    parts: list[str], is_absolute: bool, tmp_path: Path, linked: Artifacts
) -> None:
    name = ("/" if is_absolute else "") + "/".join(parts)
    root = linked.root
    outside = set(tmp_path.rglob("*")) - set(root.rglob("*"))
    try:
        written = linked.write_text("x", name)
    except (ValueError, OSError):
        written = None  # refused; by the file system where a part is a file already
    if written is not None:
        assert written.resolve().is_relative_to(root.resolve()) and written.read_text() == "x"
    assert set(tmp_path.rglob("*")) - set(root.rglob("*")) == outside


@given(name=st.text(string.printable + "é\x00", min_size=1, max_size=400).filter(str.strip))
def test_an_experiment_of_any_name_is_one_folder_that_its_name_finds(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("root")
    run = RunDirectory.create(root, experiment=name, name=name, tags={})
    run.release()
    assert run.path.parent.parent == root
    assert find_folders(root, name)[0] == [run.path]


def test_a_folder_that_is_named_through_its_child_is_copied_under_its_own_name() -> None:
    Path("data/inner").mkdir(parents=True)
    Path("data/f.txt").write_text("f")
    with mt.start_run() as run:
        # It writes to run.json as well.
        run._attempt.provenance.join()
        before = (run.path / "run.json").read_text()
        target = run.log_artifact("data/inner/..")
        assert target == run.path / "artifacts/data"
        assert (target / "f.txt").read_text() == "f"
        assert (run.path / "run.json").read_text() == before


def test_a_link_among_the_artifacts_leads_no_copy_out(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    Path("data/link").mkdir(parents=True)
    Path("data/link/f.txt").write_text("f")
    with mt.start_run() as run:
        (run.path / "artifacts/data").mkdir(parents=True)
        (run.path / "artifacts/data/link").symlink_to(elsewhere)
        with pytest.raises(ValueError, match="through a link"):
            run.log_artifact("data")
    assert list(elsewhere.iterdir()) == []
