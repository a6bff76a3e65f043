"""The page: figures, tables and everything needed to reproduce the runs, in one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from html import escape
from importlib.resources import files

from lke_lightning.edits import KINDS
from lke_lightning.report.figures import EXHIBITS, as_image
from lke_lightning.report.reading import RunRecord
from lke_lightning.report.records import MOMENTS
from lke_lightning.report.tables import NOTE, table
from lke_lightning.results import versions

Runs = Sequence[RunRecord]


def page(runs: Runs) -> str:
    """Return the page, as HTML."""
    title = runs[0].card.about.get("method", runs[0].name) if len(runs) == 1 else f"{len(runs)} runs"
    sections = {name: content for name, content in _sections(runs) if content}
    links = "".join(f'<a href="#{_address(name)}">{name}</a>' for name in sections)
    body = "".join(f'<section id="{_address(name)}"><h2>{name}</h2>{part}</section>' for name, part in sections.items())
    css = files("lke_lightning.report").joinpath("page.css").read_text(encoding="utf-8")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)} · knowledge editing report</title>
<style>
{css}</style>
</head>
<body>
<header><h1>{escape(title)}</h1>{_lead(runs)}</header>
<nav>{links}</nav>
<main>{body}</main>
<footer><p>Made {datetime.now(UTC):%Y-%m-%d %H:%M} UTC by lke_lightning {versions()["lke-lightning"]}</p></footer>
</body>
</html>
"""


def _lead(runs: Runs) -> str:
    names = [run.card.about.get(name, "") for name in ("data", "model") for run in runs]
    about = dict.fromkeys(name.rstrip("/").rsplit("/", 1)[-1] for name in names if name)
    unfinished = ", ".join(run.name for run in runs if not run.is_finished)
    note = (
        f'<p class="note">Not finished: {escape(unfinished)}. Not all edits so far have been scored together; '
        "the page shows what is known now.</p>"
    )
    return f"<p>{escape(' · '.join(about))}</p>{note if unfinished else ''}"


def _sections(runs: Runs) -> Iterator[tuple[str, str]]:
    header, rows, best = table(runs)
    note = f"<p>{NOTE}{' Bold: the best.' if best else ''}</p>"
    yield "Scorecard", _table(header, rows, "numbers", best) + note + _each(runs, _scores)
    for name in dict.fromkeys(exhibit.section for exhibit in EXHIBITS):
        yield name, _figures(runs, name)
    yield "Wall time", _time(runs)
    yield "Downstream tasks", _each(runs, _downstream)
    yield "Guard", _each(runs, _guard)
    yield "Generated answers", _each(runs, lambda run: _table(["prompt", "target", "generated"], run.card.examples))
    yield "Provenance", _each(runs, _provenance)


def _figures(runs: Runs, section: str) -> str:
    """Draw the figures that the runs have data for; saved from the page, a figure is an SVG file on white."""
    cards = []
    for exhibit in (exhibit for exhibit in EXHIBITS if exhibit.section == section):
        image, is_wide = as_image(exhibit.draw, runs)
        if image:
            cards.append(
                f"<figure{' class=wide' if is_wide else ''}><h3>{exhibit.title}</h3>"
                f'<img src="{image}" alt="{exhibit.title}"><figcaption>{escape(exhibit.caption)}</figcaption></figure>'
            )
    return f'<div class="grid">{"".join(cards)}</div>' if cards else ""


def _scores(run: RunRecord) -> str:
    """Return all means of the scorecard: success first, the others folded below."""
    scores = run.card.scores
    names = dict.fromkeys(name for moment in MOMENTS for name in scores[moment])
    first = [name for name in (*(f"{kind} / success" for kind in KINDS), "S") if name in names]

    def cell(name: str, moment: str) -> str:
        score = scores[moment].get(name)
        interval = f"\n{score.bounds[0]:.3f} to {score.bounds[1]:.3f}" if score and score.bounds else ""
        return f"{score.value:.3f}{interval}" if score else ""

    def shown(names: Iterable[str]) -> str:
        rows = [[name.replace("_", " "), *(cell(name, moment) for moment in MOMENTS)] for name in names]
        return _table(["", *(moment.replace("_", " ") for moment in MOMENTS)], rows, "numbers")

    further = shown(name for name in names if name not in first)
    return shown(first) + (f"<details><summary>Further measures</summary>{further}</details>" if further else "")


def _time(runs: Runs) -> str:
    activities = list(dict.fromkeys(name for run in runs for name in run.card.seconds))
    rows = [[run.name, *(f"{run.card.seconds.get(name, 0.0):,.1f}" for name in activities)] for run in runs]
    return _table(["seconds", *(name.replace("_", " ") for name in activities)], rows if activities else [], "numbers")


def _downstream(run: RunRecord) -> str:
    rows = [
        [topic.removeprefix("task "), name, f"{points[0][1]:.3f}", f"{points[-1][1]:.3f}", f"{points[-1][0]:,}"]
        for topic, measures in run.curves.items()
        for name, points in measures.items()
        if topic.startswith("task ")
    ]
    return _table(["task", "measure", "first", "last", "edits by then"], rows)


def _guard(run: RunRecord) -> str:
    note = f"<p>{run.history.left_out:,} edits were left out in total.</p>" if run.history.left_out else ""
    return _table(["batch", "action", "measured"], run.history.guard) + note


def _provenance(run: RunRecord) -> str:
    facts = {"folder": run.folder, "checkpoint": run.checkpoint or "none", **run.card.about}
    shown = _table([], [[name, str(value)] for name, value in facts.items()], "facts")
    yaml = f"<details><summary>Configuration</summary><pre>{escape(run.configuration)}</pre></details>"
    return shown + (yaml if run.configuration else "")


def _each(runs: Runs, show: Callable[[RunRecord], str]) -> str:
    """Show a part of a run; with several runs, fold it under each name."""
    if len(runs) == 1:
        return show(runs[0])
    found = [(run.name, part) for run in runs if (part := show(run))]
    return "".join(f"<details><summary>{escape(name)}</summary>{part}</details>" for name, part in found)


def _table(
    header: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "text", best: Collection[tuple[int, int]] = ()
) -> str:
    """Return a table of plain text, nothing without rows; a cell's second line is small, the `best` are bold."""

    def cell(text: str, is_best: bool) -> str:
        first, _, below = map(escape, text.partition("\n"))
        return (f"<strong>{first}</strong>" if is_best else first) + (f"<small>{below}</small>" if below else "")

    body = "".join(
        "<tr>" + "".join(f"<td>{cell(text, (i, j) in best)}</td>" for j, text in enumerate(row)) + "</tr>"
        for i, row in enumerate(rows)
    )
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    top = f"<thead><tr>{head}</tr></thead>" if header else ""
    return f'<div class="scroll"><table class="{kind}">{top}<tbody>{body}</tbody></table></div>' if rows else ""


def _address(name: str) -> str:
    return name.lower().replace(" ", "-")
