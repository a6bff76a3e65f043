"""Figures of what was learned and what was kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lke_lightning.report.canvas import (
    HEAT,
    NARROW,
    WIDE,
    Draw,
    Ink,
    averaged,
    figure,
    fractions,
    legend,
    logarithmic,
    panels,
    spans,
    whole_numbers,
)
from lke_lightning.report.figures.exhibit import Exhibit
from lke_lightning.report.reading import KINDS, MOMENTS, RunRecord, Score, Series

DASH = (0, (3, 1.5))

WRITTEN_CELLS = 12
"""A heat map of at most so many rows and columns has its numbers in it."""


def scores(runs: Sequence[RunRecord]) -> Draw | None:
    """Successes with their intervals: of one run at three moments, of several at the end."""
    what = (*KINDS, "S")
    if len(runs) == 1:
        rows = [(moment.replace("_", " "), {kind: runs[0].score(moment, kind) for kind in what}) for moment in MOMENTS]
        faint: list[dict[str, Score | None]] = [{} for _ in rows]
    else:
        rows = [(run.name, {kind: run.score("final", kind) for kind in what}) for run in runs]
        faint = [{kind: run.score("just_after", kind) for kind in what} for run in runs]
    keep = [i for i, (_, found) in enumerate(rows) if any(found.values()) or any(faint[i].values())]
    if not keep:
        return None
    rows, faint = [rows[i] for i in keep], [faint[i] for i in keep]

    def draw(ink: Ink) -> Figure:
        made, axes = panels(4, 4, height=0.85 + 0.27 * len(rows), sharey=True)
        for ax, kind in zip(axes, what, strict=True):
            for y, ((_, found), early) in enumerate(zip(rows, faint, strict=True)):
                colour = ink.colour(what.index(kind))
                if early.get(kind):
                    ax.plot(early[kind].value, y, "o", mfc="none", mec=ink.muted, ms=5)
                score = found[kind]
                if score is None:
                    continue
                if score.bounds:
                    ax.plot(score.bounds, (y, y), color=colour, lw=2.2, alpha=0.45, solid_capstyle="round")
                ax.plot(score.value, y, "o", color=colour, ms=5.5)
            ax.set_title(kind)
            fractions(ax.xaxis)
            ax.grid(False, axis="y")
            ax.spines["left"].set_visible(False)
            ax.tick_params(axis="y", length=0)
        axes[0].set_yticks(range(len(rows)), [name for name, _ in rows], color=ink.text)
        axes[0].set_ylim(len(rows) - 0.5, -0.5)
        if len(runs) > 1:
            marks = [Line2D([], [], ls="", marker="o", color=ink.muted, mfc=fill) for fill in ("none", ink.muted)]
            made.legend(marks, ["just after each batch", "at the end"], loc="outside lower center", ncols=2)
        return made

    return draw


def _curves(
    runs: Sequence[RunRecord], read: Callable[[RunRecord], Series], name: str, is_fraction: bool, log: bool = False
) -> Draw | None:
    """Draw one curve for each run that has it."""
    found = [(number, run.name, averaged(read(run))) for number, run in enumerate(runs)]
    found = [(number, label, points) for number, label, points in found if len(points) > 1]
    if not found:
        return None

    def draw(ink: Ink) -> Figure:
        made, ax = figure()
        for number, label, points in found:
            edits, values = zip(*points, strict=True)
            ax.plot(edits, values, label=label, clip_on=False, **ink.line(number))
        shown = [value for *_, points in found for _, value in points]
        if is_fraction:
            fractions(ax.yaxis, shown)
        elif log and spans(shown):
            logarithmic(ax.yaxis, shown)
        ax.set(xlabel="edits made", ylabel=name)
        whole_numbers(ax.xaxis)
        ax.set_xlim(left=0)
        legend(made, ax, columns=3)
        return made

    return draw


def efficacy(runs: Sequence[RunRecord]) -> Draw | None:
    """Efficacy over edits, of each batch just after and of all edits so far."""
    if len(runs) > 1:
        return _curves(runs, lambda run: run.just_after("efficacy"), "efficacy of each batch, just after", True)
    found = {kind: averaged(runs[0].just_after(kind)) for kind in KINDS}
    later = averaged(_of_edits(runs[0].evaluated("efficacy")))
    if not any(found.values()):
        return None

    def draw(ink: Ink) -> Figure:
        made, ax = figure()
        for number, (kind, points) in enumerate(found.items()):
            if points:
                ax.plot(*zip(*points, strict=True), label=f"{kind}, just after", clip_on=False, **ink.line(number))
        if later:
            ax.plot(*zip(*later, strict=True), color=ink.text, ls=DASH, marker="x", ms=5, clip_on=False,
                    label="efficacy of all so far")  # fmt: skip
        fractions(ax.yaxis, [value for points in (*found.values(), later) for _, value in points])
        ax.set(xlabel="edits made", ylabel="success, fraction of prompts")
        whole_numbers(ax.xaxis)
        ax.set_xlim(left=0)
        legend(made, ax, columns=2)
        return made

    return draw


def score(runs: Sequence[RunRecord]) -> Draw | None:
    """S of all edits so far."""
    return _curves(runs, lambda run: _of_edits(run.evaluated("S")), "S of all edits so far", True)


def _of_edits(points: Series) -> Series:
    """Leave out the unedited model: what is measured of edits made so far begins with the first."""
    return [(edits, value) for edits, value in points if edits]


def perplexity(runs: Sequence[RunRecord]) -> Draw | None:
    """Perplexity of untouched text over edits."""
    return _curves(runs, lambda run: run.evaluated("perplexity"), "perplexity of untouched text", False, log=True)


def downstream(runs: Sequence[RunRecord]) -> Draw | None:
    """Mean score on downstream tasks over edits; of one run each task too."""
    tasks = runs[0].downstream_tasks() if len(runs) == 1 else {}
    if len(tasks) < 2 or max(map(len, tasks.values())) < 2:
        return _curves(runs, lambda run: run.downstream_mean(), "mean weighted F1 of downstream tasks", True)

    def draw(ink: Ink) -> Figure:
        made, ax = figure()
        for number, (task, points) in enumerate(tasks.items()):
            ax.plot(*zip(*points, strict=True), label=task, lw=1, alpha=0.8, **ink.line(number))
        ax.plot(*zip(*runs[0].downstream_mean(), strict=True), color=ink.text, lw=2.2, label="mean")
        fractions(ax.yaxis, [value for points in tasks.values() for _, value in points])
        ax.set(xlabel="edits made", ylabel="weighted F1")
        whole_numbers(ax.xaxis)
        legend(made, ax)
        return made

    return draw


def retention(runs: Sequence[RunRecord]) -> Draw | None:
    """Efficacy of the edits of each batch at every evaluation, as a heat map for each run."""
    found = [(run, *run.retention_matrix()) for run in runs]
    found = [(run, moments, rows) for run, moments, rows in found if len(moments) > 1 and len(rows[-1]) > 1]
    if not found:
        return None

    def draw(ink: Ink) -> Figure:
        alone = len(found) == 1
        made, axes = panels(len(found), 3, height=2.9 if alone else 2.7, width=NARROW if alone else WIDE)
        for ax, (run, moments, rows) in zip(axes, found, strict=True):
            batches = max(map(len, rows))
            cells = np.full((batches, len(rows)), np.nan)
            for column, row in enumerate(rows):
                for batch, value in enumerate(row):
                    cells[batch, column] = np.nan if value is None else value
            image = ax.imshow(cells, cmap=HEAT, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
            if max(cells.shape) <= WRITTEN_CELLS and alone:
                for (y, x), value in np.ndenumerate(cells):
                    if value == value:
                        ax.text(x, y, f"{value:.2f}".removeprefix("0"), ha="center", va="center", size=7,
                                color="#ffffff" if value < 0.55 else "#10151c")  # fmt: skip
            ax.grid(False)
            ax.set(xlabel="edits made when asked", title="" if alone else run.name)
            every = max(1, -(-len(moments) // 6))
            ax.set_xticks(range(0, len(moments), every), [f"{moments[i]:,}" for i in range(0, len(moments), every)])
            every = max(1, -(-batches // 6))
            ax.set_yticks(range(0, batches, every), [f"{batch + 1:,}" for batch in range(0, batches, every)])
        axes[0].set_ylabel("batch of the edit")
        bar = made.colorbar(image, ax=axes, shrink=0.85, pad=0.02, ticks=[0, 0.5, 1])
        bar.set_label("efficacy", color=ink.muted)
        bar.outline.set_visible(False)
        return made

    return draw


def kept(runs: Sequence[RunRecord]) -> Draw | None:
    """Efficacy of each batch at the end, and just after it was made."""
    found = [(number, run, run.retention()) for number, run in enumerate(runs)]
    found = [(number, run, parts) for number, run, parts in found if len(parts) > 1]
    if not found:
        return None

    def draw(ink: Ink) -> Figure:
        made, ax = figure()
        shown: list[float] = []
        for number, run, parts in found:
            ends = [run.edits_after(part["batch"]) for part in parts]
            end = [part["success"] if part["success"] is not None else part["accuracy"] for part in parts]
            end = averaged(list(zip(ends, end, strict=True)))
            shown += [value for _, value in end]
            if len(runs) > 1:
                ax.plot(*zip(*end, strict=True), label=run.name, clip_on=False, **ink.line(number))
                continue
            early = dict(run.just_after("efficacy"))
            start = averaged([(edits, early.get(edits, np.nan)) for edits in ends])
            shown += [value for _, value in start]
            x, after = zip(*start, strict=True)
            ax.vlines(x, [value for _, value in end], after, color=ink.muted, lw=1, alpha=0.6)
            ax.plot(x, after, "o", mfc="none", mec=ink.colour(0), label="just after the batch", clip_on=False)
            ax.plot(*zip(*end, strict=True), "o", color=ink.colour(0), label="at the end of the run", clip_on=False)
        fractions(ax.yaxis, [value for value in shown if value == value])
        ax.set(xlabel="edits made when the batch was (left: oldest)", ylabel="efficacy of the batch")
        whole_numbers(ax.xaxis)
        ax.set_xlim(left=0)
        legend(made, ax, columns=3)
        return made

    return draw


TOLD = {
    "known_originals": "known before: answers that edits replace",
    "known_neighborhood": "known before: answers about others",
    "edited_just_after": "edited, just after",
    "edited_final": "edited, at the end",
}


def probability(runs: Sequence[RunRecord]) -> Draw | None:
    """Histogram of the probabilities of targets, beside those of facts that the model knew by itself."""
    found = [(number, run, run.probabilities()) for number, run in enumerate(runs)]
    found = [(number, run, parts) for number, run, parts in found if "edited_just_after" in parts]
    if not found:
        return None

    def draw(ink: Ink) -> Figure:
        made, ax = figure()
        for number, run, parts in found:
            for place, name in enumerate(TOLD):
                is_known = name.startswith("known")
                if name not in parts or (len(runs) > 1 and (name == "edited_final" or (is_known and number))):
                    continue  # of several runs, each just after, and what the first one's model knew
                counts, mean = parts[name]
                share = np.array(counts) / max(1, sum(counts))
                edges = np.linspace(0, 1, len(counts) + 1)
                colour = ink.muted if is_known else ink.colour(number if len(runs) > 1 else place - 2)
                dash = ink.line(number)["linestyle"] if len(runs) > 1 and not is_known else ("-", DASH)[place % 2]
                label = run.name if len(runs) > 1 and not is_known else TOLD[name]
                ax.stairs(share, edges, color=colour, lw=1.7, ls=dash, label=f"{label} (mean {mean:.2f})", zorder=3)
                if len(runs) == 1 and name in ("known_originals", "edited_just_after"):
                    ax.stairs(share, edges, color=colour, alpha=0.18, fill=True)
        fractions(ax.xaxis)
        ax.set(xlabel="probability per token", ylabel="share of facts")
        legend(made, ax, columns=1 if len(runs) == 1 else 2, always=True)
        return made

    return draw


EXHIBITS = (
    Exhibit(
        "scores", "Scorecard", "Scores",
        "Success is the share of prompts after which the wanted answer is more probable than the other one; S is the "
        "harmonic mean of the three. Bars are 95 % confidence intervals over edits, where the run has them.",
        scores, is_wide=True,
    ),
    Exhibit(
        "efficacy", "Over the run", "Efficacy",
        "Each batch right after it was edited; neighbours are averaged where there are many. A falling line means that "
        "the model takes edits less and less well; "
        "the dashed line falls too where earlier edits are lost.",
        efficacy,
    ),
    Exhibit(
        "score", "Over the run", "Overall score",
        "S over all edits made so far, at each evaluation during the run.", score,
    ),
    Exhibit(
        "perplexity", "Over the run", "Perplexity",
        "On text that no edit is about; flat is good. A rise means that the model forgets language itself.", perplexity,
    ),
    Exhibit(
        "downstream", "Over the run", "Downstream tasks",
        "Weighted F1 on tasks that have nothing to do with the edits; what falls below the first point is capability "
        "that editing cost.", downstream,
    ),
    Exhibit(
        "retention", "What was kept", "Retention",
        "Rows are batches, the oldest at the top; columns are evaluations. Read a row from left to right to see a "
        "batch being forgotten.", retention, is_wide_of_several=True,
    ),
    Exhibit(
        "kept", "What was kept", "By age of edit",
        "Efficacy of the edits of each batch at the end of the run. Older edits lie to the left: a curve that rises "
        "to the right means that later edits overwrite earlier ones.", kept,
    ),
    Exhibit(
        "probability", "What was kept", "How sure the model is",
        "Probability per token of edited answers, against answers that the unedited model gives by itself. Edits far "
        "to the right of what the model knows are over-optimised.", probability,
    ),
)  # fmt: skip
