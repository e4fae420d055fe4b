"""What `mlflow-track ui` says where it cannot show anything; the page itself: tests/browser."""

from __future__ import annotations

import asyncio
import importlib.metadata
import socket

import pytest
from click.testing import CliRunner

import mlflow_track as mt
from mlflow_track.cli import main
from mlflow_track.ui.address import experiment_id_of, page_of
from mlflow_track.ui.app import read_only
from mlflow_track.ui.server import UiServer, UiServerError


def ui(*arguments: str) -> tuple[int, str]:
    ran = CliRunner().invoke(main, ["ui", *arguments, "--no-browser"])
    assert ran.exception is None or isinstance(ran.exception, SystemExit)
    return ran.exit_code, ran.output


def test_a_folder_without_runs_is_an_error(tmp_path):
    code, text = ui(str(tmp_path))
    assert code == 3 and f"there are no runs in {tmp_path}" in text
    assert ui(str(tmp_path / "none"))[0] == 3


def test_what_is_passed_over_is_said_with_the_reason(tmp_path):
    (tmp_path / "e" / "torn").mkdir(parents=True)
    (tmp_path / "e" / "torn" / "run.json").write_text("{")
    code, text = ui(str(tmp_path))
    assert code == 1 and "torn: run.json cannot be read" in text


def test_a_taken_port_is_named(tmp_path):
    with mt.start_run(directory=tmp_path, experiment="e"):
        pass
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, text = ui(str(tmp_path), "--port", str(port))
    assert code == 1 and f"port {port} is not available on 127.0.0.1" in text


def test_a_package_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: ())
    with pytest.raises(UiServerError, match=r"pip install -e \."), UiServer(tmp_path):
        pass


def test_the_page_compares_an_experiment_by_charts():
    assert page_of("http://127.0.0.1:1", "e").startswith(
        f"http://127.0.0.1:1/#/experiments/{experiment_id_of('e')}/runs?"
    )
    assert "compareRunsMode=CHART" in page_of("", "e")


@pytest.mark.parametrize(
    ("method", "path", "comes_through"),
    [
        ("GET", "/ajax-api/3.0/mlflow/assistant/config", True),
        ("HEAD", "/", True),
        ("POST", "/ajax-api/2.0/mlflow/runs/search", True),
        ("POST", "/graphql", True),
        # The store refuses it, with a message that the page shows.
        ("POST", "/ajax-api/2.0/mlflow/runs/update", True),
        ("PUT", "/ajax-api/3.0/mlflow/assistant/config", False),
        ("PATCH", "/ajax-api/2.0/mlflow/registered-models/update", False),
        ("DELETE", "/ajax-api/2.0/mlflow/logged-models/1", False),
        ("POST", "/ajax-api/3.0/mlflow/assistant/skills/install", False),
        ("POST", "/ajax-api/3.0/jobs/", False),
        ("POST", "/ajax-api/2.0/mlflow/upload-artifact", False),
        ("POST", "/gateway/mlflow/v1/chat/completions", False),
        ("BREW", "/", False),
    ],
)
def test_the_server_answers_what_reads_and_refuses_what_writes(method, path, comes_through):
    sent: list[dict] = []
    reached: list[str] = []

    async def server(scope, receive, send):
        reached.append(scope["path"])

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path}
    asyncio.run(read_only(server)(scope, lambda: asyncio.sleep(0, {}), send))
    assert (reached == [path]) is comes_through
    assert [message.get("status") for message in sent[:1]] == ([] if comes_through else [403])
