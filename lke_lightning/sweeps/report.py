"""Summaries of finished runs: one entry and one table row each."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lke_lightning.edits import KINDS
from lke_lightning.results import versions
from lke_lightning.sweeps.runs import Outcome

HEADER = (*KINDS, "S", "perplexity", "norm growth", "steps", "seconds: stage one, two, evaluation")
BRIEF = ("efficacy, paraphrase, neighborhood", "S", "perplexity", "largest norm growth")
"""The columns that fit into a terminal of 80 columns."""
CAPTION = "final success (in parentheses: just after each batch); perplexity before > final; median steps"


def circumstances(command: str) -> dict[str, Any]:
    """Describe the command, machine, versions and date of a table."""
    return {
        "command": command,
        "machine": {"platform": platform.platform(), "processor": platform.machine(), "cores": os.cpu_count()},
        "versions": versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def entry(outcome: Outcome) -> dict[str, Any]:
    """Return the summary of a run for a table; with `error` and without measurements if it failed."""
    summary: dict[str, Any] = {
        "name": outcome.job.name,
        "status": outcome.status,
        "arguments": list(outcome.job.arguments),
    }
    if outcome.error:
        summary["error"] = outcome.error
    card = outcome.card
    if card:
        summary |= {name: card[name] for name in ("method", "model", "data", "edits", "batch_size", "device")}
        summary |= {moment: _successes(card[moment]) for moment in ("final", "just_after")}
        summary["perplexity"] = card.get("perplexity")
        summary["norm_growth"] = {
            layer: round(norm["after"] / norm["before"], 4) for layer, norm in card["weight_norms"].items()
        }
        summary |= {"steps": card.get("steps"), "seconds": card["seconds"]}
    return summary


def cells(summary: dict[str, Any]) -> list[str]:
    """Return the table cells of an entry, as `HEADER` names them."""
    if summary["status"] != "done":
        return [summary["status"], *("" for _ in HEADER[1:])]
    final, just_after, steps = summary["final"] or {}, summary["just_after"] or {}, summary["steps"] or {}
    return [
        *(f"{number(final.get(kind))} ({number(just_after.get(kind))})" for kind in (*KINDS, "S")),
        _perplexity(summary),
        ", ".join(f"{growth:.2f}" for growth in summary["norm_growth"].values()),
        number(steps.get("median"), 1),
        ", ".join(f"{summary['seconds'][name]:.0f}" for name in ("stage_one", "stage_two", "evaluation")),
    ]


def brief_cells(summary: dict[str, Any]) -> list[str]:
    """Return the table cells of an entry, as `BRIEF` names them."""
    if summary["status"] != "done":
        return [summary["status"], *("" for _ in BRIEF[1:])]
    final = summary["final"] or {}
    successes = " ".join(number(final.get(kind)) for kind in KINDS)
    return [successes, number(final.get("S")), _perplexity(summary), f"{max(summary['norm_growth'].values()):.2f}"]


def number(value: float | None, digits: int = 3) -> str:
    """Write a number that may be undefined."""
    return "-" if value is None else f"{value:.{digits}f}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def show(title: str, rows: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Print a brief table of entries under the names given."""
    table = Table(title=escape(title), caption="final success, fractions of 1")
    table.add_column("", overflow="fold")
    for name in BRIEF:
        table.add_column(name, justify="right")
    for name, summary in rows:
        table.add_row(escape(name), *brief_cells(summary))
    Console().print(table)


def _perplexity(summary: dict[str, Any]) -> str:
    measured = summary["perplexity"]
    if not measured:
        return "-"
    return " > ".join("-" if measured[when] is None else f"{measured[when]:.4g}" for when in ("before", "final"))


def _successes(section: dict[str, Any] | None) -> dict[str, float | None] | None:
    return section and {**{kind: section[kind]["success"] for kind in KINDS}, "S": section["score"]}
