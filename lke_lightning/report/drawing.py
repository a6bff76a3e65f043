"""How figures look, and how they get into a page: plain matplotlib on white, as SVG that needs nothing."""

from __future__ import annotations

import base64
import io
import math
import warnings
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

from lke_lightning.report.records import Series

NARROW, WIDE = 4.7, 9.8
"""Widths of figures in inches: half of the page, or all of it."""

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b5539c", "#b97a00", "#3b9bd6", "#5b6675")
"""Those of Okabe and Ito, told apart under every kind of colour blindness; the yellow ones darker, to be seen."""
MARKERS, DASHES = "os^DvPX", ("-", "--", ":", "-.")
TEXT, MUTED, DASHED = "#1c2430", "#7b8794", (0, (3, 1.5))

LETTER, KEY = 0.075, 0.75
"""Width in inches of a letter in a legend, and of all that is around a name."""

STYLE = {
    "font.size": 9, "axes.labelsize": 9, "xtick.labelsize": 8, "ytick.labelsize": 8, "legend.fontsize": 8,
    "axes.titlesize": 9.5, "axes.titlelocation": "left", "axes.titleweight": "bold", "legend.frameon": False,
    "text.color": TEXT, "axes.labelcolor": TEXT, "axes.edgecolor": MUTED, "xtick.color": TEXT, "ytick.color": TEXT,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
    "grid.color": "#dfe3e8", "lines.markersize": 4, "figure.constrained_layout.use": True,
    "text.parse_math": False,  # names of runs may hold dollars
    "svg.fonttype": "none", "svg.hashsalt": "report",
}  # fmt: skip


def style() -> AbstractContextManager[None]:
    """Let figures that are made here have the look of the report."""
    return matplotlib.rc_context(STYLE)


def as_image(figure: Figure) -> str:
    """Return a figure as an address that holds the whole of it as SVG."""
    file = io.BytesIO()
    with style(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # only measured here: the reader's fonts draw the text
        figure.savefig(file, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode()


def panels(count: int, columns: int, height: float, width: float = WIDE, **grid: Any) -> tuple[Figure, list[Axes]]:
    """Make a figure of panels in rows of at most `columns`; `height` is that of a row, in inches."""
    columns = min(count, columns)
    rows = -(-count // columns)
    figure = Figure(figsize=(width, height * rows))
    axes = list(figure.subplots(rows, columns, squeeze=False, **grid).flat)
    for spare in axes[count:]:
        spare.set_axis_off()
    return figure, axes[:count]


def line_style(number: int) -> dict[str, Any]:
    """Return how the curve of a run, or of a layer, is drawn in every figure."""
    dash = DASHES[number // len(COLOURS) % len(DASHES)]
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)], "linestyle": dash}


def curves(named: Mapping[str, Series], what: str, fraction: bool = False, log: bool = False) -> Figure | None:
    """Draw curves over edits.

    Args:
        named: by what they are called; one with fewer than two points is left out and keeps its colour.
        what: the name of the vertical axis.
        fraction: the values are fractions of 1.
        log: take a logarithmic scale where values differ much.
    """
    shown = [(number, name, averaged(points)) for number, (name, points) in enumerate(named.items()) if len(points) > 1]
    if not shown:
        return None
    figure, [axes] = panels(1, 1, 2.9, NARROW)
    for number, name, points in shown:
        axes.plot(*zip(*points, strict=True), label=name, **line_style(number))
    values = [value for *_, points in shown for _, value in points]
    if fraction:
        percent(axes, values)
    elif log:
        logarithmic(axes, values)
    over_edits(axes, what)
    legend(figure)
    return figure


def over_edits(axes: Axes, what: str) -> None:
    """Let the horizontal axis count edits, the vertical one be `what`."""
    axes.set(xlabel="edits made", ylabel=what)
    axes.set_xlim(left=0)
    whole_numbers(axes)


def whole_numbers(axes: Axes) -> None:
    """Let the horizontal axis have whole numbers only, with separators of thousands."""
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def percent(axes: Axes, values: Iterable[float]) -> None:
    """Let the vertical axis show fractions in percent, from a quarter below the least of `values` up to all."""
    least = min((value for value in values if value == value), default=0.0)
    low = max(0.0, math.floor(4 * least - 0.2) / 4)
    axes.set_ylim(low - 0.03 * (1 - low), 1 + 0.03 * (1 - low))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def logarithmic(axes: Axes, values: Iterable[float], factor: float = 8) -> None:
    """Let the vertical axis be logarithmic where the values that it shows differ by more than a factor."""
    given = [value for value in values if 0 < value < math.inf]
    ratio = max(given) / min(given) if given else 1.0
    if ratio > factor:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if ratio < 300 else (1,)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())


def averaged(points: Series, most: int = 25) -> Series:
    """Average neighbours where there are more points than a figure can show, as of runs in batches of one edit."""
    size = -(-len(points) // most) or 1
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]


def legend(figure: Figure, always: bool = False) -> None:
    """Put one legend below all panels, each name once, in as many columns as there is room for.

    A single name needs none, unless `always`.
    """
    found: dict[str, Any] = {}
    for axes in figure.axes:
        found |= {_fitting(name): handle for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    if len(found) > 1 or (always and found):
        room = figure.get_figwidth() / (KEY + LETTER * max(map(len, found)))
        columns = max(1, min(4, len(found), int(room)))
        figure.set_figheight(figure.get_figheight() + 0.17 * (-(-len(found) // columns) - 1))
        figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=columns)


def _fitting(name: str, most: int = 48) -> str:
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-most // 2 :]}"
