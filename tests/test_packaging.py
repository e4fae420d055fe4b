"""Do the files that describe the package agree with each other and with the code?"""

from __future__ import annotations

import importlib
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from mlflow_track import settings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("mlflow_track", "train")
HEAVY = ("torch", "mlflow", "pandas", "matplotlib", "numpy", "safetensors")


def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def requirements(*extras: str) -> dict[str, Requirement]:
    project = pyproject()["project"]
    rows = project["dependencies"] + [
        row for extra in extras for row in project["optional-dependencies"][extra]
    ]
    parsed = [Requirement(row) for row in rows]
    # A back-port for an older Python than the tested one has no pin.
    return {
        canonicalize_name(row.name): row
        for row in parsed
        if row.marker is None or row.marker.evaluate({"python_version": "3.11"})
    }


def pins(rows: list[str]) -> dict[str, str]:
    """Package to version; every row must be an exact pin."""
    pinned = {}
    for row in rows:
        requirement = Requirement(row)
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", row
        pinned[canonicalize_name(requirement.name)] = specifier.version
    return pinned


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return pins([line for line in lines if line and not line.startswith("#")])


def conda() -> dict:
    return yaml.safe_load((ROOT / "conda.yaml").read_text())


def mlproject() -> dict:
    return yaml.safe_load((ROOT / "MLproject").read_text())


# --- The four files ---


def test_constraints_pin_every_dependency_inside_its_range():
    pinned = constraints()
    for name, requirement in requirements("mlflow", "analysis", "dev", "server").items():
        assert name in pinned, f"constraints.txt lacks {name}"
        assert requirement.specifier.contains(pinned[name]), f"{requirement}, pin {pinned[name]}"


def test_the_comparison_with_other_trackers_is_pinned_and_tests_our_own_pins():
    lines = [
        line
        for name in ("peers.txt", "aim.txt")
        for line in (ROOT / "benchmarks" / name).read_text().splitlines()
        if not line.startswith("#")
    ]
    pinned = pins(lines)
    assert set(requirements("bench")) - set(requirements()) <= set(pinned)
    peers = pins((ROOT / "benchmarks/peers.txt").read_text().splitlines()[1:])
    for name in ("torch", "mlflow", "orjson"):
        assert peers[name] == constraints()[name]


def test_constraints_name_no_build_of_torch():
    assert "+" not in constraints()["torch"]
    # nvidia-ml-py is 60 kB of Python that asks the driver, where there is one.
    names = set(constraints()) - {"nvidia-ml-py"}
    assert not [name for name in names if name.startswith(("nvidia", "triton", "cuda"))]


def test_conda_pins_the_dependencies_as_the_constraints_do():
    (pip_rows,) = [row["pip"] for row in conda()["dependencies"] if isinstance(row, dict)]
    pinned = constraints()
    assert pins(pip_rows) == {name: pinned[name] for name in requirements("mlflow", "analysis")}


def test_conda_pins_a_supported_python_and_lists_nothing_outside_pip():
    # MLflow drops every other conda package where it builds the environment without conda.
    python, pip, _ = conda()["dependencies"]
    assert pip == "pip"
    version = re.fullmatch(r"python=(\d+\.\d+\.\d+)", python)
    assert version, python
    assert SpecifierSet(pyproject()["project"]["requires-python"]).contains(version[1])


def test_mlproject_names_the_conda_file():
    assert (ROOT / mlproject()["conda_env"]).is_file()
    assert set(mlproject()["entry_points"]) == {"main", "resume", "plan", "sweep", "compare"}


def test_the_console_script_is_callable():
    module, _, name = pyproject()["project"]["scripts"]["mlflow-track"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))


@pytest.mark.parametrize(
    ("there", "words", "folder"),
    [
        ("3.11.7", [], ".venv"),
        ("3.11.7", ["PYTHON=./python3.11"], ".venv"),
        ("3.11.7", ["PYTHON=./python3.10"], ".venv-3.10"),
        (None, ["PYTHON=./python3.10"], ".venv"),
    ],
)
def test_another_python_gets_an_environment_of_its_own(there, words, folder, tmp_path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    for version in ("3.10", "3.11"):
        (tmp_path / f"python{version}").write_text(f"#!/bin/sh\necho {version}\n")
        (tmp_path / f"python{version}").chmod(0o755)
    if there:
        (tmp_path / ".venv").mkdir()
        (tmp_path / ".venv/pyvenv.cfg").write_text(f"home = /usr/bin\nversion = {there}\n")
    told = subprocess.run(
        ["make", "--dry-run", "test", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert re.findall(r"^(\S+)/bin/python -m pytest", told, re.MULTILINE) == [folder]


@pytest.mark.parametrize("version", ["3.10", "3.11", "3.13"])
def test_the_pins_of_a_python_are_those_of_the_packages_that_support_it(version):
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    rows = [Requirement(line) for line in lines if line and not line.startswith("#")]
    held = {
        canonicalize_name(row.name)
        for row in rows
        if row.marker is None or row.marker.evaluate({"python_version": version})
    }
    # numpy 2.4 and pandas 3 need Python 3.11: there 3.10 takes what pip finds.
    assert {"torch", "mlflow", "orjson", "safetensors"} <= held
    assert ({"numpy", "pandas", "matplotlib"} <= held) is (version != "3.10")


# --- MLproject and the flags of train ---


def command_of(entry_point: str, **parameters: str) -> list[str]:
    """The words that `mlflow run . -e ENTRY_POINT -P name=value …` executes after python -m."""
    from mlflow.projects._project_spec import load_project

    command = load_project(str(ROOT)).get_entry_point(entry_point).compute_command(parameters, None)
    assert command.startswith("python -m ")
    return shlex.split(command)[2:]


def test_mlflow_run_without_parameters_is_the_default_config():
    from train.config import Config
    from train.flags import parse

    program, *flags = command_of("main")
    assert program == "train" and parse(flags) == (Config(), {})


def test_mlflow_run_reaches_every_setting():
    from train.config import Config
    from train.flags import parse

    # Texts that a shell, or a second reader of the command, would take apart.
    texts = {"run_name": "a 'b' $c; d", "experiment": "e#f", "data": "", "position": "learned"}
    for item in fields(Config):
        if item.name == "config":
            continue
        default = getattr(Config(), item.name)
        text = texts.get(item.name, "" if default is None else str(default).lower())
        program, *flags = command_of("main", **{item.name: text})
        assert program == "train"
        assert flags[0] == f"--{item.name}" and flags[1:] == [text]
        found, _ = parse(flags)
        assert getattr(found, item.name) == (text or None if text in texts.values() else default)


def test_mlflow_run_with_an_unknown_parameter_names_the_near_one(
    capsys: pytest.CaptureFixture[str],
):
    from train.flags import parse

    with pytest.raises(SystemExit):
        parse(command_of("main", max_stepz="5")[1:])
    assert "unknown flag '--max-stepz'; did you mean --max-steps?" in capsys.readouterr().err


def test_resume_plan_and_sweep_bring_their_own_defaults():
    from train.config import Config
    from train.flags import parse
    from train.sweep import split

    assert parse(command_of("resume")[1:])[0].resume == "auto"
    assert parse(command_of("resume", resume="must", max_steps="5")[1:])[0].resume == "must"
    assert parse(command_of("plan", max_steps="5")[1:])[0] == Config(plan=True, max_steps=5)
    program, *flags = command_of("sweep", seed="3", run_name="grid")
    assert program == "train.sweep"
    fixed, grid = split(flags)
    assert fixed == {"--seed": "3", "--run-name": "grid"}
    assert grid == {"--learning-rate": ["0.001", "0.002", "0.004"]}


def test_no_parameter_is_of_a_type_that_mlflow_resolves():
    # `path` must exist relative to the caller's folder, and `uri` must be one: both refuse ''.
    for entry_point in mlproject()["entry_points"].values():
        for name, parameter in entry_point.get("parameters", {}).items():
            assert parameter["type"] in ("string", "float"), name


def test_the_tree_in_the_readme_has_every_module():
    tree = (ROOT / "README.md").read_text().split("## What lies where")[1].split("```")[1]
    names = {
        path.name if path.suffix else f"{path.name}/"
        for package in PACKAGES
        for path in (ROOT / package).iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert [name for name in sorted(names) if not re.search(rf"\s{name}[\s,]", tree)] == []


# Said by one of our processes to another.
INTERNAL = {"COMPLETE", "PARENT_RUN_ID", "REPLAY", "WORKING_FOLDER"}


def test_the_readme_has_every_variable_of_the_environment():
    text = "".join(path.read_text() for path in (ROOT / "mlflow_track").rglob("*.py"))
    read = set(re.findall(r"\bMLFLOW_TRACK_([A-Z_]*[A-Z])\b", text))
    told = set(re.findall(r"^\| `MLFLOW_TRACK_([A-Z_]+)`", (ROOT / "README.md").read_text(), re.M))
    assert read - INTERNAL == told
    # Of others a run says that nobody reads them.
    assert {f"MLFLOW_TRACK_{name}" for name in read - {"COMPLETE"}} == settings._VARIABLES


def test_a_mistyped_variable_is_named_once(monkeypatch, capfd):
    settings._warn_of_unknown.cache_clear()
    for name in ("BACKENDS", "MLFLOW_OPTION", "DIR"):
        monkeypatch.setenv(f"MLFLOW_TRACK_{name}", "x")
    for _ in range(2):
        settings.read_settings()
    said = capfd.readouterr().err
    assert said == (
        "WARNING: unknown variable MLFLOW_TRACK_BACKENDS; did you mean 'MLFLOW_TRACK_BACKEND'?\n"
    )


# --- What an import costs ---


def test_importing_mlflow_track_loads_no_heavy_package():
    program = f"import sys, mlflow_track; print([n for n in {HEAVY!r} if n in sys.modules])"
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "[]"
