"""Where does a run lie whose project `mlflow run` has copied into a temporary folder?"""

from __future__ import annotations

import os
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

import mlflow_track as mt
from mlflow_track import project
from mlflow_track.project import Ancestor, calling_folder, from_calling_folder, temporary_copy

COPY, CALLER = Path("/tmp/tmpab12_x9z"), Path("/home/me")
CLI = ("python", "/venv/bin/mlflow", "run", "https://host/project")
JOB, SCRIPT = ("python", "-m", "train"), ("python", "run_projects.py")
PROGRAM = "import mlflow_track as mt; mt.start_run(experiment='e', backend='local').finish()"


@pytest.mark.parametrize(
    ("ancestors", "expected"),
    [
        ([(CALLER, CLI)], CALLER),
        ([(COPY, ("bash", "-c", "python -m train")), (CALLER, CLI)], CALLER),
        ([(COPY, JOB), (CALLER, ("python", "-m", "mlflow", "run", "x")), (Path("/"), ())], CALLER),
        ([(COPY, JOB), (CALLER, SCRIPT), (Path("/"), ())], CALLER),
        # Its own folder: `mlflow run .` was called in it.
        ([(COPY / "sub", JOB), (COPY, CLI), (CALLER, ("bash",))], COPY),
        ([(COPY, JOB)], None),
        ([], None),
    ],
)
def test_calling_folder_is_that_of_mlflow_run(ancestors, expected):
    assert calling_folder(COPY, (Ancestor(*a) for a in ancestors)) == expected


@pytest.mark.parametrize(
    ("here", "files", "is_copy"),
    [
        ("tmpab12_x9z", ["tmpab12_x9z/.git"], True),
        ("tmpab12_x9z/sub", ["tmpab12_x9z/.git", "tmpab12_x9z/sub"], True),
        ("tmpab12_x9z", ["tmpab12_x9z/MLproject"], True),
        ("tmpab12_x9z", ["tmpab12_x9z/train.py"], False),
        ("case-ab12x9zq", ["case-ab12x9zq/.git"], False),
        ("tmpab12_x9z_", ["tmpab12_x9z_/.git"], False),
    ],
)
def test_temporary_copy_is_what_mlflow_has_made(here, files, is_copy, tmp_path: Path):
    for name in files:
        (tmp_path / name).mkdir(parents=True)
    found = temporary_copy(tmp_path / here, tmp_path)
    assert found == (tmp_path / here.split("/")[0] if is_copy else None)
    assert temporary_copy(tmp_path / here, tmp_path / "elsewhere") is None


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary copy of a project: the working folder of a process of `mlflow run`."""
    folder = tmp_path / "tmpab12_x9z"
    (folder / ".git").mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(folder)
    for name in project._VARIABLES:
        monkeypatch.setenv(name, "0")
    project._caller_of.cache_clear()
    return folder


def called_from(folder: Path | None, monkeypatch: pytest.MonkeyPatch) -> None:
    ancestors = [] if folder is None else [Ancestor(folder, CLI)]
    monkeypatch.setattr(project, "_ancestors", lambda: iter(ancestors))


def test_from_calling_folder_leaves_other_paths_as_they_are(copy, tmp_path, monkeypatch):
    called_from(tmp_path, monkeypatch)
    assert from_calling_folder("runs") == tmp_path / "runs"
    assert from_calling_folder("/data/runs") == Path("/data/runs")
    assert from_calling_folder("~/runs") == Path.home() / "runs"
    monkeypatch.delenv("MLFLOW_RUN_ID")
    assert from_calling_folder("runs") == copy / "runs"


def test_from_calling_folder_stays_where_mlflow_run_was_called_there(copy, monkeypatch, capfd):
    called_from(copy, monkeypatch)
    assert from_calling_folder("runs") == copy / "runs"
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("caller", [None, Path("/proc/1")])
def test_from_calling_folder_warns_once_where_it_has_to_stay(caller, copy, monkeypatch, capfd):
    called_from(caller, monkeypatch)
    monkeypatch.setattr(os, "access", lambda path, mode: path != caller)
    for _ in range(2):
        assert from_calling_folder("runs") == copy / "runs"
    (line,) = capfd.readouterr().err.splitlines()
    why = "is not known" if caller is None else "/proc/1 cannot be written"
    assert line == (
        f"WARNING: the run is recorded in {copy}, a temporary copy of the project, because the "
        f"folder that mlflow run was called from {why}; set MLFLOW_TRACK_DIR to an absolute path"
    )


def test_mlflow_run_of_a_project_elsewhere_records_in_the_calling_folder(run_script, tmp_path):
    """A zip is unpacked where a git URL is cloned; MLflow's own code, and a real job."""
    with zipfile.ZipFile("project.zip", "w") as archive:
        command = f"{sys.executable} program.py"
        archive.writestr("MLproject", f"name: p\nentry_points: {{main: {{command: {command}}}}}\n")
        archive.writestr("program.py", PROGRAM)
    (tmp_path / "temporary").mkdir()
    done = run_script(
        """
        import tempfile
        tempfile.tempdir = None  # It is read from the environment again.
        import mlflow
        mlflow.projects.run("project.zip", env_manager="local")
        """,
        TMPDIR=str(tmp_path / "temporary"),
        MLFLOW_TRACKING_URI=(tmp_path / "mlruns").as_uri(),
        MLFLOW_ALLOW_FILE_STORE="true",
        GIT_PYTHON_REFRESH="quiet",
    )
    assert done.returncode == 0, done.stderr
    (run,) = mt.load_runs("runs")
    assert run.status == "FINISHED" and run.experiment == "e"
    assert list((tmp_path / "temporary").glob("tmp*/program.py"))
    assert not list((tmp_path / "temporary").glob("tmp*/runs"))
