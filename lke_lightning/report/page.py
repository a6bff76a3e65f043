"""The page: figures, tables and all that is needed to do the runs again, in one HTML file that loads nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from importlib.resources import files

from lke_lightning.ledger import Entry
from lke_lightning.report.canvas import DARK, LIGHT, variables
from lke_lightning.report.figures import Exhibit
from lke_lightning.report.reading import KINDS, MOMENTS, RunRecord, Score
from lke_lightning.report.tables import NOTE, latex, markdown, table
from lke_lightning.results import versions

MOST_FAILED = 40
"""Edits that are listed of those that failed; the ledger has all."""


@dataclass(frozen=True)
class Shown:
    """A figure that the runs have something for."""

    exhibit: Exhibit
    svg: str
    is_wide: bool
    """Whether it takes the page's whole width."""


def page(runs: Sequence[RunRecord], figures: Sequence[Shown]) -> str:
    """Return the page.

    Args:
        runs: what is shown.
        figures: in the order of the page.
    """
    title = runs[0].method if len(runs) == 1 else f"{len(runs)} runs"
    sections = [part for part in _sections(runs, figures) if part[1]]
    links = "".join(f'<a href="#{_address(name)}">{escape(name)}</a>' for name, _ in sections)
    body = "".join(
        f'<section id="{_address(name)}"><h2>{escape(name)}</h2>{content}</section>' for name, content in sections
    )
    made = f"Made {datetime.now(UTC):%Y-%m-%d %H:%M} UTC by lke_lightning {escape(versions()['lke-lightning'])}"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<title>{escape(title)} · knowledge editing report</title>\n'
        f"<style>\n{_style()}</style>\n</head>\n<body>\n<header>{_head(runs, title)}</header>\n<nav>{links}</nav>\n"
        f"<main>{body}</main>\n<footer>{made}</footer>\n</body>\n</html>\n"
    )


def _style() -> str:
    def block(ink_variables: dict[str, str]) -> str:
        return "".join(f"{name}:{value};" for name, value in ink_variables.items())

    light, dark = variables(LIGHT), variables(DARK)
    colours = f":root{{{block(light)}}}\n@media (prefers-color-scheme:dark){{:root{{{block(dark)}}}}}\n"
    return colours + files("lke_lightning.report").joinpath("page.css").read_text(encoding="utf-8")


def _sections(runs: Sequence[RunRecord], figures: Sequence[Shown]) -> Iterator[tuple[str, str]]:
    by_section: dict[str, list[Shown]] = {}
    for shown in figures:
        by_section.setdefault(shown.exhibit.section, []).append(shown)
    scorecards = "".join(map(_scorecard, runs)) if len(runs) == 1 else _comparison(runs)
    yield "Scorecard", _grid(by_section.pop("Scorecard", [])) + scorecards
    for name, parts in by_section.items():
        yield name, _grid(parts)
    yield "Downstream tasks", "".join(_downstream(run, len(runs) > 1) for run in runs)
    yield "Guard", "".join(_guard(run, len(runs) > 1) for run in runs)
    yield "Edits that did not take", "".join(_failed(run, len(runs) > 1) for run in runs)
    yield "For a paper", _for_paper(runs)
    yield "How it was made", "".join(_provenance(run, len(runs) > 1) for run in runs)


def _head(runs: Sequence[RunRecord], title: str) -> str:
    first = runs[0].card
    if len(runs) > 1:
        models = dict.fromkeys(_short(run.card.get("model")) for run in runs if run.card)
        data = dict.fromkeys(str(run.card["data"]) for run in runs if run.card.get("data"))
        about = f"{', '.join(map(escape, data))} · {', '.join(map(escape, models))}"
        return f"<p class=eyebrow>Knowledge editing</p><h1>{escape(title)}</h1><p class=lead>{about}</p>"
    run = runs[0]
    about = [f"{run.made:,} edits" + (f" of {escape(str(first['data']))}" if first.get("data") else "")]
    about += [f"in batches of {first['batch_size']}"] if first.get("batch_size") else []
    about += [f"model {escape(_short(first['model']))}"] if first.get("model") else []
    head = f"<p class=eyebrow>Knowledge editing</p><h1>{escape(title)}</h1><p class=lead>{' · '.join(about)}</p>"
    if not run.is_evaluated:
        head += (
            "<p class=note><strong>Not finished.</strong> All edits made so far have not been scored together; what is "
            "shown is what is known now.</p>"
        )
    return head + _tiles(run)


def _tiles(run: RunRecord) -> str:
    """Return the few figures that one wants to see first."""
    tiles = []
    for kind in (*KINDS, "S"):
        score = run.score("final", kind)
        if score is not None:
            name = kind if kind != "S" else "S, harmonic mean"
            bounds = f"{score.bounds[0]:.1%} to {score.bounds[1]:.1%}" if score.bounds else ""
            tiles.append(_tile(f"{score.value:.1%}", name, bounds))
    grown = [points[-1][1] for points in run.norm_growth().values()]
    if grown:
        tiles.append(_tile(f"x{max(grown):.2f}", "norm growth", "largest of the layers"))
    before, after = run.perplexity("before"), run.perplexity("final")
    if after is not None:
        tiles.append(_tile(f"{after:.4g}", "perplexity", "" if before is None else f"before {before:.4g}"))
    f1 = run.downstream_mean()
    if f1:
        tiles.append(_tile(f"{f1[-1][1]:.1%}", "downstream F1", f"before {f1[0][1]:.1%}" if len(f1) > 1 else ""))
    return f"<div class=tiles>{''.join(tiles)}</div>" if tiles else ""


def _tile(value: str, name: str, below: str) -> str:
    return f"<div class=tile><b>{escape(value)}</b><span>{escape(name)}</span><small>{escape(below)}</small></div>"


def _grid(figures: Sequence[Shown]) -> str:
    """Put figures two in a row; one that is left over has its caption beside it."""
    cards = []
    waiting = 0  # in the present row
    for place, shown in enumerate(figures):
        is_last = place + 1 == len(figures) or figures[place + 1].is_wide
        kind = "wide" if shown.is_wide else "alone" if is_last and not waiting else "half"
        waiting = (waiting + 1) % 2 if kind == "half" else 0
        cards.append(
            f'<figure id="{shown.exhibit.slug}" class="{kind}"><h3>{escape(shown.exhibit.title)}</h3>'
            f"<div class=plot>{shown.svg}</div><figcaption>{escape(shown.exhibit.caption)}</figcaption></figure>"
        )
    return f"<div class=grid>{''.join(cards)}</div>" if cards else ""


def _scorecard(run: RunRecord) -> str:
    rows = []
    for moment in MOMENTS:
        scores = [run.score(moment, kind) for kind in (*KINDS, "S")]
        if not any(scores):
            continue
        cells = []
        for kind, score in zip((*KINDS, "S"), scores, strict=True):
            accuracy = None if kind == "S" else run.score(moment, kind, "accuracy")
            cells.append(_cell(score) + ("" if accuracy is None else f"<small>accuracy {accuracy.value:.3f}</small>"))
        rows.append([escape(moment.replace("_", " ")), *cells])
    if not rows:
        return ""
    protocol = escape(str(run.card.get("protocol", "")))
    note = f"{protocol.capitalize()}; success as a fraction of 1, below it accuracy: the answer is the first choice."
    return _table(["", *KINDS, "S"], rows, "numbers") + f"<p class=caption>{note}</p>" + _further(run)


def _further(run: RunRecord) -> str:
    """Return what else the scorecard has measured: other protocols, other questions."""
    further = run.further()
    if not further:
        return ""
    rows = [
        [escape(" / ".join(path).replace("_", " ")), *(_cell(scores.get(moment)) for moment in MOMENTS)]
        for path, scores in further.items()
    ]
    header = ["", *(moment.replace("_", " ") for moment in MOMENTS)]
    return f"<details><summary>Further measures</summary>{_table(header, rows, 'numbers')}</details>"


def _comparison(runs: Sequence[RunRecord]) -> str:
    made = table(runs)
    rows = []
    for row, (name, cells) in enumerate(made.rows):
        unfinished = "" if runs[row].is_evaluated else " <small>not finished</small>"
        shown = [f"<strong>{cell}</strong>" if (row, i) in made.best else cell for i, cell in enumerate(cells)]
        rows.append([escape(name) + unfinished, *shown])
    bold = " Bold: the best." if made.best else ""
    return _table(["", *made.header], rows, "numbers") + f"<p class=caption>{escape(NOTE)}{bold}</p>"


def _downstream(run: RunRecord, is_one_of_several: bool) -> str:
    measured = run.downstream_measured()
    if not measured:
        return ""
    first, last = measured[min(measured)], measured[max(measured)]
    rows = []
    for task, after in last.items():
        named = [name for name, value in after.items() if isinstance(value, float)][:2]
        told = [f"{name} {first.get(task, {}).get(name, math.nan):.3f} → {after[name]:.3f}" for name in named]
        rows.append([escape(task), *map(escape, told), *[""] * (2 - len(told)), escape(str(after.get("items", "")))])
    header = ["task", "before → at the end", "", "questions"]
    return _named(run, is_one_of_several, _table(header, rows))


def _guard(run: RunRecord, is_one_of_several: bool) -> str:
    decisions = run.events("guard")
    if not decisions:
        return ""
    rows = []
    for entry in decisions:
        broken = [
            f"{name.replace('_', ' ')} {value:.3g} (limit {entry['limits'][name]:g})"
            for name, value in entry["measured"].items()
            if name in entry["limits"]
        ]
        rows.append([str(entry["batch"] + 1), escape(entry["action"]), escape(", ".join(broken))])
    left = len(run.events("left_out"))
    said = f"<p class=caption>{left:,} edits were left out in all.</p>" if left else ""
    return _named(run, is_one_of_several, _table(["batch", "action", "measured"], rows) + said)


def _failed(run: RunRecord, is_one_of_several: bool) -> str:
    failed, standing = run.failed(), run.standing()
    if not standing:
        return ""
    said = run.said()
    has_answers = any(entry["id"] in said for entry in failed)
    rows = [_failed_row(entry, said if has_answers else None) for entry in failed[:MOST_FAILED]]
    share = (
        f"{len(failed):,} of {len(standing):,} edits in the weights did not succeed just after they were made. p: "
        "probability per token just after the edit."
    )
    if len(failed) > MOST_FAILED:
        share += f" The first {MOST_FAILED}; <code>log RUN --failed</code> lists all."
    header = ["id", "prompt", "wanted", "original", *(["says at the end"] if has_answers else []), "p(wanted)",
              "p(original)", "steps", "stopped by"]  # fmt: skip
    shown = _table(header, rows) if rows else ""
    return _named(run, is_one_of_several, f"<p class=caption>{share}</p>{shown}")


def _failed_row(entry: Entry, said: dict[str, str] | None) -> list[str]:
    prompt = entry["prompt"].replace("{}", entry.get("subject") or "{}")
    says = [] if said is None else [said.get(entry["id"], "")]
    likely = [entry.get("nll_just_after"), entry.get("nll_of_original_just_after")]
    shown = ["" if nll is None else f"{math.exp(-nll):.3f}" for nll in likely]
    cells = [entry["id"], prompt, entry["target"], entry.get("original") or "", *says, *shown]
    return [escape(str(cell)) for cell in (*cells, entry["steps"], entry["stopped_by"])]


def _for_paper(runs: Sequence[RunRecord]) -> str:
    return (
        f"<details open><summary>LaTeX (booktabs)</summary><pre>{escape(latex(runs))}</pre></details>"
        f"<details><summary>Markdown</summary><pre>{escape(markdown(runs))}</pre></details>"
    )


def _provenance(run: RunRecord, is_one_of_several: bool) -> str:
    card = run.card
    facts = {
        "folder": str(run.folder),
        "checkpoint": str(run.checkpoint) if run.checkpoint else "none",
        "model": card.get("model"),
        "data": card.get("data"),
        "device": card.get("device"),
        "protocol": card.get("protocol"),
        "intervals": card.get("intervals"),
        "versions": ", ".join(f"{name} {number}" for name, number in (card.get("versions") or {}).items()),
        "seconds": ", ".join(f"{name} {value:,.1f}" for name, value in (card.get("seconds") or {}).items()),
    }
    rows = [[escape(name), f"<code>{escape(str(value))}</code>"] for name, value in facts.items() if value]
    shown = _table([], rows, "facts")
    if run.configuration:
        shown += f"<details><summary>Configuration</summary><pre>{escape(run.configuration)}</pre></details>"
    return _named(run, is_one_of_several, shown)


def _named(run: RunRecord, is_one_of_several: bool, content: str) -> str:
    """Fold what is told of one of several runs."""
    return f"<details><summary>{escape(run.name)}</summary>{content}</details>" if is_one_of_several else content


def _table(header: Iterable[str], rows: Iterable[Sequence[str]], kind: str = "text") -> str:
    """Return a table; cells are HTML."""
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    top = f"<thead><tr>{head}</tr></thead>" if head else ""
    return f'<div class=scroll><table class="{kind}">{top}<tbody>{body}</tbody></table></div>'


def _cell(score: Score | None) -> str:
    if score is None:
        return ""
    interval = _interval(score)
    return f"{score.value:.3f}" + (f"<small>{interval}</small>" if interval else "")


def _interval(score: Score | None) -> str:
    return f"{score.bounds[0]:.3f} to {score.bounds[1]:.3f}" if score and score.bounds else ""


def _short(model: object) -> str:
    return str(model or "").rstrip("/").rsplit("/", 1)[-1]


def _address(name: str) -> str:
    return name.lower().replace(" ", "-")
