"""Who imports whom, and how large files and folders are: the rules of docs/architecture.md."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import mlflow_track

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "mlflow_track"
MOST_LINES, MOST_FILES = 330, 24

# Bottom to top: a module imports its own layer and those before it, also for types and inside
# functions. A module belongs to the longest name here that its own name begins with.
LAYERS = (
    ("extras", "wording", "formats"),
    ("record",),
    ("checks", "stop", "param_kinds"),
    ("media",),
    ("param_values", "artifacts", "log_handler", "repeats", "divergence", "series"),
    ("checkpoint.policy", "checkpoint.disk"),
    ("checkpoint.state",),
    ("checkpoint.writer",),
    ("checkpoint",),
    ("plugins", "project"),
    ("settings",),
    ("backends.protocol",),
    ("importers.source", "importers.sqlite"),
    ("mirror",),
    ("resume",),
    ("analysis",),
    ("attempt",),
    ("verbs",),
    ("run",),
    ("start",),
    ("draw",),
    ("ui",),
    ("importers",),
    ("",),
    ("cli",),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
# Those that see less than what is below them.
SEE = {
    "checkpoint.policy": {"wording", "record", "checks"},
    "checkpoint.disk": {"wording", "record", "checks"},
    "backends.protocol": {"record"},
    "importers.source": {"wording", "record", "series"},
    "importers.sqlite": {"record"},
    "importers": {
        *("extras", "wording", "formats", "record", "checks", "param_values", "series"),
        *("importers.source", "importers.sqlite"),
    },
    "analysis": {"extras", "wording", "record", "checks", "checkpoint.disk"},
    "draw": {"extras", "wording", "record", "checks", "checkpoint.disk", "analysis"},
    "ui": {"extras", "wording", "record", "checks", "checkpoint.disk", "analysis", "draw"},
}
# A source of runs that belongs to a backend lies beside it.
BACKEND_SEES = {
    *("extras", "wording", "formats", "record", "series", "backends.protocol"),
    *("importers.source", "importers.sqlite"),
}
# Loaded by name: what shows a run in a notebook. Backends are loaded by entry point.
BY_NAME = {
    ("mlflow_track/analysis/load.py", "mlflow_track.draw.notebook"),
}
# They start processes and tell them where the package lies; they take no name from it.
IMPORT_THE_PACKAGE = {
    "mlflow_track/checkpoint/writer/process.py",
    "mlflow_track/mirror/companion.py",
}
# Each in its backend alone; MLflow in the UI on records, too, which is made of its server.
TRACKERS = {
    "mlflow": ("mlflow_track/backends/mlflow/", "mlflow_track/ui/"),
    "wandb": ("mlflow_track/backends/wandb", "mlflow_track/importers/wandb"),
    "tensorboard": ("mlflow_track/backends/tensorboard", "mlflow_track/importers/tensorboard"),
}
# Under `mlflow run` a sweep has the id of an experiment and needs its name; no public name asks.
# Sizes are read and written by one pair of functions.
TRAIN_MAY = {
    ("train/sweep.py", "mlflow_track.backends.mlflow.store"),
    ("train/flags.py", "mlflow_track.wording"),
    ("train/memory.py", "mlflow_track.wording"),
}


def name_of(path: Path, root: Path) -> str:
    """A file as the dotted name of its module."""
    return (
        path.relative_to(root)
        .with_suffix("")
        .as_posix()
        .replace("/", ".")
        .removesuffix(".__init__")
    )


def imported(path: Path, modules: set[str]) -> Iterator[tuple[str, bool]]:
    """Every module that a file imports or loads by a literal name; whether it is loaded by name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: imports are absolute"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield (name if name in modules else node.module), False
        elif isinstance(node, ast.Call) and node.args:
            function = node.func
            called = (
                function.attr
                if isinstance(function, ast.Attribute)
                else getattr(function, "id", "")
            )
            (first, *_) = node.args
            if called in ("import_module", "__import__") and isinstance(first, ast.Constant):
                yield str(first.value), True


def layer_of(module: str) -> str:
    """The layer of a module of the package, named without the package."""
    parts = module.split(".")
    for count in range(len(parts), 0, -1):
        if (name := ".".join(parts[:count])) in RANK:
            return name
    return "backends" if parts[0] == "backends" else parts[0]


def may_import(file: str, module: str, target: str, is_by_name: bool) -> bool:
    package, _, rest = target.partition(".")
    if package in TRACKERS:
        return file.startswith(TRACKERS[package])
    if package == "train":
        return file.startswith("train/")
    if package != "mlflow_track":
        return True
    if file.startswith("train/"):
        return not rest or (file, target) in TRAIN_MAY
    if is_by_name:
        return (file, target) in BY_NAME
    if not rest:
        return file in IMPORT_THE_PACKAGE or file.startswith("mlflow_track/cli/")
    here, there = layer_of(module.removeprefix("mlflow_track").lstrip(".")), layer_of(rest)
    if here == there:
        return True
    if here.startswith("backends") and here not in RANK:
        return there in BACKEND_SEES
    if there.startswith("backends") and there not in RANK:
        return False
    if here in SEE:
        return there in SEE[here]
    return RANK[there] < RANK[here]


def files(root: Path) -> list[Path]:
    return sorted(
        path for name in ("mlflow_track", "train") for path in (root / name).rglob("*.py")
    )


def violations(root: Path) -> list[str]:
    """The imports under `root` that the rules forbid."""
    modules = {name_of(path, ROOT) for path in files(ROOT)}
    return [
        f"{path.relative_to(root).as_posix()} imports {target}"
        for path in files(root)
        for target, is_by_name in sorted(set(imported(path, modules)))
        if not may_import(
            path.relative_to(root).as_posix(), name_of(path, root), target, is_by_name
        )
    ]


def cycle(root: Path) -> list[str]:
    """Modules that import each other in a circle; types and functions count."""
    modules = {name_of(path, root): path for path in files(root)}
    graph = {
        name: {target for target, _ in imported(path, set(modules)) if target in modules} - {name}
        for name, path in modules.items()
    }
    # The package itself gives names out and takes them from everywhere, each when it is asked for.
    graph["mlflow_track"] = set()
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def long_files(root: Path) -> list[str]:
    return [
        f"{path.relative_to(root).as_posix()}: {lines} lines"
        for path in (root / "mlflow_track").rglob("*.py")
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MOST_LINES
    ]


def full_folders(root: Path) -> list[str]:
    folders = {path.parent for path in (root / "mlflow_track").rglob("*.py")}
    counts = {folder: len(list(folder.glob("*.py"))) for folder in folders}
    return [
        f"{folder.name}: {count} files" for folder, count in counts.items() if count > MOST_FILES
    ]


def test_imports_go_one_way():
    assert violations(ROOT) == []


def test_imports_have_no_circle():
    assert cycle(ROOT) == []


def test_files_and_folders_are_small():
    assert long_files(ROOT) + full_folders(ROOT) == []


def write(root: Path, file: str, text: str) -> None:
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(text)


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("record/files.py", "from mlflow_track.checkpoint.disk.store import Checkpoint"),
        (
            "record/files.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n"
            "    from mlflow_track.checks import word",
        ),
        ("checkpoint/disk/store.py", "from mlflow_track import run"),
        ("checkpoint/policy/budget.py", "from mlflow_track.checkpoint.ranks import Ranks"),
        ("analysis/load.py", "import mlflow_track"),
        ("analysis/load.py", "from mlflow_track.mirror.state import MirrorState"),
        (
            "analysis/load.py",
            "import importlib\nimportlib.import_module('mlflow_track.draw.report')",
        ),
        ("mirror/process.py", "def f():\n    from mlflow_track.analysis import load"),
        ("mirror/process.py", "from mlflow_track.backends.mlflow.store import MlflowStore"),
        ("backends/mlflow/store.py", "from mlflow_track.mirror.state import MirrorState"),
        ("run.py", "from mlflow_track.cli import main"),
        ("cli/show.py", "import wandb"),
        ("mirror/process.py", "import mlflow"),
        ("run.py", "from train.config import Config"),
    ],
)
def test_an_import_that_goes_another_way_is_found(file: str, line: str, tmp_path: Path):
    """The negative control."""
    write(tmp_path, f"mlflow_track/{file}", f"import torch\n{line}\n")
    assert [found.split(" imports ")[0] for found in violations(tmp_path)] == [
        f"mlflow_track/{file}"
    ]


@pytest.mark.parametrize(
    "line", ["from mlflow_track.run import Run", "from mlflow.entities import Run"]
)
def test_train_that_takes_more_than_public_names_is_found(line: str, tmp_path: Path):
    write(tmp_path, "train/loop.py", line)
    assert len(violations(tmp_path)) == 1


def test_a_circle_a_long_file_and_a_full_folder_are_found(tmp_path: Path):
    """The negative control."""
    write(tmp_path, "mlflow_track/record/a.py", "def f():\n    import mlflow_track.record.b")
    write(tmp_path, "mlflow_track/record/b.py", "from mlflow_track.record.a import f")
    assert set(cycle(tmp_path)) == {"mlflow_track.record.a", "mlflow_track.record.b"}
    write(tmp_path, "mlflow_track/record/long.py", "\n" * (MOST_LINES + 1))
    assert len(long_files(tmp_path)) == 1
    for number in range(MOST_FILES):
        write(tmp_path, f"mlflow_track/record/f{number}.py", "")
    assert len(full_folders(tmp_path)) == 1


def test_the_page_about_the_architecture_is_short():
    assert len((ROOT / "docs" / "architecture.md").read_text().splitlines()) < 150


def test_every_rule_is_about_something_that_is_there():
    modules = {name_of(path, ROOT) for path in files(ROOT)}
    for layer in filter(None, RANK):
        assert f"mlflow_track.{layer}" in modules, layer
    for file, target in BY_NAME | TRAIN_MAY:
        assert target in {name for name, _ in imported(ROOT / file, modules)}, file
    assert set(mlflow_track.__all__) <= set(dir(mlflow_track))


def test_names_of_files_of_a_run_are_written_once():
    """Every other module takes them from `record/layout.py`."""
    layout = PACKAGE / "record" / "layout.py"
    names = {
        node.value.value
        for node in ast.parse(layout.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Constant)
        and "." in node.value.value
    }
    assert {"run.json", "metrics.csv", "manifest.json"} <= names
    written = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.value}"
        for path in PACKAGE.rglob("*.py")
        if path != layout
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in names
    ]
    assert written == []
