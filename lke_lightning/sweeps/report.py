"""Summaries of finished runs: one entry and one table row each."""

from __future__ import annotations

import itertools
import os
import platform
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lke_lightning.edits import KINDS
from lke_lightning.results import versions
from lke_lightning.sweeps.runs import Outcome

BRIEF = ("efficacy, paraphrase, neighborhood", "S", "perplexity", "largest norm growth")
"""The columns that fit into a terminal of 80 columns."""
CAPTION = (
    "final success (in parentheses: just after each batch); before > final; retention: accuracy of the edits' own "
    "prompts at the end, for each quarter of the batches, the oldest first; median steps; several orders of the edits: "
    "mean ± standard deviation"
)
QUARTERS = 4


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
        summary["accuracy"] = {kind: (card["final"] or {}).get(kind, {}).get("accuracy") for kind in KINDS}
        answers = (card["final"] or {}).get("generated", {})
        summary["generated"] = {kind: answers.get(kind, {}).get("prefix") for kind in KINDS} if answers else None
        summary["retention"] = _retention(card.get("retention") or [])
        summary["downstream"] = _abilities(outcome.downstream)
        summary["perplexity"] = card.get("perplexity")
        summary["norm_growth"] = {
            layer: round(norm["after"] / norm["before"], 4) for layer, norm in card["weight_norms"].items()
        }
        summary["largest_norm_growth"] = max(summary["norm_growth"].values())
        summary |= {"steps": card.get("steps"), "seconds": card["seconds"]}
    return summary


def together(entries: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    """Return one entry of several runs, under a name: lists of their figures; without any unless all are done."""
    unfinished = [summary["status"] for summary in entries if summary["status"] != "done"]
    if unfinished:
        return {"name": name, "status": unfinished[0]}
    return {**_together(entries), "name": name, "status": "done"}


def table(summaries: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return the header and the cells of entries, without columns of what none of them has measured."""
    found = [_cells(summary) if summary["status"] == "done" else {} for summary in summaries]
    header = list(dict.fromkeys(name for cells in found for name in cells)) or ["status"]
    lines = [[cells.get(name, "") for name in header] for cells in found]
    for summary, line in zip(summaries, lines, strict=True):
        if summary["status"] != "done":
            line[0] = summary["status"]
    return header, lines


def brief_cells(summary: dict[str, Any]) -> list[str]:
    """Return the table cells of an entry, as `BRIEF` names them."""
    if summary["status"] != "done":
        return [summary["status"], *("" for _ in BRIEF[1:])]
    final = summary["final"] or {}
    successes = " ".join(number(final.get(kind)) for kind in KINDS)
    growth = number(summary["largest_norm_growth"], ".2f")
    return [successes, number(final.get("S")), _change(summary["perplexity"], ".4g"), growth]


def number(value: float | Sequence[float | None] | None, form: str = ".3f") -> str:
    """Write a number that may be undefined; of several runs, their mean and standard deviation."""
    values: list[Any] = value if isinstance(value, list) else [value]
    if None in values:
        return "-"
    mean = format(statistics.fmean(values), form)
    return f"{mean} ± {format(statistics.stdev(values), form)}" if len(values) > 1 else mean


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


def _cells(summary: dict[str, Any]) -> dict[str, str]:
    """Return the cells of an entry by column."""
    final, just_after = summary["final"] or {}, summary["just_after"] or {}
    cells = {kind: f"{number(final.get(kind))} ({number(just_after.get(kind))})" for kind in (*KINDS, "S")}
    cells |= {
        "perplexity": _change(summary["perplexity"], ".4g"),
        "norm growth": _listed(summary["norm_growth"], ".2f"),
        "accuracy: efficacy, paraphrase, neighborhood": _listed(summary["accuracy"]),
    }
    if summary["generated"]:
        cells["generated answers that begin with the target: the same"] = _listed(summary["generated"])
    cells |= {"retention": _listed(summary["retention"])}
    cells |= {task: _change(measured) for task, measured in summary["downstream"].items()}
    spent = {name: summary["seconds"][name] for name in ("stage_one", "stage_two", "evaluation")}
    cells["steps"] = number((summary["steps"] or {}).get("median"), ".1f")
    return cells | {"seconds: stage one, two, evaluation": _listed(spent, ".0f")}


def _listed(figures: dict[str, Any], form: str = ".3f") -> str:
    return ", ".join(number(figure, form) for figure in figures.values())


def _change(measured: dict[str, Any] | None, form: str = ".3f") -> str:
    return " > ".join(number(measured[when], form) for when in ("before", "final")) if measured else "-"


def _retention(batches: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Return the final accuracy of each quarter of the batches, by its number, the oldest first."""
    edges = [round(quarter * len(batches) / QUARTERS) for quarter in range(QUARTERS + 1)]
    parts = [[batch["accuracy"] for batch in batches[i:j]] for i, j in itertools.pairwise(edges)]
    return {str(i): round(statistics.fmean(part), 6) if part else None for i, part in enumerate(parts, 1)}


def _abilities(found: dict[str, Any] | None) -> dict[str, dict[str, float | None]]:
    """Return the first figure of each task, of the unedited and of the edited model."""
    measured = {part["edits"]: part["results"] for part in (found or {}).get("measurements", [])}
    last = measured.get(max(measured, default=0), {})

    def figure(results: dict[str, Any], task: str) -> float | None:
        return next((value for value in results.get(task, {}).values() if value is not None), None)

    return {task: {"before": figure(measured.get(0, {}), task), "final": figure(last, task)} for task in last}


def _together(parts: Sequence[Any]) -> Any:
    sections = [part for part in parts if isinstance(part, dict)]
    if sections:
        is_whole = len(sections) == len(parts)  # else one of the runs has not measured it
        return {name: _together([part[name] for part in parts]) for name in sections[0]} if is_whole else None
    return None if all(part is None for part in parts) else [*parts]


def _successes(section: dict[str, Any] | None) -> dict[str, float | None] | None:
    return section and {**{kind: section[kind]["success"] for kind in KINDS}, "S": section["score"]}
