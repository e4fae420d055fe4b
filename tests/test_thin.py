"""The base install: no mlflow, pandas, matplotlib, rich or safetensors; what needs one says so."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import mlflow_track as mt
from tests.forking import ForkingInterpreter

ROOT = Path(__file__).resolve().parent.parent
EXTRA = ("mlflow", "pandas", "matplotlib", "rich", "safetensors", "IPython", "sqlalchemy", "flask")
# What every Python process of a test imports first.
BLOCK = f"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {EXTRA!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked())
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: (
    None if name.partition(".")[0] in {EXTRA!r} else found(name, package)
)
"""
JOB = """
import sys, torch, mlflow_track as mt
weight = torch.zeros(3)
with mt.start_run(run_name="thin", params={"lr": 1}, resume="auto") as run:
    checkpoints = run.checkpoints(save=mt.EverySteps(2))
    state = {"weight": weight}
    for step in range(checkpoints.restore(state), 6):
        weight += 1
        run.log_metrics({"loss": 1 / (step + 1)}, step=step)
        checkpoints.step(step, state)
        if step == 3 and "stop" in sys.argv:
            raise SystemExit(3)
assert weight.tolist() == [6.0] * 3, weight
"""
WORKS = (
    *("ls", "show thin", "ckpt ls thin", "ckpt verify thin", "compare thin"),
    *("export thin", "plot thin", "du thin"),
)
NEEDS_MORE = {
    "plot thin -o curves.png": 'matplotlib is not installed: pip install "mlflow-track[analysis]"',
    "ui": 'mlflow is not installed: pip install "mlflow-track[mlflow]"',
    "report thin": 'matplotlib is not installed: pip install "mlflow-track[analysis]"',
}


@pytest.fixture
def thin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of this test have the base install only."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(BLOCK)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{folder}")


def command(line: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "mlflow_track.cli", *line.split()]
    return subprocess.run(words, capture_output=True, text=True, timeout=100)


def test_the_base_install_records_resumes_and_lists(
    thin: None, run_interpreter: Callable[..., Any]
) -> None:
    stopped = run_interpreter(JOB, "stop")
    assert stopped.returncode == 3, stopped.stderr
    done = run_interpreter(JOB)
    assert done.returncode == 0, done.stderr
    assert "exact: yes" in done.stderr
    path = {"PYTHONPATH": os.environ["PYTHONPATH"]}
    with ForkingInterpreter("import mlflow_track.cli", environment=path) as interpreter:

        def command_here(line: str) -> subprocess.CompletedProcess[str]:
            return interpreter.run(f"mlflow_track.cli.main({line.split()})")

        for line in WORKS:
            shown = command_here(line)
            assert shown.returncode == 0, (line, shown.stderr)
        assert "thin" in command_here("ls").stdout
        for line, said in NEEDS_MORE.items():
            shown = command_here(line)
            assert shown.returncode == 1, (line, shown)
            assert said in shown.stderr and "Traceback" not in shown.stderr, (line, shown.stderr)


def test_a_run_whose_backend_is_not_installed_is_recorded_and_synced_later(
    thin: None, run_interpreter: Callable[..., Any], store: str, monkeypatch: Any
) -> None:
    code = """
    import mlflow_track as mt
    with mt.start_run(experiment="e", backend="mlflow") as run:
        run.log_metric("a", 1.0, step=0)
        assert not run.sync_status().is_complete and run.url is None
    """
    done = run_interpreter(code, MLFLOW_TRACKING_URI=store)
    assert done.returncode == 0, done.stderr
    said = 'WARNING: mlflow is not installed: pip install "mlflow-track[mlflow]"'
    assert done.stderr.count(said) == 1
    (record,) = mt.load_runs("runs")
    assert record.status == "FINISHED"
    assert not (record.path / "mirror.log").exists()
    shown = command("sync runs --as-recorded")
    assert shown.returncode == 1 and "mlflow is not installed" in shown.stderr
    # Then it is.
    monkeypatch.delenv("PYTHONPATH")
    shown = command("sync runs --as-recorded")
    assert shown.returncode == 0 and "mlflow has everything (1 row)" in shown.stdout, shown


@pytest.mark.tables
@pytest.mark.timeout(1800)
def test_what_conda_yaml_lists_is_enough_for_mlflow_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, source = tmp_path / "environment", tmp_path / "source"
    venv.create(place, with_pip=True)
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "runs", "__pycache__"))
    (rows,) = [
        row["pip"]
        for row in yaml.safe_load((source / "conda.yaml").read_text())["dependencies"]
        if isinstance(row, dict)
    ]
    pip = [place / "bin" / "python", "-m", "pip", "install", "-qq", "-c", ROOT / "constraints.txt"]
    subprocess.run([*pip, *rows], check=True)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setenv("PATH", f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    words = ["run", ".", "--env-manager=local", "-P", "max_steps=20", "-P", "warmup_steps=5"]
    done = subprocess.run(
        [place / "bin" / "mlflow", *words], cwd=source, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "mlflow has everything (20 rows)" in done.stderr + done.stdout


@pytest.mark.tables
@pytest.mark.timeout(1800)
def test_a_real_base_install_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fresh environment with nothing but the base."""
    place = tmp_path / "environment"
    venv.create(place, with_pip=True)
    python = place / "bin" / "python"
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "runs", "__pycache__"))
    subprocess.run(
        [python, "-m", "pip", "install", "-qq", "-c", ROOT / "constraints.txt", source], check=True
    )
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format=freeze"], capture_output=True, text=True, check=True
    ).stdout
    assert not {name for name in EXTRA if f"\n{name}==" in f"\n{listed}".lower()}
    monkeypatch.delenv("PYTHONPATH", raising=False)
    subprocess.run([python, "-c", JOB], check=True)
    for line in WORKS:
        subprocess.run([place / "bin" / "mlflow-track", *line.split()], check=True)
    for line, said in NEEDS_MORE.items():
        shown = subprocess.run(
            [place / "bin" / "mlflow-track", *line.split()], capture_output=True, text=True
        )
        assert shown.returncode == 1 and said in shown.stderr, shown
