"""The page and the figure of a study, from its result file alone."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from lke_lightning.studies.study import Facts, Study

STYLE: dict[Any, Any] = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#dfe3e8",
    "legend.frameon": False, "svg.fonttype": "none", "svg.hashsalt": "study", "figure.constrained_layout.use": True,
}  # fmt: skip


def done(result: Mapping[str, Any]) -> dict[str, Facts]:
    """Return what the finished runs of a result file tell, by name."""
    return {row["name"]: row["facts"] for row in result["rows"] if row["status"] == "done"}


def picture(study: Study, result: Mapping[str, Any]) -> bytes:
    """Draw the figure as SVG."""
    rows = done(result)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 1.6 + 0.32 * max(4, len(rows))))
        study.draw(rows, figure.subplots())
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def page(study: Study, result: Mapping[str, Any], image: str, file: str) -> str:
    """Write a study's page in Markdown.

    Args:
        study: the study.
        result: what its run has written.
        image: where the figure is, seen from the page.
        file: where the result is, seen from the page.
    """
    rows = done(result)
    header, lines = study.table(rows)
    table = [header, ["---"] * len(header), *lines]
    missing = [f"{row['name']} ({row['status']})" for row in result["rows"] if row["status"] != "done"]
    parts = [
        f"# {study.title}",
        f"{study.source}.",
        study.asks,
        "```sh\n" + result["command"] + "\n```",
        f"{result['about']} {result['machine']['cores']} cores, torch {result['versions']['torch']}, "
        f"{result['date'][:10]}; [result file]({file})." + (f" Not done: {', '.join(missing)}." if missing else ""),
        "## Claim by claim",
        *(f"**{claim.verdict.capitalize()}.** {claim.says} {claim.found}" for claim in study.claims(rows)),
        "## What was measured",
        "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in table),
        f"![{study.title}]({image})",
    ]
    return "\n\n".join(parts) + "\n"


def answer(study: Study, result: Mapping[str, Any]) -> str:
    """Say in one paragraph what was found."""
    claims = study.claims(done(result))
    return f"{study.source}. " + " ".join(f"{claim.says} **{claim.verdict.capitalize()}.**" for claim in claims)
