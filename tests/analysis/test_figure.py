"""The one model of a picture: colours, legend, axes, marks; and what draws it."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from mlflow_track.analysis.curves import Curve, best_so_far, smoothed
from mlflow_track.draw.axes import axis, limits, tick_labels, ticks
from mlflow_track.draw.colors import COLORS, GREY, HIGHLIGHTED, MOST_IN_LEGEND, Colors
from mlflow_track.draw.figure import Figure, Series, make_figure
from mlflow_track.draw.matplotlib_plot import as_svg, draw
from mlflow_track.draw.terminal import plot, sparkline

NAN, INF = math.nan, math.inf


def curve(ys: list[float], label: str = "") -> Curve:
    points = [(float(x), y) for x, y in enumerate(ys) if math.isfinite(y)]
    odd = [(float(x), y) for x, y in enumerate(ys) if not math.isfinite(y)]
    return Curve(label, [x for x, _ in points], [y for _, y in points], odd)


def figure(*series: list[float], **options) -> Figure:
    labels = options.pop("labels", [f"r{n}" for n in range(len(series))])
    shown = [Series(n, curve(ys)) for n, ys in enumerate(series)]
    return make_figure(labels, [("loss", shown)], x_label="step", **options)


# --- colours and legend ---


def test_a_series_has_one_colour_in_all_panels_also_where_others_are_missing() -> None:
    one, two = Series(0, curve([1, 2])), Series(1, curve([2, 3]))
    made = make_figure(["a", "b"], [("both", [one, two]), ("second", [two])], x_label="step")
    (_, both), (_, second) = ((panel.title, panel.lines) for panel in made.panels)
    colors = {line.number: line.color for line in both}
    assert colors == {0: COLORS[0], 1: COLORS[1]} and second[0].color == COLORS[1]
    assert [(entry.label, entry.color) for entry in made.legend] == [
        ("a", COLORS[0]),
        ("b", COLORS[1]),
    ]


@pytest.mark.parametrize("count", [1, 2, 10, 11, MOST_IN_LEGEND])
def test_few_series_are_told_apart_and_all_are_in_the_legend(count: int) -> None:
    made = figure(*[[1.0, 2.0]] * count)
    looks = {(entry.color, entry.is_dashed) for entry in made.legend}
    assert len(looks) == len(made.legend) == count and made.notes == []


@pytest.mark.parametrize("count", [MOST_IN_LEGEND + 1, 200])
def test_of_many_series_the_best_have_colours_and_the_others_are_grey(count: int) -> None:
    best = list(range(count - 1, -1, -1))
    made = figure(*[[1.0, 2.0]] * count, ranking=best)
    assert [entry.number for entry in made.legend] == best[:HIGHLIGHTED]
    colors = {line.number: line.color for line in made.panels[0].lines}
    assert {n for n, color in colors.items() if color != GREY} == set(best[:HIGHLIGHTED])
    assert made.notes == [f"the 10 best in colour, {count - 10} others in grey"]
    # What is highlighted is drawn last, on top.
    assert {line.number for line in made.panels[0].lines[-HIGHLIGHTED:]} == set(best[:HIGHLIGHTED])


def test_colours_of_a_number_are_a_scale_and_those_of_texts_a_legend() -> None:
    scaled = figure([1, 2], [1, 2], [1, 2], colors=Colors("lr", [1e-3, 1e-1, None]))
    assert scaled.scale is not None and scaled.scale.ends == ("0.001", "0.1")
    assert scaled.legend == []
    colors = {line.number: line.color for line in scaled.panels[0].lines}
    assert len(set(colors.values())) == 3 and colors[2] == GREY
    by_text = figure([1, 2], [1, 2], [1, 2], colors=Colors("opt", ["adam", "sgd", "adam"]))
    assert [entry.label for entry in by_text.legend] == ["opt = adam", "opt = sgd"]


# --- axes ---


@pytest.mark.parametrize(
    ("series", "clip", "wanted"),
    [
        # Without outliers everything is shown, also a steep beginning.
        ([[10.0, 5, 3] + [2.0 + n / 100 for n in range(60)]], None, (2.0, 10.0)),
        # A spike inside, and a run that is elsewhere altogether.
        ([[2 + n / 100 for n in range(60)] + [1e6] + [2.6] * 20], None, (2.0, 2.6)),
        ([[2 + n / 100 for n in range(60)]] * 4 + [[1e9] * 60], None, (2.0, 2.59)),
        ([[2 + n / 100 for n in range(60)] + [1e6]], 1.0, (2.0, 1e6)),
        ([[float(n) for n in range(101)]], 0.9, (5.0, 95.0)),
        ([[5.0] * 50], None, (5.0, 5.0)),
        ([[1.0, 1e9]], None, (1.0, 1e9)),
        ([], None, None),
    ],
)
def test_limits_leave_out_outliers_and_nothing_else(series, clip, wanted) -> None:
    found = limits(series, clip, False)
    assert found == (wanted if wanted is None else pytest.approx(wanted))


def test_a_figure_says_what_its_axis_leaves_out_and_marks_it() -> None:
    ys = [2 + n / 100 for n in range(60)]
    ys[30] = 1e6
    (panel,) = figure(ys).panels
    assert panel.notes == ["1 point outside the axis, up to 1M; --clip 1 shows all"]
    assert [(mark.x, mark.kind) for mark in panel.lines[0].marks] == [(30, "above")]
    (panel,) = figure(ys, clip=1.0).panels
    assert panel.notes == [] and panel.y.high == 1e6


def test_a_logarithmic_axis_says_which_points_it_cannot_show() -> None:
    (panel,) = figure([0.0, -1.0, 1.0, 100.0], is_log_y=True).panels
    assert panel.notes == ["2 points that are not above 0 left out"]
    assert panel.y.place(10.0) == pytest.approx(0.5) and panel.y.low == 1.0
    (panel,) = figure([5.0, 1.0], is_log_x=True).panels
    assert panel.notes == ["1 point that is not above 0 left out"]
    # Nothing is left to show; still a picture.
    assert figure([0.0, -1.0], is_log_y=True).panels[0].lines[0].xs == []


def test_an_axis_of_one_value_or_of_rounding_is_wide_enough_to_be_flat() -> None:
    for low, high in ((5.0, 5.0), (0.1 + 0.2, 0.3), (0.0, 0.0), (1e300, 1e300), (-3.0, -3.0)):
        found = axis(min(low, high), max(low, high), False)
        assert found.low < low <= found.high and abs(found.place(low) - 0.49) < 1e-3
    assert axis(3.0, 3.0, True).place(3.0) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "ends", [(0, 1), (1.1, 3.9), (-5, 1e6), (1e-12, 2e-12), (1e9, 1e9 + 1), (-1e308, 1e308)]
)
def test_ticks_are_round_inside_and_told_apart_by_their_labels(ends) -> None:
    found = ticks(*ends)
    assert all(ends[0] - 1e-9 <= tick <= ends[1] * (1 + 1e-9) for tick in found)
    labels = tick_labels(found)
    assert 2 <= len(found) <= 9 and len(set(labels)) == len(labels)


# --- NaN and infinities ---


def test_what_is_not_finite_breaks_the_line_and_is_marked_where_it_begins() -> None:
    (panel,) = figure([3.0, 2.0, NAN, NAN, 1.5, INF, 1.0, -INF, 1.0, NAN]).panels
    (line,) = panel.lines
    assert [(mark.x, mark.kind) for mark in line.marks] == [
        (2, "nan"),
        (5, "above"),
        (7, "below"),
        (9, "nan"),
    ]
    assert sum(y != y for y in line.ys) >= 3 and line.last == 1.0
    assert panel.notes == ["r0 is NaN at 2 (5 values not finite)"]


def test_a_series_of_nothing_but_nan_is_in_the_picture() -> None:
    made = figure([NAN] * 5, [1.0, 2.0, 1.0, 2.0, 1.0])
    assert [mark.kind for line in made.panels[0].lines for mark in line.marks] == ["nan"]
    assert {entry.number for entry in made.legend} == {0, 1}
    assert any("×" in text for text in plot(made))


# --- curves ---


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.6, 0.9, 0.999])
@pytest.mark.parametrize("value", [5.0, 1 / 3, 1e-300, 1e300, -0.1])
def test_a_constant_stays_exactly_constant_when_it_is_smoothed(weight, value) -> None:
    assert smoothed(curve([value] * 50), weight).ys == [value] * 50


def test_best_so_far_never_gets_worse_and_knows_both_directions() -> None:
    assert best_so_far(curve([3, 1, NAN, 2]), "min").ys == [3, 1, 1]
    assert best_so_far(curve([3, 1, 4]), "max").ys == [3, 3, 4]


# --- drawing ---

NAMES = ["cost $x_{$", "_a^b_", "%s {0} \\frac", "<b>&'\"", "red\x1b[31m\x07", "名前 é", "l" * 500]


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_names_are_text_in_every_picture(suffix: str, tmp_path: Path) -> None:
    shown = [Series(n, curve([1.0, 2.0, NAN])) for n in range(len(NAMES))]
    made = make_figure(NAMES, [(name, shown) for name in NAMES[:3]], x_label="step")
    draw(made, tmp_path / f"a.{suffix}")
    assert (tmp_path / f"a.{suffix}").stat().st_size > 1000
    if suffix == "svg":
        text = (tmp_path / "a.svg").read_text()
        assert "cost $x_{$" in text and "_a^b_" in text and "\x1b" not in text
    html = as_svg(made, "c")
    assert "&lt;b&gt;" in html and "<b>" not in html and "\x1b" not in html
    assert "\x1b[31m" not in "".join(plot(made))


def test_the_svg_of_a_page_has_its_own_ids_and_the_colours_of_the_page() -> None:
    made = figure([1.0, 2.0], [2.0, 3.0])
    first, second = as_svg(made, "a"), as_svg(made, "b")
    ids = [set(re.findall(r'\bid="([^"]*)"', html)) for html in (first, second)]
    assert ids[0] and not ids[0] & ids[1]
    used = set(re.findall(r'(?:href="#|url\(#)([^")]*)', first))
    assert used <= ids[0]
    assert "currentColor" in first and "#010203" not in first and "<style" not in first
    assert "http" not in first and "<script" not in first
    assert "<title>r1: 3</title>" in first


def test_two_thousand_lines_are_one_collection_and_a_small_file(tmp_path: Path) -> None:
    made = figure(*[[float(n % 7), n / 100, 2.0] for n in range(2000)], ranking=range(2000))
    draw(made, tmp_path / "many.svg")
    assert (tmp_path / "many.svg").stat().st_size < 400_000
    assert sum(len(line.xs) for line in made.panels[0].lines) <= 120_000


def test_a_terminal_draws_a_flat_line_in_one_row_and_labels_the_ends() -> None:
    def rows(ys: list[float]) -> list[str]:
        return [line for line in plot(figure(ys)) if re.search("[⠁-⣿]", line)]

    assert len(rows([5.0] * 40)) == 1 and len(rows([0.1 + 0.2, 0.3] * 20)) == 1
    rising = plot(figure([1.0, 2.0, 3.0]))
    assert rising[1].split()[0] == "3" and rising[16].split()[0] == "1"
    assert sparkline([5.0] * 3) == "▄▄▄" and sparkline([0, 1e308, -1e308])[1] == "█"
