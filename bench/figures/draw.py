"""Draws charts with matplotlib and writes them: equal data give equal bytes.

Nothing uses pyplot, which keeps a state. Series differ in colour, marker and line style, so that they can be told apart
in print and by the colour-blind.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import itertools
import math
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from matplotlib.transforms import ScaledTranslation

from bench.figures.charts import Chart, Form, Point
from bench.store.files import replacing, write_text

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
"""Okabe and Ito's palette without its yellow, which paper does not show."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES: tuple[Any, ...] = ("-", "--", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (3, 1)), (0, (7, 2)), (0, (2, 2)))
MOST_SERIES = len(COLOURS)
"""How many series a panel may have."""
MOST_COLUMNS = 3

STYLE: dict[str, Any] = {
    "text.parse_math": False,  # a row named a$b$c stays that
    "axes.formatter.use_mathtext": False,
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that texts are as wide everywhere
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "svg.fonttype": "none",  # texts can be read, searched and copied
    "svg.hashsalt": "adaptation-bench",
    "pdf.fonttype": 42,
}
# No file says when it was made, or by which version.
METADATA: dict[str, dict[str, Any]] = {
    "svg": {"Date": None, "Creator": None},
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


@dataclass(frozen=True)
class Panel:
    """A part of a figure: its title, and what draws it."""

    title: str
    draw: Callable[[Axes], None]


def write(chart: Chart, folder: Path, name: str) -> list[Path]:
    """Write a chart as SVG, PNG and PDF, and its points as CSV; return the paths."""
    table = io.StringIO()
    columns = dict.fromkeys(column for point in chart.points for column in point)
    writer = csv.DictWriter(table, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(chart.points)
    paths = [folder / f"{name}.csv"]
    write_text(paths[0], table.getvalue())
    with _style():
        figure = draw(chart)
        for ending, metadata in METADATA.items():
            paths.append(folder / f"{name}.{ending}")
            with replacing(paths[-1]) as temporary:
                figure.savefig(temporary, format=ending, metadata=metadata, dpi=200)
    return paths


def as_svg(chart: Chart) -> str:
    """Draw a chart as the text of an SVG file."""
    text = io.BytesIO()
    with _style(), warnings.catch_warnings():
        # Who shows the file has other fonts for letters that this one lacks.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        draw(chart).savefig(text, format="svg", metadata=METADATA["svg"])
    return text.getvalue().decode()


def _style() -> contextlib.AbstractContextManager[None]:
    """Set `STYLE` meanwhile, from the defaults, whatever a person's matplotlibrc says."""
    settings: Any = {key: value for key, value in matplotlib.rcParamsDefault.items() if key != "backend"} | STYLE
    return matplotlib.rc_context(settings)


def draw(chart: Chart) -> Figure:
    """Draw a chart; `STYLE` must be set until it is written."""
    names = list(dict.fromkeys(point["series"] for point in chart.points)) if chart.form != "dots" else []
    parts = [names[start : start + MOST_SERIES] for start in range(0, len(names), MOST_SERIES)]
    columns = min(MOST_COLUMNS, len({point[chart.panel] for point in chart.points}) + (len(parts) > 1))
    panels = list(_series_panels(chart, parts, columns) if parts else _dot_panels(chart))
    lines = math.ceil(len(panels) / columns)
    most_rows = len({point["row"] for point in chart.points}) if chart.form == "dots" else 0
    width = 1.8 + 2.2 * columns
    # 8 points are a ninth of an inch, and a letter is about half as wide as it is high; bold ones are wider.
    title = "\n".join(textwrap.wrap(chart.title, int(width * 9), break_on_hyphens=False))
    caption = "\n".join(textwrap.wrap(chart.caption, int(width * 16)))
    caption_height = 0.15 * (caption.count("\n") + 1) + 0.15
    panel_height = max(2.4, 0.9 + 0.2 * most_rows)
    height = lines * panel_height + caption_height + 0.4 + 0.15 * title.count("\n")
    figure = Figure(figsize=(width, height), layout="constrained")
    layout: Any = figure.get_layout_engine()
    layout.set(rect=(0, caption_height / height, 1, 1 - caption_height / height))
    figure.suptitle(title, fontsize=10, fontweight="bold")
    figure.text(0.1 / width, 0.08 / height, caption, va="bottom", fontsize=7.5, color="#333333")
    if len(parts) == 1:
        _legend(figure, parts[0], chart.form, "outside right center")
    grid = figure.subplots(lines, columns, squeeze=False, sharey=chart.form == "dots")
    for number, axes in enumerate(grid.flat):
        if number < len(panels):
            axes.set_title(panels[number].title, fontsize=8.5, loc="left")
            panels[number].draw(axes)
        else:
            _blank(axes)
    return figure


# ------------------------------------------------------------------------------------------------ rows side by side


def _dot_panels(chart: Chart) -> Iterator[Panel]:
    """Make a panel for each task, in which each row has a line."""
    rows = list(dict.fromkeys(point["row"] for point in chart.points))
    for name in dict.fromkeys(point[chart.panel] for point in chart.points):
        points = [point for point in chart.points if point[chart.panel] == name]
        yield Panel(shortened(name), functools.partial(_dots, rows=rows, points=points, label=chart.labels[name]))


def _dots(axes: Axes, rows: Sequence[str], points: Sequence[Point], label: str) -> None:
    """Draw the rows of a task below each other."""
    if "reference" in points[0]:
        axes.axvline(0, color="black", linewidth=0.8)
    for point in points:
        marker = "s" if point.get("conditional") else "o"
        _mark(axes, point, point["mean"], rows.index(point["row"]), COLOURS[0], marker, horizontal=True)
    axes.set_yticks(range(len(rows)), [shortened(row) for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)  # the first row at the top, as in the table
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel(label)


def _mark(
    axes: Axes,
    point: Point,
    x: float | None,
    y: float | None,
    colour: str,
    marker: str,
    horizontal: bool = False,
    **how: Any,
) -> None:
    """Draw a point with its bar: hollow where seeds are missing, × at the axis where there is no number."""
    if x is None or y is None:
        # In the other direction the × stands at the axis, wherever the numbers of the panel lie.
        transform = axes.get_yaxis_transform() if horizontal else axes.get_xaxis_transform()
        if (x if y is None else y) is not None:
            axes.plot(0.02 if x is None else x, 0.02 if y is None else y, "x", color="#666666", transform=transform)
        return
    bar = None if point["low"] is None else [[point["mean"] - point["low"]], [point["high"] - point["mean"]]]
    face = colour if point["n"] == point["planned"] else "white"
    axes.errorbar(
        x,
        y,
        xerr=bar if horizontal else None,
        yerr=None if horizontal else bar,
        color=colour,
        marker=marker,
        markersize=4.5,
        markerfacecolor=face,
        capsize=2,
        linewidth=1,
        zorder=3,
        **how,
    )


# ------------------------------------------------------------------------------------------------ series


def _series_panels(chart: Chart, parts: Sequence[Sequence[str]], columns: int) -> Iterator[Panel]:
    """Make panels of at most `MOST_SERIES` series, the parts; several parts have a legend each."""
    # Example: nine series on two tasks are two lines of three panels: series 1 to 7 on the first task, on the second,
    # and their legend; then the same for series 8 and 9. Parts of other sizes are filled up with blanks.
    names = list(dict.fromkeys(point[chart.panel] for point in chart.points))
    for number, part in enumerate(parts, start=1):
        panels = []
        for name in names:
            of_panel = [point for point in chart.points if point[chart.panel] == name]
            series = {each: [point for point in of_panel if point["series"] == each] for each in part}
            if any(series.values()):
                title = shortened(name) + (f" ({number} of {len(parts)})" if len(parts) > 1 else "")
                panels.append(Panel(title, functools.partial(_series, chart=chart, series=series, of_panel=of_panel)))
        yield from panels
        if len(parts) > 1:
            yield Panel("", functools.partial(_legend_panel, names=part, form=chart.form))
            yield from [Panel("", _blank)] * (-(len(panels) + 1) % columns)


def _series(axes: Axes, chart: Chart, series: dict[str, list[Point]], of_panel: Sequence[Point]) -> None:
    FORMS[chart.form](axes, series, of_panel)
    axes.set_xlabel(chart.x_label)
    axes.set_ylabel(chart.labels[of_panel[0][chart.panel]])


def _legend_panel(axes: Axes, names: Sequence[str], form: Form) -> None:
    _blank(axes)
    # Long names may reach beyond the panel, and take no space from the others.
    _legend(axes, names, form, "center left").set_in_layout(False)


def _blank(axes: Axes) -> None:
    axes.axis("off")


def _legend(owner: Axes | Figure, names: Sequence[str], form: Form, location: Any) -> Legend:
    """Draw the legend of a part of the series."""
    handles = [
        Line2D(
            [],
            [],
            color=COLOURS[n],
            marker="" if form == "curves" else MARKERS[n],
            linestyle="" if form == "pareto" else DASHES[n],
            markersize=4.5,
        )
        for n in range(len(names))
    ]
    # matplotlib leaves out labels that begin with "_", so the names are put in afterwards.
    legend: Legend = owner.legend(handles, ["" for _ in names], loc=location, frameon=False, handlelength=3, fontsize=7)
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(shortened(name))
    return legend


def _lines(axes: Axes, series: dict[str, list[Point]], of_panel: Sequence[Point]) -> None:
    """Draw one line for each series, over an axis of counts."""
    for number, points in enumerate(series.values()):
        placed = sorted((point for point in points if point["x"] is not None), key=lambda point: point["x"])
        shown = [point for point in placed if point["mean"] is not None]
        colour = COLOURS[number]
        if len(shown) == 1:
            axes.axhline(shown[0]["mean"], color=colour, linestyle=":", linewidth=1)
        # Two points (1/36 inch) to the right of the series before, so that equal values do not hide each other.
        apart = ScaledTranslation((number - (len(series) - 1) / 2) / 36, 0, axes.figure.dpi_scale_trans)
        shifted = axes.transData + apart
        means = [point["mean"] for point in shown]
        axes.plot([point["x"] for point in shown], means, color=colour, linestyle=DASHES[number], transform=shifted)
        for point in placed:
            _mark(axes, point, point["x"], point["mean"], colour, MARKERS[number], transform=shifted)
    positions = sorted({point["x"] for point in of_panel if point["x"] is not None})
    if not positions:
        return  # a task on which nothing has finished
    narrowest = min((after - before for before, after in itertools.pairwise(positions)), default=math.inf)
    crowded = narrowest < 0.1 * (positions[-1] - positions[0])
    if positions[0] > 0 and positions[-1] >= 10 * positions[0]:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        crowded = True  # large counts are close together there
    if len(positions) <= 10:
        axes.xaxis.set_major_locator(FixedLocator(positions))
    if crowded:
        axes.tick_params(axis="x", labelrotation=90, labelsize=7)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}" if x < 1000 else f"{x / 1000:g}k"))
    _hold_all(axes, of_panel)


def _pareto(axes: Axes, series: dict[str, list[Point]], of_panel: Sequence[Point]) -> None:
    """Draw one point for each row, and the front of all rows as steps."""
    front = sorted((point["x"], point["mean"]) for point in of_panel if point["front"])
    axes.plot(
        [x for x, _ in front], [y for _, y in front], color="#999999", linewidth=1, drawstyle="steps-post", zorder=1
    )
    for number, points in enumerate(series.values()):
        for point in points:
            _mark(axes, point, point["x"], point["mean"], COLOURS[number], MARKERS[number])
    _hold_all(axes, of_panel)


def _hold_all(axes: Axes, of_panel: Sequence[Point]) -> None:
    """Give the axes room for all series, so that several parts of them have the same axes.

    What is drawn with a shift does not count for their limits otherwise.
    """
    values = [(point["x"], point[name]) for point in of_panel for name in ("low", "mean", "high")]
    axes.update_datalim([(x, y) for x, y in values if x is not None and y is not None])
    axes.autoscale_view()


def _curves(axes: Axes, series: dict[str, list[Point]], of_panel: Sequence[Point]) -> None:
    """Draw one line for each stage, in the style of its rows."""
    for number, points in enumerate(series.values()):
        for key in dict.fromkeys(point["key"] for point in points):
            line = [point for point in points if point["key"] == key]
            losses = [point["loss"] if isinstance(point["loss"], int | float) else math.nan for point in line]
            steps = [point["x"] for point in line]
            axes.plot(steps, losses, color=COLOURS[number], linestyle=DASHES[number], linewidth=0.9)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))


FORMS = {"lines": _lines, "pareto": _pareto, "curves": _curves}


def shortened(name: str) -> str:
    """Shorten a name that would leave no space for what is drawn."""
    return name if len(name) <= 36 else f"{name[:35]}…"
