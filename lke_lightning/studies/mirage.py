"""The mirage: how much of editing's success is left when the model speaks for itself."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any, ClassVar

from matplotlib.axes import Axes

from lke_lightning.studies.study import Claim, Facts, Study, figure, listed, verdict

WAYS = {"alone": "each edit alone", "in batches": "in batches, one after another", "one by one": "one after another"}


class Mirage(Study):
    """The same edits scored with the answer's own tokens given, and by what the model generates."""

    title: ClassVar[str] = "How much success is left when the model answers freely?"
    source: ClassVar[str] = (
        "The Mirage of Model Editing: Revisiting Evaluation in the Wild, Yang et al., arXiv 2502.11177"
    )
    asks: ClassVar[str] = (
        "Reliability is scored twice on the same edits: teacher-forced, as the share of the answer's tokens that are "
        "the most probable ones after the right tokens before them; and generated, as the share of edits whose greedy "
        "answer, up to the end of its line, begins with the target. No judge is asked. Edits are made alone, each on "
        "the unedited model, or in batches one after another and scored at the end."
    )

    def facts(self, card: Mapping[str, Any]) -> Facts:
        """Take both scores of the edited prompts, with their intervals, after all edits or after each alone."""
        is_single = "me_ppl" in card or "batches" in card
        part = card["just_after"] if is_single else card["final"]
        forced, free = part["teacher_forced"]["efficacy"], part["generated"]["efficacy"]
        bounds = part["intervals"]
        return {
            "edits": card["edits"],
            "data": card["data"],
            "way": "alone" if is_single else "in batches" if card["batch_size"] > 1 else "one by one",
            "teacher_forced": forced["token_accuracy"],
            "teacher_forced_bounds": bounds["teacher_forced"]["efficacy"]["token_accuracy"],
            "exact": free["exact"],
            "prefix": free["prefix"],
            "prefix_bounds": bounds["generated"]["efficacy"]["prefix"],
        }

    def table(self, rows: Mapping[str, Facts]) -> tuple[list[str], list[list[str]]]:
        """Return a line for each run."""
        header = ["run", "edits", "made", "teacher-forced", "generated: begins with it", "generated: exact", "gap"]
        lines = []
        for name, row in rows.items():
            gap = f"{row['teacher_forced'] - row['prefix']:+.3f}"
            scores = [f"{figure(row[part])} {_bounds(row[f'{part}_bounds'])}" for part in ("teacher_forced", "prefix")]
            lines.append([name, str(row["edits"]), WAYS[row["way"]], *scores, figure(row["exact"]), gap])
        return header, lines

    def claims(self, rows: Mapping[str, Facts]) -> list[Claim]:
        """Hold two claims against the runs."""
        apart = [name for name, row in rows.items() if row["teacher_forced_bounds"][0] > row["prefix_bounds"][1]]
        gaps = listed([f"{name} {row['teacher_forced'] - row['prefix']:+.3f}" for name, row in rows.items()])
        pairs = {
            name: (rows[f"{name}, alone"]["prefix"], rows[name]["prefix"]) for name in rows if f"{name}, alone" in rows
        }
        lost = statistics.fmean(alone - among for alone, among in pairs.values()) if pairs else 0.0
        told = listed([f"{name} {alone:.3f} > {among:.3f}" for name, (alone, among) in pairs.items()])
        return [
            Claim(
                "Teacher forcing overstates success: what the model says freely is right far less often.",
                verdict(len(apart) > len(rows) / 2, bool(apart), bool(rows)),
                f"Teacher-forced less generated: {gaps}. It holds where the 95 % intervals of the two do not touch in "
                f"more than half of the runs: {len(apart)} of {len(rows)}.",
            ),
            Claim(
                "Edits that succeed alone fail when many are made one after another.",
                verdict(lost > 0.1, lost > 0.02, bool(pairs)),
                f"Generated, alone and among all: {told}. It holds if 0.1 is lost on average, partly if 0.02.",
            ),
        ]

    def draw(self, rows: Mapping[str, Facts], axes: Axes) -> None:
        """Draw both scores of each run, the lower one below."""
        names = list(rows)[::-1]
        for part, marker, colour in (("teacher_forced", "o", "#0072b2"), ("prefix", "s", "#d55e00")):
            label = "teacher-forced" if part == "teacher_forced" else "generated"
            axes.plot([rows[name][part] for name in names], range(len(names)), marker, color=colour, label=label)
        for place, name in enumerate(names):
            axes.plot(
                [rows[name]["prefix"], rows[name]["teacher_forced"]], [place, place], color="#7b8794", linewidth=0.8
            )
        axes.set_yticks(range(len(names)), names)
        axes.set_xlim(-0.03, 1.03)
        axes.set_xlabel("share of edits, or of tokens")
        axes.legend(loc="lower left")


def _bounds(bounds: list[float] | None) -> str:
    return "" if bounds is None else f"({bounds[0]:.2f} to {bounds[1]:.2f})"
