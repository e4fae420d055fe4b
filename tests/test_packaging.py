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
    assert set(mlproject()["entry_points"]) == {"main", "resume", "sweep", "compare"}


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


def as_mlflow_says_it(value: object) -> str:
    """A default on the command line of `mlflow run`: there is neither a None nor a bare flag."""
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def config_defaults() -> dict[str, str]:
    """What MLproject says; without `config`, because MLflow passes every flag and flags beat it."""
    from train.config import Config

    names = [field.name for field in fields(Config) if field.name != "config"]
    return {name: as_mlflow_says_it(getattr(Config(), name)) for name in names}


SWEEP = {"learning_rate": "0.001,0.002,0.004", "seed": "1,2"}


@pytest.mark.parametrize(
    ("entry_point", "changed"), [("main", {}), ("resume", {"resume": "auto"}), ("sweep", SWEEP)]
)
def test_an_entry_point_has_the_parameters_and_defaults_of_the_config(entry_point, changed):
    parameters = mlproject()["entry_points"][entry_point]["parameters"]
    defaults = {name: str(parameter["default"]) for name, parameter in parameters.items()}
    assert defaults == config_defaults() | changed


@pytest.mark.parametrize("entry_point", ["main", "resume", "sweep"])
def test_an_entry_point_passes_each_parameter_under_its_own_flag(entry_point):
    command = mlproject()["entry_points"][entry_point]["command"]
    program, *words = command.split(" --")
    assert program == ("python -m train.sweep" if entry_point == "sweep" else "python -m train")
    assert words == [f"{name.replace('_', '-')} {{{name}}}" for name in config_defaults()]


def test_the_command_that_mlflow_builds_is_the_default_config():
    from train.config import Config, parse

    entry_point = mlproject()["entry_points"]["main"]
    # As mlflow.projects does it: str, quoted for the shell, put into the command.
    words = {
        name: shlex.quote(str(parameter["default"]))
        for name, parameter in entry_point["parameters"].items()
    }
    flags = shlex.split(entry_point["command"].format(**words))[3:]
    assert parse(flags) == (Config(), {})


def test_no_parameter_is_of_a_type_that_mlflow_resolves():
    # `path` must exist relative to the caller's folder, and `uri` must be one: both refuse ''.
    for entry_point in mlproject()["entry_points"].values():
        for name, parameter in entry_point["parameters"].items():
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


# --- What an import costs ---


def test_importing_mlflow_track_loads_no_heavy_package():
    program = f"import sys, mlflow_track; print([n for n in {HEAVY!r} if n in sys.modules])"
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "[]"
