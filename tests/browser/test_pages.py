"""MLflow's UI in a real browser: on records without a server, and on a server the mirror filled."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from mlflow_track.record.rows import iterate_rows
from tests.browser.conftest import LEARNING_RATES, STEPS, Trainer

pytestmark = [pytest.mark.xdist_group("browser"), pytest.mark.timeout(300)]

TABLE = "/runs?workflowType=machine_learning"
SELECT_ROW = "input[type=checkbox][aria-label*='toggle row selection']"
# What the charts on the page draw: for each metric and run the points of its line.
DRAWN = """metric => Object.fromEntries(
    Array.from(document.querySelectorAll('.js-plotly-plot'))
        .flatMap(plot => plot.data || [])
        .filter(line => line.metricKey === metric && line.name)
        .map(line => [line.name, Array.from(line.x, (x, at) => [x, line.y[at]])]))"""


def open_table(page: Any, site: Any) -> None:
    page.goto(site.experiment + TABLE)
    for name in LEARNING_RATES:
        page.get_by_role("link", name=name, exact=True).wait_for()


def open_run(page: Any, site: Any, name: str, tab: str = "") -> None:
    page.goto(f"{site.experiment}/runs/{site.ids[name]}{tab}")
    page.get_by_role("heading", name=name).first.wait_for()


def recorded(run: Any, metric: str) -> list[tuple[int, float]]:
    rows = iterate_rows(run.path / "metrics.csv")
    return [(row.step, row.values[metric]) for row in rows if metric in row.values]


def lines_drawn(page: Any, metric: str, points: int, *names: str) -> dict[str, Any]:
    """The lines of a metric by the name of their run, once those of `names` have all points."""
    page.wait_for_function(
        f"""([metric, points, names]) => {{
            const lines = ({DRAWN})(metric);
            return names.every(name => name in lines && lines[name].length >= points);
        }}""",
        arg=[metric, points, names],
    )
    lines = page.evaluate(DRAWN, metric)
    return {name: [tuple(point) for point in line] for name, line in lines.items()}


def test_the_page_opens_on_charts_with_every_value_of_every_run(page, site, trained, picture):
    answers: list[Any] = []
    page.on("response", lambda answer: answers.append(answer))
    page.goto(site.page)
    lines = lines_drawn(page, "train/loss", STEPS, *LEARNING_RATES)
    picture("charts")
    expected = {name: recorded(run, "train/loss") for name, run in trained.items()}
    assert lines == expected
    # And what the page was given, run by run.
    asked = "get-history-bulk-interval?"
    of_metric = re.compile(re.escape(asked) + r".*metric_key=train%2Floss&")
    (answer,) = [answer for answer in answers if of_metric.search(answer.url)]
    given: dict[str, list[tuple[int, float]]] = {}
    for point in answer.json()["metrics"]:
        given.setdefault(point["run_id"], []).append((point.get("step", 0), point["value"]))
    assert given == {site.ids[name]: points for name, points in expected.items()}


def test_the_table_shows_the_runs_and_a_filter_finds_some(page, site, picture):
    open_table(page, site)
    page.get_by_text("2 matching runs").wait_for()
    picture("table")
    search = page.get_by_placeholder(re.compile("metrics.rmse"))
    search.fill(f"params.learning_rate = '{LEARNING_RATES['slow']}' and metrics.`val/accuracy` > 0")
    search.press("Enter")
    page.get_by_text("1 matching run", exact=False).wait_for()
    assert page.get_by_role("link", name="slow", exact=True).count() == 1
    assert page.get_by_role("link", name="fast Ω", exact=True).count() == 0


def test_two_runs_are_selected_and_compared(page, site, trained, picture):
    open_table(page, site)
    for box in page.locator(SELECT_ROW).all():
        box.click(force=True)
    page.get_by_role("button", name="Compare", exact=True).click()
    page.get_by_text("Comparing 2 Runs").wait_for()
    page.locator(".pcp-plot.js-plotly-plot").wait_for()
    picture("compare")
    text = page.inner_text("body")
    for name, learning_rate in LEARNING_RATES.items():
        assert name in text and str(learning_rate) in text
        last = recorded(trained[name], "train/loss")[-1][1]
        assert f"{last:.3f}".rstrip("0") in text
    (plot,) = page.evaluate(
        "Array.from(document.querySelectorAll('.pcp-plot')).map(plot =>"
        " plot.data[0].dimensions.map(d => [d.label, Array.from(d.values)]))"
    )
    values = {label: sorted(numbers) for label, numbers in plot}
    assert values["train/loss"] == pytest.approx(
        sorted(recorded(run, "train/loss")[-1][1] for run in trained.values())
    )


def test_the_page_of_a_run_says_what_it_was_and_what_came_of_it(page, site, trained, picture):
    open_run(page, site, "slow")
    page.get_by_text("learning_rate").first.wait_for()
    page.get_by_text("val/accuracy", exact=True).wait_for()
    picture("run")
    text = page.inner_text("body")
    assert "Finished" in text and "kind" in text and "model.inputs" in text
    assert str(recorded(trained["slow"], "train/loss")[-1][1]) in text
    assert ("train/loss min" in text) == site.has_best


def test_model_metrics_and_system_metrics_are_drawn(page, site, picture):
    open_run(page, site, "fast Ω", "/model-metrics")
    lines_drawn(page, "train/loss", STEPS, "fast Ω")
    if not site.has_best:
        # The images that the mirror named as MLflow's client does, with their slider.
        page.wait_for_function(
            "Array.from(document.images)"
            ".some(i => i.src.includes('samples~grey') && i.naturalWidth === 256)"
        )
        slider = page.get_by_role("slider").first
        assert slider.get_attribute("aria-valuemax") == f"{(STEPS - 1) // 10 * 10}"
        slider.press("ArrowRight")
        page.wait_for_function(
            "Array.from(document.images).some(i => i.src.includes('step%2B10%2B'))"
        )
    picture("model-metrics")
    page.get_by_role("tab", name="System metrics").click()
    lines = lines_drawn(page, "system/cpu_utilization_percentage", 1, "fast Ω")
    picture("system-metrics")
    assert all(0 <= value <= 100 for _, value in lines["fast Ω"])


def test_artifacts_show_pictures_texts_and_the_manifest_of_a_checkpoint(page, site, picture):
    open_run(page, site, "slow", "/artifacts")
    page.get_by_text("line.png").click()
    page.wait_for_function(
        "Array.from(document.images).some(i => i.src.startsWith('blob:') && i.naturalWidth > 100)"
    )
    picture("artifact-picture")
    page.get_by_text("notes").first.click()
    page.get_by_text("result.txt").click()
    page.get_by_text(re.compile(r"weight -?\d")).wait_for()
    page.get_by_text("checkpoints", exact=True).click()
    page.get_by_text(re.compile(r"^step-0+\d+$")).first.click()
    page.get_by_text("manifest.json").first.click()
    page.get_by_text("sha256").first.wait_for()
    picture("artifact-manifest")


# --- only on records ---


def test_a_run_that_trains_grows_on_the_open_page(page, local_site, trained, picture):
    root = trained["slow"].path.parents[1]
    trainer = Trainer(root, "live", 0.1)
    try:
        trainer.train(5)
        # The page asks again every 30 seconds, by a clock that this test moves.
        page.clock.install()
        page.goto(local_site.page)
        page.get_by_role("link", name="live", exact=True).wait_for()
        assert len(lines_drawn(page, "train/loss", 5, "live")["live"]) == 5
        picture("live-before")
        trainer.train(20)
        page.clock.fast_forward("00:31")
        assert len(lines_drawn(page, "train/loss", 25, "live")["live"]) == 25
        picture("live-after")
        run_id = max(path.name for path in (root / "lines").iterdir())
        open_run(page, local_site._replace(ids={"live": run_id}), "live")
        page.get_by_text("Running", exact=True).first.wait_for()
    finally:
        trainer.finish()
    page.reload()
    page.get_by_text("Finished", exact=True).first.wait_for()


def test_a_change_on_the_page_is_refused_with_a_message(page, local_site, trained):
    page.expected_errors.append("403 ")
    open_table(page, local_site)
    page.locator(SELECT_ROW).first.click(force=True)
    page.get_by_role("button", name="Rename").click()
    dialog = page.get_by_role("dialog")
    dialog.locator("input").first.fill("another name")
    dialog.get_by_role("button", name="Save").click()
    page.get_by_text("this is a read-only view of the runs in").first.wait_for()
    names = {json.loads((r.path / "run.json").read_text())["name"] for r in trained.values()}
    assert names == set(LEARNING_RATES)
