"""Prints a scorecard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lke_lightning.edits import KINDS
from lke_lightning.evaluation.summary import FREE, LONG, TEACHER_FORCED, TEXTS
from lke_lightning.evaluation.teacher_forced import ASKED

MOMENTS = ("before", "just_after", "final")


def show(card: dict[str, Any], scorecard: str, checkpoint: str) -> None:
    """Print a scorecard and the paths of the run's files.

    Args:
        card: what `scorecard.json` holds.
        scorecard: its path.
        checkpoint: the path of the newest checkpoint; empty: there is none.
    """
    console = Console()
    console.print(_published(card))
    for table in (_tokens(card), _generated(card), _long_answers(card)):
        if table is not None:
            console.print(table)
    for line in _lines(card):
        console.print(line, markup=False)
    console.print("Seconds  " + ", ".join(f"{name} {value:.1f}" for name, value in card["seconds"].items()))
    console.print(f"Scorecard   {scorecard}", soft_wrap=True, markup=False)
    if checkpoint:
        console.print(f"Checkpoint  {checkpoint}", soft_wrap=True, markup=False)


def _published(card: dict[str, Any]) -> Table:
    table = Table(
        title=escape(f"{card['method']} · {card['edits']} edits of {card['data']} in batches of {card['batch_size']}"),
        caption=f"{card['protocol']}; success (accuracy), fractions of 1",
    )
    table.add_column("")
    for column in (*KINDS, "S"):
        table.add_column(column, justify="right")
    for moment, part in zip(_moments(card), _parts(card), strict=True):
        table.add_row(moment, *(_pair(part[kind], "success", "accuracy") for kind in KINDS), number(part["score"]))
    return table


def _tokens(card: dict[str, Any]) -> Table | None:
    """Show what the first table cannot: targets without an original answer, and further kinds of prompts."""
    parts = [part.get(TEACHER_FORCED, {}) for part in _parts(card)]
    further = {kind for part in parts for kind in part} - {*KINDS, "locality"}
    if not further and all(part[kind]["success"] is not None for part in _parts(card) for kind in KINDS):
        return None
    kinds = [kind for kind in (*ASKED, "locality") if any(kind in part for part in parts)]
    rows = [[_pair(part.get(kind, {}), "token_accuracy", "whole_answer") for kind in kinds] for part in parts]
    return _by_kind("teacher-forced; correct tokens (whole answers), fractions of 1", card, kinds, rows)


def _generated(card: dict[str, Any]) -> Table | None:
    parts = [part.get(FREE, {}) for part in _parts(card)]
    kinds = [kind for kind in (*ASKED, "locality") if any(kind in part for part in parts)]
    if not kinds:
        return None
    judged = any("judged" in part.get(kind, {}) for part in parts for kind in kinds)
    caption = "generated; exact (prefix)" + (", judged" if judged else "") + ", fractions of 1"
    rows = [[_answered(part.get(kind, {}), judged) for kind in kinds] for part in parts]
    return _by_kind(caption, card, kinds, rows)


def _long_answers(card: dict[str, Any]) -> Table | None:
    parts = [part.get(LONG, {}) for part in _parts(card)]
    kinds = [kind for kind in ASKED if any(kind in part for part in parts)]
    rows = [[_pair(part.get(kind, {}), "bleu", "rouge_l") for kind in kinds] for part in parts]
    return _by_kind("generated at length; BLEU (ROUGE-L), fractions of 1", card, kinds, rows) if kinds else None


def _lines(card: dict[str, Any]) -> list[str]:
    lines = [card["unscored"]] if "unscored" in card else []
    for moment in reversed(MOMENTS):
        bounds = card[moment] and card[moment]["intervals"]["score"]
        if bounds:
            lines.append(f"S {moment.replace('_', ' ')}  {number(bounds[0])} to {number(bounds[1])} (95 %, over edits)")
            break
    texts = {moment: card[moment][TEXTS] for moment in MOMENTS if card[moment] and TEXTS in card[moment]}
    for name in ("fluency", "consistency"):
        values = [f"{moment.replace('_', ' ')} {number(part[name])}" for moment, part in texts.items() if name in part]
        if values:
            lines.append(f"{name.capitalize()} of sampled text  " + ", ".join(values))
    facts, known = card["probability"], ("known_originals", "known_neighborhood")
    natural = next((facts[name] for name in known if name in facts), None)
    if natural and "edited_just_after" in facts:
        edited = number(facts["edited_just_after"]["per_token"]["mean"])
        lines.append(
            f"Probability per token  targets just after {edited}, known facts before "
            f"{number(natural['per_token']['mean'])}"
        )
    growth = " ".join(f"{layer}: x{n['after'] / n['before']:.2f}" for layer, n in card["weight_norms"].items())
    lines.append(f"Norm growth of the edited matrices, by layer  {growth}")
    measured = {name: value for name, value in card.get("perplexity", {}).items() if value is not None}
    if measured:
        lines.append("Perplexity of unrelated text  " + ", ".join(f"{n} {v:.2f}" for n, v in measured.items()))
    return lines


def _parts(card: dict[str, Any]) -> list[dict[str, Any]]:
    return [card[moment] for moment in MOMENTS if card[moment]]


def _moments(card: dict[str, Any]) -> list[str]:
    return [moment.replace("_", " ") for moment in MOMENTS if card[moment]]


def _by_kind(caption: str, card: dict[str, Any], kinds: Sequence[str], rows: list[list[str]]) -> Table:
    """Make a table with a row per kind, because the kinds side by side do not fit into 80 columns."""
    table = Table("", caption=caption)
    for moment in _moments(card):
        table.add_column(moment, justify="right")
    for kind, *cells in zip(kinds, *rows, strict=True):
        table.add_row(kind.replace("_", "-"), *cells)
    return table


def _answered(measures: dict[str, float | None], judged: bool) -> str:
    if "prefix" not in measures:  # locality
        return number(measures.get("exact"))
    scores = _pair(measures, "exact", "prefix")
    return f"{scores}, {number(measures.get('judged'))}" if judged else scores


def _pair(measures: dict[str, float | None], first: str, second: str) -> str:
    return f"{number(measures.get(first))} ({number(measures.get(second))})"


def number(value: float | None) -> str:
    """Write a figure that may be undefined."""
    return "-" if value is None else f"{value:.3f}"
