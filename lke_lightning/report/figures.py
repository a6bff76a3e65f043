"""The figures of a report, in the order of the page: matplotlib on white, as self-contained SVG."""

from __future__ import annotations

import base64
import io
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

from lke_lightning.report.reading import RunRecord
from lke_lightning.report.records import Series

NARROW, WIDE = 4.7, 9.8
"""Widths in inches: half of the page, or all of it."""

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b5539c", "#b97a00", "#3b9bd6", "#5b6675")
"""Those of Okabe and Ito, distinguishable with every kind of color blindness; the yellow ones darkened."""
MARKERS, DASHES, GREY = "os^DvPX", ("-", "--", ":", "-."), "#7b8794"

STYLE: dict[Any, Any] = {
    "font.size": 9, "xtick.labelsize": 8, "ytick.labelsize": 8, "legend.fontsize": 8, "axes.titlesize": 9,
    "legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": "#dfe3e8", "lines.markersize": 4, "figure.constrained_layout.use": True,
    "text.parse_math": False,  # names of runs may hold dollars
    "svg.fonttype": "none", "svg.hashsalt": "report",
}  # fmt: skip

MOST_POINTS, MOST_PANELS, MOST_LETTERS = 25, 6, 48
"""Maximum points of a curve over edits, panels, letters of a name."""
LETTER, KEY = 0.075, 0.75
"""Width in inches of a letter in a legend, and of the space around a name."""
ROUNDING = 1e-5
"""Singular values below this share of the largest are float32 rounding and not drawn."""

REFERENCES = ("unedited", "known")
"""Prefixes of the names of reference curves: grey, and with several runs only the first one's."""


@dataclass(frozen=True)
class Exhibit:
    """A figure of curves with a caption; it is left out if no run has its topic."""

    section: str
    title: str
    caption: str
    topic: str
    """The topic of the curves; if several topics have this prefix, each has a panel."""
    common: Sequence[str] = ()
    """Prefixes of the curve that represents one of several runs, the first choice first; if empty, the run's largest
    values do."""
    scale: str = "linear"
    """Of the vertical axis: `linear`, `percent`, or `log`: logarithmic if the values span a wide range."""
    x: str = "edits made"
    y: str = ""

    def draw(self, runs: Sequence[RunRecord]) -> Figure | None:
        """Draw the curves of the runs; `None` if there are none."""
        topics = list(dict.fromkeys(name for run in runs for name in run.curves if name.startswith(self.topic)))
        found = {topic: [curve for curve in self._curves(runs, topic) if len(curve[1]) > 1] for topic in topics}
        shown = [topic for topic in topics if any(look["color"] != GREY for *_, look in found[topic])]
        if not shown:
            return None
        figure, axes = _panels(min(len(shown), MOST_PANELS))
        for ax, topic in zip(axes, shown, strict=False):
            for name, points, look in found[topic]:
                ax.plot(*zip(*points, strict=True), label=name, **look)
            self._scale(ax, [value for _, points, _ in found[topic] for _, value in points])
            ax.set(xlabel=self.x, ylabel=self.y or topic, title=topic if len(shown) > 1 else "")
            if self.x in ("edits made", "steps of stage one"):
                ax.set_xlim(left=0)
            ax.xaxis.set_major_locator(MaxNLocator(6, integer=self.x != PROBABILITY))
            ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.9g}"))
        _legend(figure, always=self.x == PROBABILITY)
        return figure

    def _curves(self, runs: Sequence[RunRecord], topic: str) -> list[tuple[str, Series, dict[str, Any]]]:
        """Return names, points and styles: all curves of one run, or one for each of several and the references."""
        shown: list[tuple[str, Series, dict[str, Any]]] = []
        for number, run in enumerate(runs):
            curves = run.curves.get(topic, {})
            own = {name: points for name, points in curves.items() if not name.startswith(REFERENCES)}
            if not any(look["color"] == GREY for *_, look in shown):
                known = [name for name in curves if name not in own]
                shown += [(name, curves[name], {"color": GREY, "ls": DASHES[i]}) for i, name in enumerate(known)]
            if len(runs) > 1:
                own = {run.name: self._one_of(own)}
            for i, (name, points) in enumerate(own.items(), number):
                points = self._thinned(points)
                look = {"color": COLOURS[i % 7], "ls": DASHES[i // 7 % 4]}
                shown.append((name, points, look | ({"marker": MARKERS[i % 7]} if len(points) <= MOST_POINTS else {})))
        return shown

    def _one_of(self, curves: dict[str, Series]) -> Series:
        by_place: dict[float, float] = {}
        for points in curves.values() if not self.common else ():
            for place, value in points:
                by_place[place] = max(value, by_place.get(place, value))
        chosen = (name for start in self.common for name in reversed(curves) if name.startswith(start))
        return curves.get(next(chosen, ""), sorted(by_place.items()))

    def _thinned(self, points: Series) -> Series:
        """Average neighboring batches if there are very many; leave out singular values that are rounding."""
        if self.topic.startswith("spectrum"):
            return [(place, value) for place, value in points if value > ROUNDING * points[0][1]]
        size = -(-len(points) // MOST_POINTS) if self.x == "edits made" and points else 1
        groups = [points[i : i + size] for i in range(0, len(points), size)]
        return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]

    def _scale(self, axes: Axes, values: Sequence[float]) -> None:
        if self.scale == "percent":
            least = min((value for value in values if not math.isnan(value)), default=0.0)
            low = max(0.0, math.floor(4 * least - 0.2) / 4)
            axes.set_ylim(low - 0.03 * (1 - low), 1 + 0.03 * (1 - low))
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        given = [value for value in values if 0 < value < math.inf]
        ratio = max(given) / min(given) if given else 1.0
        if self.scale == "log" and ratio > 8:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if ratio < 300 else (1,)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_locator(NullLocator())


@dataclass(frozen=True)
class Retention:
    """The efficacy of the edits of each batch at every evaluation: a heat map for each run."""

    section: str
    title: str
    caption: str

    def draw(self, runs: Sequence[RunRecord]) -> Figure | None:
        """Draw the runs that were evaluated more than once; `None` if there is none."""
        found = [run for run in runs if len(run.card.evaluated_after) > 1 and len(run.card.matrix[-1]) > 1]
        if not found:
            return None
        figure, axes = _panels(len(found))
        for ax, run in zip(axes, found, strict=True):
            rows, moments = run.card.matrix, run.card.evaluated_after
            cells = np.full((max(map(len, rows)), len(rows)), np.nan)
            for column, row in enumerate(rows):
                cells[: len(row), column] = row
            image = ax.imshow(cells, cmap="cividis", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
            ax.grid(False)
            ax.set(xlabel="edits made when evaluated", title=_fitting(run.name) if len(runs) > 1 else "")
            every = [max(1, -(-size // 6)) for size in cells.shape]
            ax.set_yticks(range(0, len(cells), every[0]), [str(n) for n in range(1, len(cells) + 1, every[0])])
            ax.set_xticks(range(0, len(moments), every[1]), [f"{edits:,}" for edits in moments[:: every[1]]])
        axes[0].set_ylabel("batch of the edit")
        figure.colorbar(image, ax=axes, shrink=0.85, pad=0.02, ticks=[0, 0.5, 1], label="efficacy")
        return figure


def as_image(draw: Callable[[Sequence[RunRecord]], Figure | None], runs: Sequence[RunRecord]) -> tuple[str, bool]:
    """Draw a figure.

    Returns:
        A data URL of the SVG, empty if there is nothing to draw; whether it takes the page's full width.
    """
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the reader's fonts draw the text
        figure, file = draw(runs), io.BytesIO()
        if figure is None:
            return "", False
        figure.savefig(file, format="svg", metadata={"Date": None})
    image = "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode()
    return image, figure.get_figwidth() > NARROW


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    columns = min(count, 3)
    rows = -(-count // columns)
    figure = Figure(figsize=(NARROW if count == 1 else WIDE, 2.9 * rows))
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for spare in axes[count:]:
        spare.set_axis_off()
    return figure, axes[:count]


def _legend(figure: Figure, always: bool) -> None:
    """Put one legend below all panels, each name once, in as many columns as there is room for."""
    found: dict[str, Any] = {}
    for axes in figure.axes:
        found |= {_fitting(str(line.get_label())): line for line in axes.get_lines()}
    if len(found) > 1 or always:
        room = figure.get_figwidth() / (KEY + LETTER * max(map(len, found)))
        columns = max(1, min(4, len(found), int(room)))
        figure.set_figheight(figure.get_figheight() + 0.17 * (-(-len(found) // columns) - 1))
        figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=columns)


def _fitting(name: str) -> str:
    half = MOST_LETTERS // 2
    return name if len(name) <= MOST_LETTERS else f"{name[: half - 1]}…{name[-half:]}"


PROBABILITY = "probability per token"

EXHIBITS: tuple[Exhibit | Retention, ...] = (
    Exhibit("Over the run", "Just after each batch", "A falling line: new edits succeed less often. "
        "Neighboring batches are averaged if there are many.", "just after", ["efficacy"], "percent", y="success"),
    Exhibit("Over the run", "Room for new edits", "Fulfilment: the share of a single new edit that would be written, "
        "before its batch. It falls as the memory of past edits fills up. Written, first choice: what arrived.",
        "arrival", ["fulfilment (median"], "percent", y="share"),
    Exhibit("Over the run", "All edits so far", "A falling line: earlier edits are lost. S is the harmonic mean of the "
        "three kinds.", "so far", ["S", "efficacy"], "percent", y="success"),
    Exhibit("Over the run", "Perplexity", "On text unrelated to the edits. A rise: language modeling degrades.",
        "perplexity", ["perplexity"], "log"),
    Exhibit("Over the run", "Downstream tasks", "Tasks unrelated to the edits. Anything below the first point is "
        "capability lost to editing.", "downstream", ["mean"], "percent", y="weighted F1 or accuracy"),
    Retention("Retention", "Retention per batch", "Rows are batches, the oldest at the top. Read a row from left to "
        "right to see a batch being forgotten."),
    Exhibit("Retention", "By age of edit", "The oldest batch is at the left. A rise to the right: later edits "
        "overwrite earlier ones.", "retention", ["at the end"], "percent", "edits made when the batch was", "efficacy"),
    Exhibit("Retention", "Confidence in answers", "Edited answers, against those that the unedited model gives on "
        "its own. Edits far to the right of known facts are overfitted.",
        "probability", ["edited, just after"], x=PROBABILITY, y="share of facts"),
    Exhibit("What changed", "Norm growth", "Frobenius norm of the edited matrices (several runs: the largest). "
        "Unbounded growth is the first sign of collapse.", "norm growth", scale="log", y="norm, multiples of unedited"),
    Exhibit("What changed", "Norms by depth", "The MLP's output matrix in every block. Edited blocks should not stand "
        "far above the others.", "norms by depth", ["edited"], "log", "block", "norm"),
    Exhibit("What changed", "Ordinary keys", "Change of the outputs for keys of ordinary text, relative to the "
        "unedited outputs: sqrt tr(D C D') / sqrt tr(W C W'). Preservation is meant to keep it small.", "key drift"),
    Exhibit("What changed", "Contributions to the residual stream", "Mean share of each sub-module in the norms of "
        "everything added to the stream, on text unrelated to the edits. A growing share of the edited MLPs is "
        "importance hacking.", "share of ", ["edited"], x="block", y="share"),
    Exhibit("What changed", "Spectrum of the change", "Largest singular values near those of the matrix itself: the "
        "change dominates it. A steep line: few directions.",
        "spectrum of ", ["change"], "log", "number of the singular value", "singular value"),
    Exhibit("Effort", "Steps to stop", "Share of edits whose stop rule had fired. A jump at the last step: edits that "
        "did not converge.", "steps", ["all"], "percent", "steps of stage one", "edits"),
)  # fmt: skip
