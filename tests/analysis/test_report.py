"""The report: everything in one file, nothing from outside it, whatever the runs hold."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import mlflow_track as mt
from mlflow_track.analysis.importance import param_importance, ranks
from mlflow_track.analysis.summary import read_summaries
from mlflow_track.draw.picture import Options
from mlflow_track.draw.report import render_report
from tests.analysis.records import make_run, write

_PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c489"
    "0000000d49444154789c63f8cfc0f01f00050001ff89993d1d0000000049454e44ae426082"
)


class Checker(HTMLParser):
    """Notes what a page would fetch or run, and that its tags close."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            refers = name in ("src", "href", "xlink:href", "action", "data")
            # A chart refers to its own parts by #.
            urls = re.findall(r"url\((.*?)\)", value or "") + ([value] if refers else [])
            self.fetched += [url for url in urls if not url.startswith("#")]
            assert not name.startswith("on"), (tag, name)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def check(html: str) -> Checker:
    checker = Checker()
    checker.feed(html)
    assert checker.open == []
    assert "script" not in checker.tags and "iframe" not in checker.tags
    assert all(value.startswith("data:") for value in checker.fetched), checker.fetched
    assert "default-src 'none'" in html
    return checker


def test_the_report_holds_table_curves_importance_artifacts_and_provenance() -> None:
    for number in range(6):
        make_run(f"run {number}", lr=1e-3 * (number + 1), kind="ab"[number % 2], floor=1 + number)
    with mt.start_run(experiment="demo", run_name="with files") as run:
        run.log_metric("val/loss", 9.0, step=3)
        run.log_text("Once <upon> a time", "sample.txt")
        Path("curve.png").write_bytes(_PIXEL)
        run.log_artifact("curve.png")
    summaries, _ = read_summaries(Path("runs"))
    html = render_report(summaries, title="A & B", options=Options(smooth=0.5))
    checker = check(html)
    assert html.count('id="c0-run-') >= 6 and "img" in checker.tags
    for part in ("A &amp; B", "Once &lt;upon&gt; a time", "params.lr", "Spearman", "run 0"):
        assert part in html
    assert re.search(r'<b class="best">run 0</b>, 1\.125 at step 19', html)
    assert "Provenance" in html and "torch 2" in html


def test_the_report_shows_what_is_broken_or_hostile_as_text(tmp_path: Path) -> None:
    hostile = '"><script>alert(1)</script><img src=http://x onerror=y>'
    rows = [(0, {hostile[:20]: 1.0}), (1, {hostile[:20]: float("nan")})]
    folder = write(
        tmp_path / "e" / "a",
        rows,
        {hostile: hostile, "lr": 1},
        name=hostile,
        experiment=hostile,
        provenance={"git": {"commit": hostile}},
        attempts=[{"command": [hostile], "error": hostile}],
        inputs=[{"name": hostile}, "x"],
    )
    (folder / "artifacts").mkdir()
    (folder / "artifacts" / "s.txt").write_bytes(b"\xff\xfe" + hostile.encode())
    (folder / "artifacts" / "a.svg").write_text("<svg><script>alert(1)</script></svg>")
    write(tmp_path / "e" / "empty", [])
    # Half a character, as a file name in another encoding brings it: no encoding has one.
    write(tmp_path / "e" / "half", [(0, {"a": 1.0})], name="caf\udce9")
    write(tmp_path / "e" / "ü ß 名", [(0, {"a": float("inf")})], {"lr": 2})
    summaries, _ = read_summaries(tmp_path)
    html = render_report(summaries)
    check(html)
    assert "\\udce9" in html and html.encode()
    with pytest.raises(ValueError, match="at least one run"):
        render_report([])


def test_media_over_steps_are_a_strip_for_each_run(tmp_path: Path) -> None:
    figure = np.zeros((300, 400, 3), np.uint8)
    for name in ("a", "b"):
        with mt.start_run(experiment="e", run_name=name, directory=tmp_path) as run:
            run.log_metrics({"loss": 1.0}, step=0)
            for step in range(0, 100, 10):
                run.log_image(figure, "samples/<i>", step=step)
            run.log_text("<b>hostile</b>" + 1000 * "x", "text", step=7)
            paths = [run.log_histogram("grad", [1.0, 2.0, np.nan], step=s) for s in (7, 8)]
            damaged = run.log_image(figure, "samples/<i>", step=95)
            gone = run.log_image(figure, "gone", step=0)
        damaged.write_bytes(b"not a PNG")
        paths[1].write_text('{"edges": [1, 0], "counts": [1]}')
        gone.unlink()
        # What the index does not list is an artifact as such.
        (run.path / "artifacts/single.png").write_bytes(_PIXEL)
    html = render_report(read_summaries(tmp_path)[0])
    checker = check(html)
    pictures = [url for url in checker.fetched if url.startswith("data:image/webp")]
    # Eight of eleven steps of both runs, of which one is damaged.
    assert len(pictures) == 14 and html.count("it is not a whole PNG") == 2
    assert sum(url.startswith("data:image/png") for url in checker.fetched) == 2
    assert len(html) < 200_000
    for text in ("samples/&lt;i&gt;", "&lt;b&gt;hostile", "<th>step 95</th>", "1 … 2, 1 NaN"):
        assert text in html
    assert html.count("<path") >= 2 and "its edges must ascend" in html
    assert "(its file is gone)" in html and "<b>hostile" not in html
    frame = mt.load_runs(tmp_path)[0].media()
    assert frame.groupby("kind").size().to_dict() == {"histogram": 2, "image": 12, "text": 1}
    row = frame[frame.key == "text"].iloc[0]
    assert row.step == 7 and row.path.read_text().startswith("<b>")


def test_importance_is_one_where_a_param_tells_the_order_and_small_where_it_does_not(
    tmp_path: Path,
) -> None:
    for number in range(12):
        params = {"tells": number**3, "noise": (number * 5) % 12, "word": "ab"[number // 6], "n": 1}
        params["folder"] = f"out/{max(number, 2)}"
        write(tmp_path / "e" / f"r{number:02d}", [(0, {"loss": -number})], params)
    found = {i.param: i for i in param_importance(read_summaries(tmp_path)[0], "loss", "min")}
    assert found["tells"].value == pytest.approx(1) and found["tells"].sign == -1
    assert found["noise"].value < 0.5 and 0.8 < found["word"].value < 1 and "n" not in found
    # Nearly each run has its own: that tells nothing.
    assert found["folder"].value == 0
    assert ranks([3.0, 1.0, 3.0]) == [1.5, 0.0, 1.5]
    assert param_importance(read_summaries(tmp_path)[0][:3], "loss", "min") == []
