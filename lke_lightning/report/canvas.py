"""How figures look, on the page in light and dark and on paper, and how they become files."""

from __future__ import annotations

import html
import io
import math
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from lke_lightning.report.reading import Series

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", (0, (5, 1.5)), (0, (1.5, 1.5)), (0, (5, 1.5, 1.5, 1.5)))
HEAT = "cividis"
"""A colour map that keeps its order under every kind of colour blindness, and in grey."""


@dataclass(frozen=True)
class Ink:
    """The colours of a figure.

    Series are those of Okabe and Ito, told apart under every kind of colour blindness, darkened or lightened to stand
    out from the ground.
    """

    text: str
    muted: str
    grid: str
    ground: str
    series: tuple[str, ...]

    def colour(self, number: int) -> str:
        """Return the colour of a series; there are seven, then they come again."""
        return self.series[number % len(self.series)]

    def line(self, number: int) -> dict[str, Any]:
        """Return how a series is drawn: colour, marker, and beyond seven series another dash."""
        return {
            "color": self.colour(number),
            "marker": MARKERS[number % len(MARKERS)],
            "linestyle": LINES[(number // len(self.series)) % len(LINES)],
        }


LIGHT = Ink(
    "#1c2430", "#5b6675", "#dfe3e8", "#ffffff",
    ("#0072b2", "#d55e00", "#00856a", "#b5539c", "#b97a00", "#3b9bd6", "#5b6675"),
)  # fmt: skip
DARK = Ink(
    "#e8ecf1", "#9aa5b4", "#303945", "#151a21",
    ("#5cb3ec", "#ff8f4d", "#2fc79f", "#e28ccb", "#eab64d", "#9ad4ff", "#9aa5b4"),
)  # fmt: skip
PAGE = Ink("#0b0e01", "#0b0e02", "#0b0e03", "#0b0e04", tuple(f"#0b0e1{i}" for i in range(len(LIGHT.series))))
"""Stand-ins: in the SVG they become variables of the page's style, which has a light and a dark value of each."""

NARROW, WIDE = 4.7, 9.8
"""Widths of figures in inches: on the page, text is of the same size in both."""

Draw = Callable[[Ink], Figure]


def variables(ink: Ink) -> dict[str, str]:
    """Return the page's variables and their values: `--text`, `--muted`, `--grid`, `--ground`, `--series-0` ..."""
    named = {f"--{name}": getattr(ink, name) for name in ("text", "muted", "grid", "ground")}
    return named | {f"--series-{i}": colour for i, colour in enumerate(ink.series)}


@contextmanager
def style(ink: Ink) -> Iterator[None]:
    """Let figures that are made here have the look of the report."""
    settings = {
        "font.size": 9, "axes.titlesize": 9.5, "axes.labelsize": 9, "xtick.labelsize": 8, "ytick.labelsize": 8,
        "legend.fontsize": 8, "legend.frameon": False, "legend.handlelength": 1.8, "axes.titlelocation": "left",
        "font.family": "sans-serif", "axes.titleweight": "bold", "axes.titlepad": 7,
        "text.color": ink.text, "axes.labelcolor": ink.muted, "axes.titlecolor": ink.text,
        "xtick.color": ink.muted, "ytick.color": ink.muted, "axes.edgecolor": ink.muted, "axes.linewidth": 0.7,
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
        "grid.color": ink.grid, "grid.linewidth": 0.7, "lines.linewidth": 1.7, "lines.markersize": 4,
        "xtick.major.size": 3, "ytick.major.size": 3, "xtick.major.width": 0.7, "ytick.major.width": 0.7,
        "figure.facecolor": "none", "axes.facecolor": "none", "figure.constrained_layout.use": True,
        "svg.fonttype": "none", "svg.hashsalt": "report", "pdf.fonttype": 42,
    }  # fmt: skip
    with matplotlib.rc_context(settings):
        yield


def inline_svg(draw: Draw, label: str) -> str:
    """Draw a figure as SVG to put into the page; its text is text, its colours are the page's.

    Args:
        draw: makes the figure with the colours it is given.
        label: what it shows, for those who do not see it.
    """
    with style(PAGE):
        file = io.StringIO()
        draw(PAGE).savefig(file, format="svg", metadata={"Date": None}, transparent=True)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"\sxmlns(:\w+)?=\"[^\"]*\"", "", text).replace("xlink:href", "href")
    # identifiers are the same in all figures of matplotlib; those nobody refers to are not needed
    used = set(re.findall(r"(?:url\(#|href=\"#)([^\")]+)", text))
    text = re.sub(r" id=\"([^\"]+)\"", lambda found: found[0] if found[1] in used else "", text)
    mark = f"f{zlib.crc32(label.encode()):08x}-"
    text = re.sub(r"(url\(#|href=\"#| id=\")", lambda found: found[1] + mark, text)
    for name, colour in variables(PAGE).items():
        text = text.replace(colour, f"var({name})")
    text = re.sub(r"<svg height=\"[^\"]*\"|<svg width=\"[^\"]*\"", "<svg", text, count=1)
    text = re.sub(r"(<svg[^>]*?) (?:width|height)=\"[^\"]*\"", r"\1", text, count=1)
    return re.sub(r"<svg", f'<svg role="img" aria-label="{html.escape(label)}"', text, count=1)


def files_of(draw: Draw) -> dict[str, bytes]:
    """Draw a figure for paper, on white: `png` (200 dots per inch) and `pdf`.

    Args:
        draw: makes the figure with the colours it is given.
    """
    written = {}
    with style(LIGHT):
        made = draw(LIGHT)
        for kind, metadata in (("png", None), ("pdf", {"CreationDate": None})):
            file = io.BytesIO()
            made.savefig(file, format=kind, dpi=200, facecolor=LIGHT.ground, metadata=metadata)
            written[kind] = file.getvalue()
    return written


def figure(width: float = NARROW, height: float = 2.9, **grid: Any) -> tuple[Figure, Any]:
    """Make a figure with axes; sizes in inches, `grid` as for `Figure.subplots`."""
    made = Figure(figsize=(width, height))
    return made, made.subplots(**grid)


def panels(
    count: int, columns: int, width: float = WIDE, height: float = 2.4, **grid: Any
) -> tuple[Figure, list[Axes]]:
    """Make a figure of `count` panels in rows of at most `columns`; `height` is that of a row, in inches."""
    columns = min(count, columns)
    rows = -(-count // columns)
    made = Figure(figsize=(width, height * rows))
    made.get_layout_engine().set(wspace=0.05, hspace=0.05)
    axes = list(made.subplots(rows, columns, squeeze=False, **grid).flat)
    for spare in axes[count:]:
        spare.set_axis_off()
    return made, axes[:count]


def whole_numbers(axis: Any, most: int = 6) -> None:
    """Let an axis have whole numbers only, with separators of thousands."""
    axis.set_major_locator(MaxNLocator(most, integer=True))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def fractions(axis: Any, values: Iterable[float] = (0.0,)) -> None:
    """Let an axis show fractions of 1, from the quarter below the least value that it has to show up to 1."""
    least = min(values, default=0.0)
    low = max((quarter for quarter in (0.0, 0.25, 0.5, 0.75) if quarter <= least - 0.04), default=0.0)
    margin = 0.03 * (1 - low)
    axis.axes.set(**{f"{axis.axis_name}lim": (low - margin, 1 + margin)})
    step = 0.25 if low < 0.5 else 0.1 if low == 0.5 else 0.05
    ticks = [low + step * i for i in range(round((1 - low) / step) + 1)]
    axis.set_ticks(ticks, [f"{tick:.2g}".removeprefix("0") or "0" for tick in ticks])


def logarithmic(axis: Any, values: Iterable[float], written: str = "{:g}") -> None:
    """Let an axis that shows `values` be logarithmic; its ticks are round numbers, or powers where they reach far."""
    given = [value for value in values if 0 < value < math.inf]
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    if max(given) / min(given) < 300:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: written.format(value)))
    axis.set_minor_locator(NullLocator())


def averaged(points: Series, most: int = 25) -> Series:
    """Average neighbours where there are more points than a figure can show, as of runs in batches of one edit.

    Args:
        points: of a curve, in order.
        most: how many points are left at most, each at the end of those it stands for.
    """
    size = -(-len(points) // most) or 1
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]


def spans(values: Iterable[float], factor: float = 8) -> bool:
    """Tell whether positive values differ so much that a logarithmic scale reads better."""
    given = [value for value in values if 0 < value < math.inf]
    return bool(given) and max(given) / min(given) > factor


def legend(made: Figure, axes: Axes | Sequence[Axes], columns: int = 4, always: bool = False) -> None:
    """Put one legend below all panels, each name once; a single name needs none, unless `always`."""
    found: dict[str, Any] = {}
    for part in axes if isinstance(axes, Sequence) else [axes]:
        for handle, name in zip(*part.get_legend_handles_labels(), strict=True):
            found.setdefault(name, handle)
    if len(found) > 1 or (always and found):
        columns = min(columns, len(found))
        made.set_figheight(made.get_figheight() + 0.17 * (-(-len(found) // columns) - 1))
        made.legend(found.values(), found.keys(), loc="outside lower center", ncols=columns)
