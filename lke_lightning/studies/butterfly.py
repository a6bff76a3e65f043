"""The butterfly effect: can one edit ruin a model?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from matplotlib.axes import Axes

from lke_lightning.studies.study import Claim, Facts, Study, figure, listed, verdict

COLLAPSE = 10
"""A collapsed model has more than this multiple of the unedited one's ME-PPL."""


class Butterfly(Study):
    """Every edit alone on the unedited model, ME-PPL after each; then one after another."""

    title: ClassVar[str] = "Can one edit ruin a model?"
    source: ClassVar[str] = "The Butterfly Effect of Model Editing, Yang et al., arXiv 2402.09656"
    asks: ClassVar[str] = (
        "Every edit is made alone, on the unedited model, and the mean perplexity of short texts (ME-PPL) is measured "
        "after it; an edit is hard where ME-PPL is then above the limit that the table names. The same edits are "
        "then made one after another, and the perplexity of ordinary text is measured at the end."
    )

    def facts(self, card: Mapping[str, Any]) -> Facts:
        """Of single edits their damage and success; of edits in sequence the perplexity before and after."""
        if "me_ppl" in card:
            damage = {name: value for name, value in card["me_ppl"].items() if name != "text"}
            after = card["just_after"]
            successes = {kind: after[kind]["success"] for kind in ("efficacy", "neighborhood")}
            return {"edits": card["edits"], **damage, **successes}
        return {"edits": card["edits"], "perplexity": card["perplexity"], "S": (card["final"] or {}).get("score")}

    def table(self, rows: Mapping[str, Facts]) -> tuple[list[str], list[list[str]]]:
        """Return a line for each run."""
        header = [
            "run",
            "edits",
            "ME-PPL before",
            "median after",
            "worst after",
            "hard (limit)",
            "efficacy",
            "text, before > after",
        ]
        lines = []
        for name, row in rows.items():
            if "worst" in row:
                hard = f"{row['ruined']} (above {row['above']:g})"
                damage = [figure(row[part], ".4g") for part in ("before", "median", "worst")]
                lines.append([name, str(row["edits"]), *damage, hard, figure(row["efficacy"]), ""])
            else:
                text = " > ".join(figure(row["perplexity"][when], ".4g") for when in ("before", "final"))
                lines.append([name, str(row["edits"]), "", "", "", "", "", text])
        return header, lines

    def claims(self, rows: Mapping[str, Facts]) -> list[Claim]:
        """Hold three claims against the runs."""
        single = {name: row for name, row in rows.items() if "worst" in row}
        hard = {name: row["ruined"] for name, row in single.items()}
        rome, others = single.get("ROME"), [count for name, count in hard.items() if name != "ROME"]
        told = listed(
            [
                f"{name} {row['ruined']} of {row['edits']} (worst ME-PPL {row['worst']:.4g})"
                for name, row in single.items()
            ]
        )
        growth = {
            name: row["perplexity"]["final"] / row["perplexity"]["before"]
            for name, row in rows.items()
            if "worst" not in row
        }
        collapsed = [name for name, ratio in growth.items() if not ratio < 2]
        after = listed([f"{name} x{ratio:.3g} after {rows[name]['edits']}" for name, ratio in growth.items()])
        return [
            Claim(
                "A single edit by ROME can make a model collapse.",
                verdict(
                    bool(rome and rome["worst"] > COLLAPSE * rome["before"]), bool(hard.get("ROME")), rome is not None
                ),
                f"Hard edits: {told}. It holds if one makes ME-PPL {COLLAPSE} times as large, partly if one is hard.",
            ),
            Claim(
                "Other methods rarely have such edits.",
                verdict(
                    bool(hard.get("ROME")) and 2 * max(others, default=0) <= hard["ROME"], False, bool(rome and others)
                ),
                "It holds if ROME has hard edits, and each other method at most half as many.",
            ),
            Claim(
                "Nearly all methods collapse within a few edits made one after another.",
                verdict(len(collapsed) == len(growth), bool(collapsed), bool(growth)),
                f"Perplexity of ordinary text: {after}. A method collapses where it doubles.",
            ),
        ]

    def draw(self, rows: Mapping[str, Facts], axes: Axes) -> None:
        """Draw the median and the worst ME-PPL of each method, with the unedited model's."""
        single = {name: row for name, row in rows.items() if "worst" in row}
        places = range(len(single))
        for part, shift, colour in (("median", -0.2, "#0072b2"), ("worst", 0.2, "#d55e00")):
            axes.bar(
                [place + shift for place in places],
                [row[part] for row in single.values()],
                0.4,
                color=colour,
                label=part,
            )
        for row in list(single.values())[:1]:
            axes.axhline(row["before"], color="#7b8794", linestyle=":", label="unedited")
        axes.set_xticks(list(places), list(single))
        axes.set_yscale("log")
        axes.set_ylabel("ME-PPL after one edit")
        axes.legend()
