"""The report in a real browser: one file, no request, no error, readable on any screen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import mlflow_track as mt
from mlflow_track.cli import main
from tests.analysis.records import make_run

pytestmark = [pytest.mark.xdist_group("browser"), pytest.mark.timeout(300)]
PICTURES = Path(__file__).resolve().parents[2] / "test-results"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("report"))
        for number in range(6):
            make_run(f"run {number}", lr=1e-3 * (number + 1), kind="ab"[number % 2], floor=number)
        with mt.start_run(experiment="demo", run_name="files", backend="local") as run:
            run.log_metric("val/loss", 9.0, step=3)
            run.log_text("Once <upon> a time", "sample.txt")
        done = CliRunner().invoke(main, ["report", "runs", "-o", "report.html"])
        assert done.exit_code == 0, done.output
        return Path("report.html").absolute()


@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        (360, "light"),
        (1200, "dark"),
        pytest.param(360, "dark", marks=pytest.mark.tables),
        pytest.param(1200, "light", marks=pytest.mark.tables),
    ],
)
def test_the_report_opens_alone_and_fits(report, browser: Any, width: int, scheme: str) -> None:
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True
    )
    page = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(report.as_uri())
    assert page.locator("svg [id^=c0-run-]").count() >= 6
    # Text is as large as it can be read, in the colours of the page.
    text = page.locator("svg.chart text").first
    assert text.bounding_box()["height"] >= 8
    assert text.evaluate("e => getComputedStyle(e).fill") == page.evaluate(
        "getComputedStyle(document.body).color"
    )
    assert page.get_by_text("run 3").first.is_visible()
    # Wide tables scroll inside the page; the page itself does not.
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    channels = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g)")
    assert (sum(map(int, channels[:3])) > 380) == (scheme == "light")
    PICTURES.mkdir(exist_ok=True)
    page.screenshot(path=PICTURES / f"report-{width}-{scheme}.png")
    context.close()
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [report.as_uri()]
