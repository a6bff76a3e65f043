"""The table of runs, one figure of each in a column: for the page, and for a paper in LaTeX and Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lke_lightning.evaluation.teacher_forced import KINDS
from lke_lightning.report.reading import RunRecord, Runs, largest
from lke_lightning.report.records import Score, Series

LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"} | {
    letter: f"\\{letter}" for letter in "&%$#_{}"
}

NOTE = (
    "At the end of each run: success in percent, ± half of the 95 % confidence interval over edits where it was "
    "measured; S is the harmonic mean of the three. Perplexity of untouched text; largest growth of the Frobenius norm "
    "of an edited matrix; median steps of stage one; seconds of both stages per edit."
)


@dataclass(frozen=True)
class Column:
    """One figure of every run."""

    name: str
    read: Callable[[RunRecord], Score | float | None]
    digits: int
    best: Callable[[Sequence[float]], float] | None = None
    """Picks the figure that is set in bold; `None`: none is."""

    def score(self, run: RunRecord) -> Score | None:
        """Read the figure of a run."""
        found = self.read(run)
        return Score(found) if isinstance(found, (int, float)) else found

    def cell(self, score: Score | None) -> str:
        """Write a figure, with half the width of its interval where it has one."""
        if score is None:
            return ""
        value = score.value
        # perplexities of broken models have many digits and little to say with them
        shown = f"{value:.1e}" if value >= 1e6 else f"{value:,.0f}" if value >= 1e3 else f"{value:.{self.digits}f}"
        return shown + (f" ± {(score.bounds[1] - score.bounds[0]) / 2:.{self.digits}f}" if score.bounds else "")


@dataclass(frozen=True)
class Table:
    """A table, and where in it the best figure of each column is."""

    header: list[str]
    rows: list[list[str]]
    best: set[tuple[int, int]]


def percent(score: Score | None) -> Score | None:
    """Return a fraction in percent."""
    if score is None or score.bounds is None:
        return score and Score(100 * score.value)
    return Score(100 * score.value, (100 * score.bounds[0], 100 * score.bounds[1]))


def last(points: Series) -> float | None:
    """Return the last value of a curve."""
    return points[-1][1] if points else None


def _success(kind: str) -> Callable[[RunRecord], Score | None]:
    return lambda run: percent(run.score(kind))


def _f1(run: RunRecord) -> Score | None:
    value = last(run.downstream_f1().get("mean", []))
    return None if value is None else Score(100 * value)


def _seconds(run: RunRecord) -> float | None:
    spent = sum(run.card.seconds.get(name, 0.0) for name in ("stage_one", "stage_two"))
    return spent / run.made if run.made and spent else None


COLUMNS = (
    Column("Edits", lambda run: run.made, 0),
    *(Column(kind.capitalize(), _success(kind), 1, max) for kind in (*KINDS, "S")),
    Column("Downstream F1", _f1, 1, max),
    Column("Perplexity", lambda run: run.card.perplexity.get("final"), 2, min),
    Column("Norm growth", lambda run: last(largest(run.norm_growth())), 2, min),
    Column("Steps", lambda run: run.card.steps, 1),
    Column("s/edit", _seconds, 2),
)


def table(runs: Runs) -> Table:
    """Put runs into a table, without columns that none of them has.

    Which is best is told only of runs with as many edits: a shorter run has had less to bear.
    """
    found = [(column, [column.score(run) for run in runs]) for column in COLUMNS]
    found = [(column, scores) for column, scores in found if any(scores)]
    best = set()
    for place, (column, scores) in enumerate(found, 1):
        values = [score.value for score in scores if score]
        if column.best and len(values) > 1 and len({run.made for run in runs}) == 1:
            top = column.best(values)
            best |= {(row, place) for row, score in enumerate(scores) if score and score.value == top}
    rows = [[run.name, *(column.cell(scores[row]) for column, scores in found)] for row, run in enumerate(runs)]
    return Table(["Run", *(column.name for column, _ in found)], rows, best)


def latex(made: Table) -> str:
    """Return a LaTeX table environment; it needs the package booktabs."""

    def line(cells: Sequence[str]) -> str:
        return " & ".join(cells) + r" \\"

    def escaped(text: str) -> str:
        return "".join(LATEX.get(letter, letter) for letter in text)

    def cell(text: str, is_best: bool) -> str:
        value, plus_minus, margin = escaped(text or "--").partition(r" $\pm$")
        return (rf"\textbf{{{value}}}" if is_best else value) + plus_minus + margin

    rows = [line([cell(text, (i, j) in made.best) for j, text in enumerate(row)]) for i, row in enumerate(made.rows)]
    return "\n".join([
        r"% needs \usepackage{booktabs}", r"\begin{table}", r"\centering", rf"\caption{{{escaped(NOTE)}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(made.header) - 1)}}}", r"\toprule", line(map(escaped, made.header)),
        r"\midrule", *rows, r"\bottomrule", r"\end{tabular}", r"\end{table}", "",
    ])  # fmt: skip


def markdown(made: Table) -> str:
    """Return a Markdown table with a note below."""
    rows = [
        [f"**{text}**" if (i, j) in made.best else text.replace("|", "\\|") for j, text in enumerate(row)]
        for i, row in enumerate(made.rows)
    ]
    lines = [made.header, ["---", *["---:"] * (len(made.header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + f"\n\n{NOTE}\n"
