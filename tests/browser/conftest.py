"""A headless Chromium, runs that were trained for it, and the sites that show them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mlflow_track.analysis.load import LoadedRun, load_runs
from mlflow_track.mirror.process import open_backend, sync_run
from tests import forked
from tests.environment import lack

ROOT = Path(__file__).resolve().parents[2]
PICTURES = ROOT / "test-results"
EXPERIMENT = "lines"
LEARNING_RATES = {"slow": 0.05, "fast Ω": 0.3}
STEPS = 40
# What MLflow's page asks for and its server does not have, and a message of the browser's own.
HARMLESS = ("/users/current", "ResizeObserver loop")


class Trainer:
    """A training process that does as many steps as it is told to."""

    def __init__(self, root: Path, name: str, learning_rate: float) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
        self._process = forked.Popen(
            [sys.executable, "-m", "tests.browser.training", EXPERIMENT, name, str(learning_rate)],
            cwd=ROOT,
            env={
                **environment,
                "MLFLOW_TRACK_DIR": str(root),
                "MLFLOW_TRACK_BACKEND": "local",
                # The last sample comes at the end of a run; one more makes a curve.
                "MLFLOW_TRACK_SYSTEM_METRICS": "0.2",
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def train(self, steps: int) -> int:
        """Do `steps` steps; returns how many were done in all."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def finish(self) -> None:
        self._process.communicate(timeout=100)
        assert self._process.returncode == 0


class Site(NamedTuple):
    """A server with the page that compares the trained runs, and how its runs are named there.

    Attributes:
        page: The URL that the command printed, or that MLflow documents.
        experiment: The page of the experiment, without what stands behind its id.
        ids: The run's id there, by the name of the run.
        has_best: Whether there are metrics `… min` and `… max`.
    """

    page: str
    experiment: str
    ids: dict[str, str]
    has_best: bool


@pytest.fixture(scope="package")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoadedRun]:
    """Two finished runs of one experiment, by name."""
    root = tmp_path_factory.mktemp("browser") / "runs of Zoë"
    trainers = [Trainer(root, name, rate) for name, rate in LEARNING_RATES.items()]
    for trainer in trainers:
        trainer.train(STEPS)
    for trainer in trainers:
        trainer.finish()
    return {run.name: run for run in load_runs(root)}


@pytest.fixture(scope="package")
def local_site(trained: dict[str, LoadedRun]) -> Iterator[Site]:
    """`mlflow-track ui` as a person starts it."""
    root = trained["slow"].path.parents[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow_track.cli", "ui", str(root), "--no-browser"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        page = process.stdout.readline().strip()
        assert page, "mlflow-track ui ended without printing its address"
        ids = {name: run.id for name, run in trained.items()}
        yield Site(page, page.partition("/runs?")[0], ids, has_best=True)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


@pytest.fixture(scope="package")
def mirror_site(trained: dict[str, LoadedRun], sqlite_server: Any) -> Site:
    """A real MLflow server that the mirror filled."""
    from mlflow import MlflowClient

    for run in trained.values():
        sync_run(run.path, "mlflow", open_backend("mlflow", {"tracking_uri": sqlite_server.uri}))
    client = MlflowClient(sqlite_server.uri)
    found = client.get_experiment_by_name(EXPERIMENT)
    assert found is not None
    ids = {run.info.run_name: run.info.run_id for run in client.search_runs([found.experiment_id])}
    experiment = f"{sqlite_server.uri}/#/experiments/{found.experiment_id}"
    page = f"{experiment}/runs?workflowType=machine_learning&compareRunsMode=CHART"
    return Site(page, experiment, ids, has_best=False)


@pytest.fixture(params=["local_site", "mirror_site"])
def site(request: pytest.FixtureRequest) -> Site:
    return request.getfixturevalue(request.param)


def find_chromium() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser")


# Not for the whole session: while it lives, an event loop runs in this thread.
@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    program = find_chromium()
    if program is None:
        lack("Chromium is not installed (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # root may not use the sandbox; the only pages are our own.
        chromium = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page with nothing remembered. At the end it must have had no error, and no other host."""
    context = browser.new_context(viewport={"width": 1500, "height": 900}, accept_downloads=True)
    # MLflow opens a chat beside every page until it is told once that this has happened.
    context.add_init_script(
        "localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true');"
        "localStorage.setItem('mlflow.assistant.panelOpen_v1', 'false');"
    )
    page = context.new_page()
    page.set_default_timeout(120_000)
    errors: list[str] = []
    hosts: set[str] = set()
    page.on("pageerror", lambda error: errors.append(f"exception: {error}"))
    page.on("request", lambda request: hosts.add(request.url.partition("/#")[0].split("/")[2]))
    page.on(
        "response",
        lambda answer: (
            errors.append(f"{answer.status} {answer.url}") if answer.status >= 400 else None
        ),
    )
    page.expected_errors = list(HARMLESS)
    yield page
    context.close()
    unexpected = [e for e in errors if not any(known in e for known in page.expected_errors)]
    assert unexpected == []
    assert {host.split(":")[0] for host in hosts if host} <= {"127.0.0.1"}


@pytest.fixture
def picture(page: Any, request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Keep what the page looks like, for people: test-results/<site>-<name>.png."""

    def keep(name: str) -> None:
        PICTURES.mkdir(exist_ok=True)
        kind = "mirror" if "mirror_site" in request.node.name else "local"
        page.screenshot(path=PICTURES / f"{kind}-{name}.png")

    return keep
