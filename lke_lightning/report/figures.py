"""The figures of a report, in the order of the page.

Each takes what it needs from some runs, and is left out where they do not have it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from lke_lightning.evaluation.teacher_forced import KINDS
from lke_lightning.report import changes
from lke_lightning.report.drawing import (
    COLOURS,
    DASHED,
    MUTED,
    NARROW,
    TEXT,
    WIDE,
    curves,
    legend,
    line_style,
    panels,
    percent,
    whole_numbers,
)
from lke_lightning.report.reading import RunRecord, Runs, of_each

MOST_BARS, WRITTEN_CELLS = 30, 12
"""Bars of steps, and rows of a heat map that has its numbers in it, at most."""


@dataclass(frozen=True)
class Exhibit:
    """A figure with what is said beside it."""

    section: str
    title: str
    caption: str
    draw: Callable[[Runs], Figure | None]


def scores(runs: Runs) -> Figure | None:
    """Final successes of several runs with their intervals, and hollow those just after."""
    if len(runs) == 1 or not any(run.card.scores["final"] for run in runs):
        return None
    figure, axes = panels(4, 4, 1.0 + 0.27 * len(runs), sharey=True)
    for ax, kind in zip(axes, (*KINDS, "S"), strict=True):
        for row, run in enumerate(runs):
            early, score = run.score(kind, "just_after"), run.score(kind)
            if early:
                ax.plot(early.value, row, "o", mfc="none", color=MUTED, label="just after each batch")
            if score and score.bounds:
                ax.plot(score.bounds, (row, row), color=COLOURS[0], lw=3, alpha=0.4)
            if score:
                ax.plot(score.value, row, "o", color=COLOURS[0], label="at the end")
        ax.set(title=kind, xlim=(-0.03, 1.03), xticks=[0, 0.5, 1], xticklabels=["0 %", "50 %", "100 %"])
        ax.set_yticks(range(len(runs)), [run.name for run in runs])
        ax.set_ylim(len(runs) - 0.5, -0.5)
    legend(figure)
    return figure


def just_after(runs: Runs) -> Figure | None:
    """Success of each batch right after it was edited."""
    named = of_each(
        runs, lambda run: run.just_after("efficacy"), lambda run: {kind: run.just_after(kind) for kind in KINDS}
    )
    return curves(named, "success" if len(runs) == 1 else "efficacy", fraction=True)


def so_far(runs: Runs) -> Figure | None:
    """Success on all edits so far; of several runs S, or the efficacy where they have no S."""
    common = "S" if any(run.so_far("S") for run in runs) else "efficacy"
    named = of_each(
        runs, lambda run: run.so_far(common), lambda run: {kind: run.so_far(kind) for kind in (*KINDS, "S")}
    )
    return curves(named, "success" if len(runs) == 1 else common, fraction=True)


def perplexity(runs: Runs) -> Figure | None:
    """Perplexity of untouched text over edits."""
    return curves({run.name: run.so_far("perplexity") for run in runs}, "perplexity of untouched text", log=True)


def downstream(runs: Runs) -> Figure | None:
    """Weighted F1 of downstream tasks over edits, of several runs the mean."""
    named = of_each(runs, lambda run: run.downstream_f1().get("mean", []), RunRecord.downstream_f1)
    return curves(named, "weighted F1", fraction=True)


def retention(runs: Runs) -> Figure | None:
    """Efficacy of the edits of each batch at every evaluation, as a heat map for each run."""
    found = [(run.name, *run.card.matrix) for run in runs]
    found = [(name, moments, rows) for name, moments, rows in found if len(moments) > 1 and len(rows[-1]) > 1]
    if not found:
        return None
    alone = len(runs) == 1
    figure, axes = panels(len(found), 3, 2.9, NARROW if alone else WIDE)
    for ax, (name, moments, rows) in zip(axes, found, strict=True):
        cells = np.full((max(map(len, rows)), len(rows)), np.nan)
        for column, row in enumerate(rows):
            cells[: len(row), column] = row
        image = ax.imshow(cells, cmap="cividis", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        for (y, x), value in np.ndenumerate(cells) if alone and max(cells.shape) <= WRITTEN_CELLS else ():
            if value == value:
                ax.text(x, y, f"{value:.2f}", ha="center", va="center", size=7, color="w" if value < 0.55 else TEXT)
        ax.grid(False)
        ax.set(xlabel="edits made when evaluated", title="" if alone else name)
        steps = [max(1, -(-size // 6)) for size in cells.shape]
        ax.set_xticks(range(0, len(moments), steps[1]), [f"{edits:,}" for edits in moments[:: steps[1]]])
        ax.set_yticks(range(0, len(cells), steps[0]), [f"{batch + 1:,}" for batch in range(0, len(cells), steps[0])])
    axes[0].set_ylabel("batch of the edit")
    figure.colorbar(image, ax=axes, shrink=0.85, pad=0.02, ticks=[0, 0.5, 1], label="efficacy")
    return figure


def by_age(runs: Runs) -> Figure | None:
    """Efficacy of each batch at the end, and of one run just after it was made."""
    named = of_each(
        runs, RunRecord.retention,
        lambda run: {"at the end": run.retention(), "just after": run.just_after("efficacy")},
    )  # fmt: skip
    if not any(len(run.retention()) > 1 for run in runs):
        return None
    figure = curves(named, "efficacy of the batch", fraction=True)
    figure.axes[0].set_xlabel("edits made when the batch was (left: oldest)")
    return figure


WHOSE = {
    "known_originals": "known: answers that edits replace", "known_neighborhood": "known: answers about others",
    "edited_just_after": "edited, just after", "edited_final": "edited, at the end",
}  # fmt: skip


def probability(runs: Runs) -> Figure | None:
    """Histogram of the probabilities of targets, beside those of facts that the model knew by itself."""
    found = [(number, run.name, run.card.probabilities) for number, run in enumerate(runs)]
    found = [(number, name, parts) for number, name, parts in found if "edited_just_after" in parts]
    if not found:
        return None
    figure, [ax] = panels(1, 1, 2.9, NARROW)
    for place, (number, name, parts) in enumerate(found):
        for whose in filter(parts.__contains__, WHOSE):
            known, final = whose.startswith("known"), whose == "edited_final"
            if len(runs) > 1 and (final or (known and place)):
                continue  # of several runs, each just after, and what the first one's model knew
            counts, mean = parts[whose]
            shares = np.array(counts) / max(1, sum(counts))
            label = name if len(runs) > 1 and not known else WHOSE[whose]
            colour = MUTED if known else COLOURS[(number + final) % len(COLOURS)]
            dash = line_style(number)["linestyle"] if not known else DASHED if whose == "known_neighborhood" else "-"
            ax.stairs(shares, np.linspace(0, 1, len(counts) + 1), color=colour, ls=dash, lw=1.7,
                      label=f"{label} (mean {mean:.2f})")  # fmt: skip
    ax.set(xlabel="probability per token", ylabel="share of facts")
    legend(figure, always=True)
    return figure


def time_spent(runs: Runs) -> Figure | None:
    """Where the wall time went."""
    spent = {run.name: run.card.seconds for run in runs if run.card.seconds}
    if not spent:
        return None
    longest = max(sum(parts.values()) for parts in spent.values())
    unit, size = ("hours", 3600) if longest > 7200 else ("minutes", 60) if longest > 300 else ("seconds", 1)
    figure, [ax] = panels(1, 1, 1.4 + 0.27 * len(spent), NARROW)
    left = np.zeros(len(spent))
    for number, activity in enumerate(dict.fromkeys(name for parts in spent.values() for name in parts)):
        width = np.array([parts.get(activity, 0.0) / size for parts in spent.values()])
        colour = MUTED if activity == "other" else COLOURS[number % len(COLOURS)]
        ax.barh(range(len(spent)), width, 0.62, left, color=colour, edgecolor="w", label=activity.replace("_", " "))
        left += width
    ax.set_yticks(range(len(spent)), spent if len(runs) > 1 else [""])
    ax.set(xlabel=unit, ylim=(len(spent) - 0.5, -0.5))
    legend(figure, always=True)
    return figure


def seconds_per_edit(runs: Runs) -> Figure | None:
    """Wall time per edit over the run."""
    figure = curves({run.name: run.history.seconds_per_edit for run in runs}, "seconds per edit")
    if figure:
        figure.axes[0].set_ylim(bottom=0)
    return figure


def steps(runs: Runs) -> Figure | None:
    """Steps of stage one until it stopped: of one run by the rule that stopped it, of several cumulated."""
    found = [(number, run.name, run.history.steps) for number, run in enumerate(runs) if run.history.steps]
    if not found:
        return None
    figure, [ax] = panels(1, 1, 2.9, NARROW)
    if len(runs) == 1:
        rules = found[0][2]
        most = max(map(max, rules.values()))
        width = max(1, -(-most // MOST_BARS))
        edges = np.arange(-0.5, most + width, width)
        ax.hist(list(rules.values()), edges, stacked=True, label=list(rules), color=COLOURS[: len(rules)], edgecolor="w")
        ax.set_ylabel("edits")
    else:
        for number, name, rules in found:
            look = line_style(number) | {"marker": ""}
            ax.ecdf([count for counts in rules.values() for count in counts], label=name, **look)
        ax.set_ylabel("edits that stopped by then")
        percent(ax, [0])
    ax.set_xlabel("steps of stage one")
    whole_numbers(ax)
    legend(figure, always=len(runs) == 1)
    return figure


EXHIBITS = (
    Exhibit(
        "Over the run", "Scores",
        "Success at the end, with 95 % confidence intervals over edits where the run has them. Hollow and filled far "
        "apart: what was learned was lost.", scores,
    ),
    Exhibit(
        "Over the run", "Just after each batch",
        "Each batch right after it was edited; neighbours are averaged where there are many. A falling line means that "
        "the model takes edits less and less well.", just_after,
    ),
    Exhibit(
        "Over the run", "All edits so far",
        "At each evaluation during the run. A falling line means that earlier edits are lost. S is the harmonic mean "
        "of the three kinds.", so_far,
    ),
    Exhibit(
        "Over the run", "Perplexity",
        "On text that no edit is about; flat is good. A rise means that the model forgets language itself.", perplexity,
    ),
    Exhibit(
        "Over the run", "Downstream tasks",
        "Weighted F1 on tasks that have nothing to do with the edits; what falls below the first point is capability "
        "that editing cost.", downstream,
    ),
    Exhibit(
        "Retention", "Retention per batch",
        "Rows are batches, the oldest at the top; columns are evaluations. Read a row from left to right to see a "
        "batch being forgotten.", retention,
    ),
    Exhibit(
        "Retention", "By age of edit",
        "Efficacy of the edits of each batch at the end of the run. A curve that rises to the right means that later "
        "edits overwrite earlier ones.", by_age,
    ),
    Exhibit(
        "Retention", "How sure the model is",
        "Probability per token of edited answers, against answers that the unedited model gives by itself. Edits far "
        "to the right of what the model knows are over-optimised.", probability,
    ),
    Exhibit(
        "What changed", "Norm growth",
        "Frobenius norm of the edited matrices. Norms that grow without end are the first sign of a model that will "
        "collapse; a good regulariser lets them level off.", changes.norm_growth,
    ),
    Exhibit(
        "What changed", "Norms by depth",
        "The same matrix of every block. Edited blocks should not tower above the others.", changes.matrix_norms,
    ),
    Exhibit(
        "What changed", "Ordinary keys",
        "How much the edited matrices' answers to the keys of ordinary text changed, relative to what they were: "
        "sqrt tr(D C D') / sqrt tr(W C W'). What preservation is meant to keep small.", changes.key_drift,
    ),
    Exhibit(
        "What changed", "Who fills the residual stream",
        "Mean share of each sub-module in the norms of all that is added to the residual stream, on text that no edit "
        "is about. Edited MLPs that take a growing share drown out the others (importance hacking).",
        changes.contributions,
    ),
    Exhibit(
        "What changed", "Spectrum of the change",
        "A change whose largest singular values come near those of the matrix itself has taken it over. A steep line "
        "is a change of few directions.", changes.spectrum,
    ),
    Exhibit("Effort", "Where the time went", "Wall time by activity.", time_spent),
    Exhibit(
        "Effort", "Seconds per edit",
        "From the end of one batch to the end of the next, evaluations between them included and pauses left out. "
        "A rise means that the run slows down as it remembers more.", seconds_per_edit,
    ),
    Exhibit(
        "Effort", "Steps to stop",
        "Steps of gradient descent until an edit's stop rule fired. Edits that end at the limit did not converge.",
        steps,
    ),
)  # fmt: skip
