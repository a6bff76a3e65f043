"""Figures of what a run took."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from lke_lightning.report.canvas import Draw, Ink, averaged, figure, legend, whole_numbers
from lke_lightning.report.figures.exhibit import Exhibit
from lke_lightning.report.reading import RunRecord

BARS = 30
"""Steps that have a bar each; beyond that, bars are wider."""


def time_spent(runs: Sequence[RunRecord]) -> Draw | None:
    """Where the wall time went."""
    spent = [(run.name if len(runs) > 1 else "", run.time_spent()) for run in runs]
    spent = [(name, parts) for name, parts in spent if parts]
    if not spent:
        return None
    activities = list(dict.fromkeys(name for _, parts in spent for name in parts))
    longest = max(sum(parts.values()) for _, parts in spent)
    unit, size = ("hours", 3600) if longest > 7200 else ("minutes", 60) if longest > 300 else ("seconds", 1)

    def one(ink: Ink) -> Figure:
        made, ax = figure(height=1.2 + 0.27 * len(activities))
        [(_, parts)] = spent
        values = [parts[activity] / size for activity in activities]
        names = [activity.replace("_", " ") for activity in activities]
        colours = [ink.muted if activity == "other" else ink.colour(0) for activity in activities]
        bars = ax.barh(names, values, height=0.62, color=colours)
        total = sum(values)
        ax.bar_label(bars, [f"{value / total:.0%}" for value in values], padding=4, color=ink.text, size=8)
        ax.invert_yaxis()
        ax.margins(x=0.12)
        ax.set(xlabel=unit)
        ax.grid(False, axis="y")
        ax.tick_params(axis="y", length=0, labelcolor=ink.text)
        return made

    def several(ink: Ink) -> Figure:
        made, ax = figure(height=1.5 + 0.24 * len(spent))
        left = np.zeros(len(spent))
        for number, activity in enumerate(activities):
            width = np.array([parts.get(activity, 0.0) / size for _, parts in spent])
            colour = ink.grid if activity == "other" else ink.colour(number)
            ax.barh(range(len(spent)), width, left=left, height=0.62, color=colour, label=activity.replace("_", " "),
                    edgecolor=ink.ground, linewidth=0.8)  # fmt: skip
            left += width
        ax.set_yticks(range(len(spent)), [name for name, _ in spent], color=ink.text)
        ax.set_ylim(len(spent) - 0.5, -0.5)
        ax.set(xlabel=unit)
        ax.grid(False, axis="y")
        ax.tick_params(axis="y", length=0)
        legend(made, ax, columns=4)
        return made

    return one if len(runs) == 1 else several


def seconds_per_edit(runs: Sequence[RunRecord]) -> Draw | None:
    """Wall time per edit over the run."""
    found = [(number, run.name, averaged(run.seconds_per_edit())) for number, run in enumerate(runs)]
    found = [(number, name, points) for number, name, points in found if len(points) > 1]
    if not found:
        return None

    def draw(ink: Ink) -> Figure:
        made, ax = figure()
        for number, name, points in found:
            ax.plot(*zip(*points, strict=True), label=name, **ink.line(number))
        ax.set(xlabel="edits made", ylabel="seconds per edit")
        ax.set_ylim(bottom=0)
        ax.set_xlim(left=0)
        whole_numbers(ax.xaxis)
        legend(made, ax, columns=3)
        return made

    return draw


def steps(runs: Sequence[RunRecord]) -> Draw | None:
    """Steps of stage one until it stopped: of one run by the rule that stopped it, of several cumulated."""
    taken = [(number, run, run.events("edit")) for number, run in enumerate(runs)]
    taken = [(number, run, edits) for number, run, edits in taken if edits]
    if not taken:
        return None

    def one(ink: Ink) -> Figure:
        made, ax = figure()
        edits = taken[0][2]
        most = max(entry["steps"] for entry in edits)
        edges = np.arange(-0.5, most + 1, max(1, -(-most // BARS)))
        edges = np.append(edges, edges[-1] + (edges[1] - edges[0] if len(edges) > 1 else 1))
        rules = sorted({entry["stopped_by"] for entry in edits})
        counts = [[entry["steps"] for entry in edits if entry["stopped_by"] == rule] for rule in rules]
        colours = [ink.colour(i) for i in range(len(rules))]
        ax.hist(counts, edges, stacked=True, color=colours, label=rules, edgecolor=ink.ground, linewidth=0.8)
        ax.set(xlabel="steps of stage one", ylabel="edits")
        ax.grid(False, axis="x")
        whole_numbers(ax.xaxis)
        whole_numbers(ax.yaxis)
        legend(made, ax, always=True)
        return made

    def several(ink: Ink) -> Figure:
        made, ax = figure()
        for number, run, edits in taken:
            line = ink.line(number)
            ax.ecdf([entry["steps"] for entry in edits], label=run.name, color=line["color"], ls=line["linestyle"])
        ax.set(xlabel="steps of stage one", ylabel="share of edits that stopped by then", ylim=(0, 1.03))
        whole_numbers(ax.xaxis)
        legend(made, ax, columns=3)
        return made

    return one if len(taken) == 1 else several


EXHIBITS = (
    Exhibit("time", "What it took", "Where the time went", "Wall time by activity.", time_spent),
    Exhibit(
        "seconds", "What it took", "Seconds per edit",
        "From the end of one batch to the end of the next, evaluations between them included and pauses left out. "
        "Flat is good: a rise means that the run slows down as it remembers more.", seconds_per_edit,
    ),
    Exhibit(
        "steps", "What it took", "Steps to stop",
        "Steps of gradient descent until an edit's stop rule fired. Edits that end at the limit did not converge.",
        steps,
    ),
)  # fmt: skip
