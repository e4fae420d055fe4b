"""Draws the model of a picture by matplotlib: as a file, and as SVG inside a page."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_track.draw.axes import Axis, short_number
from mlflow_track.draw.colors import Scale
from mlflow_track.draw.figure import Figure, Line, Panel
from mlflow_track.extras import extra
from mlflow_track.wording import value_error

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

SUFFIXES = (".png", ".svg", ".pdf")
# More lines than these are drawn as one collection, which takes a tenth of the time.
_MOST_SINGLE = 60
_FEW_POINTS = 20
_MARKS = {"nan": "x", "above": "^", "below": "v"}
# The names of runs and metrics are text: `$`, `_` and `^` do not begin a formula.
PLAIN: dict[str, Any] = {"parse_math": False, "usetex": False}
# What the SVG has for the colours of the page around it.
INK, PAGE = "#010203", "#040506"
_IDS = re.compile(r'(\bid="|"#|url\(#)([\w-]+)')


def draw(figure: Figure, path: Path) -> None:
    """Write a picture as a file.

    Args:
        figure: The picture.
        path: The file; its ending is the format.

    Raises:
        ValueError: The ending is not one of `SUFFIXES`.
    """
    save(_canvas(figure, *_size(figure, 8.0, 3.4), "#222222"), path)


def save(canvas: Canvas, path: Path) -> None:
    """Write a figure of matplotlib as a file; see `draw`."""
    if path.suffix.lower() not in SUFFIXES:
        raise value_error("path", f"a file ending in {' or '.join(SUFFIXES)}", str(path))
    _save(canvas, path, path.suffix.lower()[1:], dpi=130)


def new_canvas(width: float, height: float, *, is_page: bool) -> Canvas:
    """An empty figure of matplotlib, in inches.

    Args:
        width, height: Its size.
        is_page: Whether it is for a page, whose background shows through.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    with extra("analysis"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(canvas)
    canvas.patch.set_alpha(0 if is_page else 1)
    return canvas


def as_svg(figure: Figure, name: str) -> str:
    """A picture as an SVG element for a page: without a script, in the colours of the page.

    Args:
        figure: The picture.
        name: Part of the ids in it, different for each picture of a page.
    """
    # The type is as large as that of the page on a screen of 400 px.
    canvas, titles = _canvas(figure, *_size(figure, 5.2, 3.0), INK), _titles(figure)
    return svg_of(canvas, name, titles, ", ".join(panel.title for panel in figure.panels))


def svg_of(canvas: Canvas, name: str, titles: Mapping[str, str], label: str) -> str:
    """A figure of matplotlib as an SVG element; see `as_svg`.

    Args:
        canvas: The figure; its text has the colour `INK`.
        name: Part of its ids.
        titles: By id of a group what pointing at it says.
        label: What the picture shows, for those who cannot see it.
    """
    file = io.BytesIO()
    _save(canvas, file, "svg", dpi=72)
    text = file.getvalue().decode()
    text = text[text.index("<svg") :]
    # Ids are of the whole page, as style elements are.
    for left_out in (r"<metadata>.*?</metadata>", r"<!--.*?-->\s*", r"<style[^>]*>.*?</style>"):
        text = re.sub(left_out, "", text, flags=re.DOTALL)
    text = text.replace(INK, "currentColor").replace(PAGE, "var(--page, transparent)")
    # A page knows these names without their addresses.
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text).replace("xlink:href", "href")
    for gid, title in titles.items():
        text = text.replace(f'<g id="{gid}">', f'<g id="{gid}"><title>{escape(title)}</title>')
    text = _IDS.sub(rf"\g<1>{name}-\g<2>", text)
    for side in ("width", "height"):
        text = re.sub(rf'(<svg[^>]*?) {side}="[^"]*"', r"\1", text, count=1)
    shown = f'<svg class="chart" role="img" aria-label="{escape(label)}"'
    return text.replace("<svg", shown, 1).strip()


def _titles(figure: Figure) -> dict[str, str]:
    """What pointing at a line says: its name and its last value."""
    return {
        _id(number, line): f"{line.label}: {short_number(line.last, 5)}"
        for number, panel in enumerate(figure.panels)
        for line in panel.lines
        if line.label and line.last is not None and len(panel.lines) <= _MOST_SINGLE
    }


def _id(panel: int, line: Line) -> str:
    return f"run-{line.number}-{panel}"


def _size(figure: Figure, width: float, each: float) -> tuple[float, float]:
    columns = _legend_columns(figure, width)
    rows = math.ceil(len(figure.legend) / columns) if figure.legend else 0
    texts = len(figure.notes) + sum(len(panel.notes) for panel in figure.panels)
    return width, 0.5 + each * len(figure.panels) + 0.2 * rows + 0.18 * texts


def _legend_columns(figure: Figure, width: float) -> int:
    longest = max((len(entry.label) for entry in figure.legend), default=1)
    return max(1, min(4, int(width / (0.075 * longest + 0.6)), len(figure.legend) or 1))


def _canvas(figure: Figure, width: float, height: float, ink: str) -> Canvas:
    canvas = new_canvas(width, height, is_page=ink == INK)
    from matplotlib.lines import Line2D

    all_axes = canvas.subplots(len(figure.panels), 1, squeeze=False)[:, 0]
    for number, (ax, panel) in enumerate(zip(all_axes, figure.panels, strict=True)):
        _draw_panel(ax, panel, number, ink)
    all_axes[-1].set_xlabel(figure.panels[-1].x.label, color=ink, fontsize=9)
    if figure.scale is not None:
        _draw_scale(canvas, list(all_axes), figure.scale, ink)
    if figure.legend or figure.notes:
        handles = [
            Line2D([], [], color=entry.color, linestyle="--" if entry.is_dashed else "-")
            for entry in figure.legend
        ]
        columns = _legend_columns(figure, width)
        legend = canvas.legend(
            handles,
            # A label that begins with "_" would be left out: the real ones are set below.
            [str(number) for number in range(len(handles))],
            loc="outside lower center",
            ncols=columns,
            fontsize=8,
            frameon=False,
            title="; ".join(figure.notes) or None,
            title_fontsize=8,
        )
        legend.get_title().set(color=ink, **PLAIN)
        for text, entry in zip(legend.get_texts(), figure.legend, strict=True):
            text.set(text=entry.label, color=ink, **PLAIN)
    return canvas


def _draw_panel(ax: Axes, panel: Panel, number: int, ink: str) -> None:
    if len(panel.lines) > _MOST_SINGLE:
        _draw_many(ax, panel.lines)
    else:
        for line in panel.lines:
            _draw_line(ax, line, _id(number, line) if line.label else None)
    _set_axis(ax, panel.x, "x", margin=0.01)
    _set_axis(ax, panel.y, "y", margin=0.05)
    ax.minorticks_off()
    for kind, marker in _MARKS.items():
        marks = [(m.x, line.color) for line in panel.lines for m in line.marks if m.kind == kind]
        if marks:
            ax.scatter(
                [x for x, _ in marks],
                [0.985 if kind == "above" else 0.015] * len(marks),
                c=[color for _, color in marks],
                marker=marker,
                s=22,
                linewidths=1.2,
                transform=ax.get_xaxis_transform(),
                zorder=4,
            )
    ax.set_title(panel.title, loc="left", fontsize=11, color=ink, **PLAIN)
    if panel.notes:
        text = "\n".join(panel.notes)
        ax.annotate(
            text,
            (1, 1.01),
            xycoords="axes fraction",
            ha="right",
            va="bottom",
            fontsize=7.5,
            color=ink,
            alpha=0.75,
            **PLAIN,
        )
        ax.title.set_wrap(True)
    ax.grid(alpha=0.25, color="#8a8a8a")
    ax.patch.set_alpha(0)
    ax.tick_params(colors=ink, labelsize=8.5, which="both")
    ax.spines[["top", "right"]].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(ink)
        ax.spines[side].set_alpha(0.6)


def _draw_line(ax: Axes, line: Line, gid: str | None) -> None:
    if line.low:
        ax.fill_between(line.xs, line.low, line.high, color=line.color, alpha=0.2, linewidth=0)
    is_lonely = len(line.xs) == 1
    ax.plot(
        line.xs,
        line.ys,
        color=line.color,
        alpha=0.3 if line.is_pale else 1,
        linewidth=0.8 if line.is_pale else 1.5,
        linestyle="--" if line.is_dashed else "-",
        marker="o" if is_lonely or (len(line.xs) < _FEW_POINTS and not line.is_pale) else None,
        markersize=6 if is_lonely else 3,
        gid=gid,
        zorder=1.5 if line.is_pale else 3,
    )


def _draw_many(ax: Axes, lines: Sequence[Line]) -> None:
    from matplotlib.collections import LineCollection

    for is_pale in (True, False):
        own = [line for line in lines if line.is_pale == is_pale]
        ax.add_collection(
            LineCollection(
                [list(zip(line.xs, line.ys, strict=True)) for line in own],
                colors=[line.color for line in own],
                # Of many, what lies over one another shows where most of them are.
                alpha=min(0.35, max(0.04, 50 / (len(own) or 1))) if is_pale else 0.9,
                linewidths=0.6 if is_pale else 1.2,
                zorder=1.5 if is_pale else 3,
                # As a picture inside the picture: two thousand lines are megabytes of text.
                rasterized=len(own) > _MOST_SINGLE,
            ),
            autolim=False,
        )
    lonely = [line for line in lines if len(line.xs) == 1]
    ax.scatter(
        [line.xs[0] for line in lonely],
        [line.ys[0] for line in lonely],
        c=[line.color for line in lonely],
        s=9,
    )


def _set_axis(ax: Axes, found: Axis, which: str, margin: float) -> None:
    own = ax.xaxis if which == "x" else ax.yaxis
    set_limits = ax.set_xlim if which == "x" else ax.set_ylim
    low, high = found.low, found.high
    if found.is_log:
        (ax.set_xscale if which == "x" else ax.set_yscale)("log")
        first, last = math.log10(low), math.log10(high)
        space = margin * (last - first)
        low, high = 10 ** (first - space), 10 ** min(last + space, 308)
    else:
        space = margin * (high / 2 - low / 2) * 2
        low, high = low - space, high + space
    set_limits(low, high)
    own.set_ticks([place for place, _ in found.ticks], [label for _, label in found.ticks])


def _draw_scale(canvas: Canvas, axes: list[Axes], scale: Scale, ink: str) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap

    colors = LinearSegmentedColormap.from_list("scale", list(scale.colors))
    bar = canvas.colorbar(ScalarMappable(cmap=colors), ax=axes, aspect=30, pad=0.02)
    bar.set_ticks([at for at, _ in scale.ticks], labels=[label for _, label in scale.ticks])
    bar.ax.tick_params(colors=ink, labelsize=8)
    bar.ax.set_title(scale.title, fontsize=9, color=ink, **PLAIN)
    bar.outline.set_visible(False)  # type: ignore[operator]


def _save(canvas: Canvas, file: Path | io.BytesIO, form: str, dpi: int) -> None:
    from matplotlib import rc_context

    fixed: Any = {"svg.fonttype": "none", "svg.hashsalt": "mlflow_track"}
    metadata = {"Date": None} if form == "svg" else None
    # The font lacks many letters; a box stands for one.
    with warnings.catch_warnings(), rc_context(fixed):
        warnings.filterwarnings("ignore", "Glyph .* missing")
        canvas.savefig(file, format=form, dpi=dpi, metadata=metadata)
