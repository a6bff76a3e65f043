"""The page: figures, tables and all that is needed to do the runs again, in one HTML file that loads nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from html import escape
from importlib.resources import files

from lke_lightning.evaluation.teacher_forced import KINDS
from lke_lightning.report.drawing import NARROW, as_image, style
from lke_lightning.report.figures import EXHIBITS
from lke_lightning.report.reading import RunRecord, Runs, largest
from lke_lightning.report.records import FAILED, MOMENTS, Score
from lke_lightning.report.tables import NOTE, last, latex, markdown, table
from lke_lightning.results import versions

MOST_FAILED = 40
"""Edits that are listed of those that failed; the ledger has all."""


def page(runs: Runs) -> str:
    """Return the page, as HTML."""
    title = runs[0].method if len(runs) == 1 else f"{len(runs)} runs"
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
    about = [f"{runs[0].made:,} edits"] if len(runs) == 1 else []
    for name in ("data", "model"):
        about += dict.fromkeys(run.card.about[name].rstrip("/").rsplit("/", 1)[-1] for run in runs if name in run.card.about)
    unfinished = ", ".join(run.name if len(runs) > 1 else "this run" for run in runs if not run.is_finished)
    note = (
        f'<p class="note">Not finished: {escape(unfinished)}. All edits made so far have not been scored together; '
        "what is shown is what is known now.</p>"
    )
    return f"<p>{escape(' · '.join(about))}</p>" + note * bool(unfinished) + (_tiles(runs[0]) if len(runs) == 1 else "")


def _tiles(run: RunRecord) -> str:
    """Return the few figures that one wants to see first."""
    before, after = (run.card.perplexity.get(moment) for moment in ("before", "final"))
    growth, f1 = last(largest(run.norm_growth())), last(run.downstream_f1().get("mean", []))
    tiles = [(f"{score.value:.1%}", kind, _interval(score)) for kind in (*KINDS, "S") if (score := run.score(kind))]
    tiles += [(f"x{growth:.2f}", "norm growth", "largest of the layers")] if growth is not None else []
    tiles += [(f"{after:.4g}", "perplexity", f"before {before:.4g}" if before else "")] if after is not None else []
    tiles += [(f"{f1:.1%}", "downstream F1", "")] if f1 is not None else []
    shown = (f"<div><b>{value}</b>{name}<small>{below}</small></div>" for value, name, below in tiles)
    return f'<div class="tiles">{"".join(shown)}</div>' if tiles else ""


def _sections(runs: Runs) -> Iterator[tuple[str, str]]:
    made = table(runs)
    overview = _table(made.header, made.rows, "numbers", made.best) + f"<p>{NOTE}{' Bold: the best.' * bool(made.best)}</p>"
    yield "Scorecard", (_scores(runs[0]) if len(runs) == 1 else overview)
    for name in dict.fromkeys(exhibit.section for exhibit in EXHIBITS):
        yield name, _figures(runs, name)
    yield "All scores", _each(runs, _scores) if len(runs) > 1 else ""
    yield "Downstream tasks", _each(runs, _downstream)
    yield "Guard", _each(runs, _guard)
    yield "Generated answers", _each(runs, _examples)
    yield "Edits that did not take", _each(runs, _failed)
    yield "For a paper", _folded("LaTeX (booktabs)", latex(made)) + _folded("Markdown", markdown(made))
    yield "How it was made", _each(runs, _provenance)


def _figures(runs: Runs, section: str) -> str:
    """Draw what the runs have something for; saved from the page, a figure is an SVG file on white."""
    cards = []
    for exhibit in (exhibit for exhibit in EXHIBITS if exhibit.section == section):
        with style():
            figure = exhibit.draw(runs)
        if figure is not None:
            wide = ' class="wide"' if figure.get_figwidth() > NARROW else ""
            cards.append(
                f'<figure{wide}><h3>{exhibit.title}</h3><img src="{as_image(figure)}" alt="{exhibit.title}">'
                f"<figcaption>{escape(exhibit.caption)}</figcaption></figure>"
            )
    return f'<div class="grid">{"".join(cards)}</div>' if cards else ""


def _scores(run: RunRecord) -> str:
    """Return all means of the scorecard: those of success first, the others folded below."""
    names = dict.fromkeys(name for moment in MOMENTS for name in run.card.scores[moment])
    first = [name for name in (*(f"{kind} / success" for kind in KINDS), "S") if name in names]

    def shown(names: Iterable[str]) -> str:
        cells = ([_cell(run.card.scores[moment].get(name)) for moment in MOMENTS] for name in names)
        rows = [[name.replace("_", " "), *row] for name, row in zip(names, cells, strict=True)]
        return _table(["", *(moment.replace("_", " ") for moment in MOMENTS)], rows, "numbers")

    further = [name for name in names if name not in first]
    below = f"<details><summary>Further measures</summary>{shown(further)}</details>" if further else ""
    return shown(first) + below if names else ""


def _downstream(run: RunRecord) -> str:
    rows = [
        [task, name, f"{points[0][1]:.3f}", f"{points[-1][1]:.3f}", f"{points[-1][0]:,}"]
        for task, measures in run.downstream.items()
        for name, points in measures.items()
    ]
    return _table(["task", "measure", "first", "last", "edits by then"], rows) if rows else ""


def _guard(run: RunRecord) -> str:
    said = f"<p>{run.history.left_out:,} edits were left out in all.</p>" if run.history.left_out else ""
    rows = run.history.guard
    return (_table(["batch", "action", "measured"], rows) if rows else "") + said


def _examples(run: RunRecord) -> str:
    return _table(["prompt", "wanted", "generated"], run.card.examples) if run.card.examples else ""


def _failed(run: RunRecord) -> str:
    failed, standing = run.history.failed, run.history.standing
    rest = f" The first {MOST_FAILED}; <code>log RUN --failed</code> lists all." if len(failed) > MOST_FAILED else ""
    said = f"<p>{len(failed):,} of {standing:,} edits in the weights did not succeed just after they were made.{rest}</p>"
    return said + (_table(FAILED, failed[:MOST_FAILED]) if failed else "") if standing else ""


def _provenance(run: RunRecord) -> str:
    seconds = ", ".join(f"{name} {value:,.1f}" for name, value in run.card.seconds.items())
    facts = {"folder": run.folder, "checkpoint": run.checkpoint or "none", **run.card.about, "seconds": seconds}
    shown = _table([], [[name, str(value)] for name, value in facts.items()], "facts")
    return shown + (_folded("Configuration", run.configuration) if run.configuration else "")


def _each(runs: Runs, tell: Callable[[RunRecord], str]) -> str:
    """Show what there is to tell of a run, or fold it under the name of each of several."""
    found = [(run.name, told) for run in runs if (told := tell(run))]
    if len(runs) == 1:
        return "".join(told for _, told in found)
    return "".join(f"<details><summary>{escape(name)}</summary>{told}</details>" for name, told in found)


def _folded(name: str, text: str) -> str:
    return f"<details><summary>{escape(name)}</summary><pre>{escape(text)}</pre></details>"


def _table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    kind: str = "text",
    best: Collection[tuple[int, int]] = (),
) -> str:
    """Return a table of plain text; what is behind the first line of a cell is small, the `best` are bold."""

    def cell(text: str, is_best: bool) -> str:
        first, _, below = map(escape, text.partition("\n"))
        return (f"<strong>{first}</strong>" if is_best else first) + (f"<small>{below}</small>" if below else "")

    body = "".join(
        "<tr>" + "".join(f"<td>{cell(text, (i, j) in best)}</td>" for j, text in enumerate(row)) + "</tr>"
        for i, row in enumerate(rows)
    )
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    top = f"<thead><tr>{head}</tr></thead>" if header else ""
    return f'<div class="scroll"><table class="{kind}">{top}<tbody>{body}</tbody></table></div>'


def _cell(score: Score | None) -> str:
    return f"{score.value:.3f}\n{_interval(score)}" if score else ""


def _interval(score: Score) -> str:
    return f"{score.bounds[0]:.3f} to {score.bounds[1]:.3f}" if score.bounds else ""


def _address(name: str) -> str:
    return name.lower().replace(" ", "-")
