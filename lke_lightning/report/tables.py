"""Tables of runs: for a paper (LaTeX with booktabs), for a README (Markdown), for the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lke_lightning.report.reading import KINDS, RunRecord, Score

ESCAPES = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{",
           "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}  # fmt: skip


@dataclass(frozen=True)
class Column:
    """One figure of every run."""

    name: str
    read: Callable[[RunRecord], Score | None]
    digits: int = 1
    factor: float = 100.0
    """What the figure is multiplied with: 100 for fractions, which are told in percent."""
    best: Callable[[Sequence[float]], float] | None = max
    """Picks the figure that is set in bold; `None`: none is."""

    def cell(self, score: Score | None) -> str:
        """Write a figure, with half the width of its interval where it has one."""
        if score is None:
            return ""
        value = score.value * self.factor
        # perplexities of broken models have many digits and little to say with them
        shown = f"{value:.1e}" if value >= 1e6 else f"{value:,.0f}" if value >= 1e3 else f"{value:.{self.digits}f}"
        if score.bounds is None:
            return shown
        return f"{shown} ± {(score.bounds[1] - score.bounds[0]) / 2 * self.factor:.{self.digits}f}"


def _success(kind: str) -> Callable[[RunRecord], Score | None]:
    return lambda run: run.score("final", kind)


def _perplexity(run: RunRecord) -> Score | None:
    value = run.perplexity("final")
    return None if value is None else Score(value)


def _growth(run: RunRecord) -> Score | None:
    grown = [points[-1][1] for points in run.norm_growth().values()]
    return Score(max(grown)) if grown else None


def _downstream(run: RunRecord) -> Score | None:
    points = run.downstream_mean()
    return Score(points[-1][1]) if points else None


def _steps(run: RunRecord) -> Score | None:
    median = (run.card.get("steps") or {}).get("median")
    return None if median is None else Score(median)


def _seconds(run: RunRecord) -> Score | None:
    seconds = run.card.get("seconds") or {}
    spent = seconds.get("stage_one", 0.0) + seconds.get("stage_two", 0.0)
    return Score(spent / run.made) if run.made and spent else None


def _made(run: RunRecord) -> Score | None:
    return Score(run.made)


COLUMNS = (
    Column("Edits", _made, 0, 1.0, None),
    *(Column(kind.capitalize(), _success(kind)) for kind in KINDS),
    Column("S", _success("S")),
    Column("Downstream F1", _downstream),
    Column("Perplexity", _perplexity, 2, 1.0, min),
    Column("Norm growth", _growth, 2, 1.0, min),
    Column("Steps", _steps, 1, 1.0, None),
    Column("s/edit", _seconds, 2, 1.0, None),
)

NOTE = (
    "At the end of each run: success in percent, ± half of the 95 % confidence interval over edits where it was "
    "measured; S is the harmonic mean of the three. Perplexity of untouched text; largest growth of the Frobenius norm "
    "of an edited matrix; median steps of stage one; seconds of both stages per edit."
)


@dataclass(frozen=True)
class Table:
    """A table with the best figure of each column known."""

    header: list[str]
    """The columns' names after the first, which has the runs'."""
    rows: list[tuple[str, list[str]]]
    best: set[tuple[int, int]]
    """Rows and columns of the cells that are the best of theirs."""


def table(runs: Sequence[RunRecord]) -> Table:
    """Put runs into a table, without columns that none of them has.

    Which is best is told only of runs with as many edits: a shorter run has had less to bear.
    """
    found = [(column, [column.read(run) for run in runs]) for column in COLUMNS]
    found = [(column, scores) for column, scores in found if any(score is not None for score in scores)]
    best = set()
    for place, (column, scores) in enumerate(found):
        values = [score.value for score in scores if score is not None]
        if column.best is not None and len(values) > 1 and len({run.made for run in runs}) == 1:
            top = column.best(values)
            best |= {(row, place) for row, score in enumerate(scores) if score is not None and score.value == top}
    cells = [[column.cell(scores[row]) for column, scores in found] for row in range(len(runs))]
    rows = [(run.name, row) for run, row in zip(runs, cells, strict=True)]
    return Table([column.name for column, _ in found], rows, best)


def latex(runs: Sequence[RunRecord]) -> str:
    """Return a LaTeX table environment; it needs the package booktabs."""
    made = table(runs)
    lines = []
    for row, (name, cells) in enumerate(made.rows):
        written = [_latex_cell(cell, (row, column) in made.best) for column, cell in enumerate(cells)]
        lines.append(" & ".join([_escaped(name), *written]) + r" \\")
    header = " & ".join(["Run", *map(_escaped, made.header)]) + r" \\"
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            f"\\caption{{{_escaped(NOTE)}}}".replace("±", r"$\pm$"),
            f"\\begin{{tabular}}{{l{'r' * len(made.header)}}}",
            r"\toprule", header, r"\midrule", *lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", "",
        ]
    )  # fmt: skip


def markdown(runs: Sequence[RunRecord]) -> str:
    """Return a Markdown table with a note below."""
    made = table(runs)
    lines = [["Run", *made.header], ["---", *["---:"] * len(made.header)]]
    for row, (name, cells) in enumerate(made.rows):
        written = [f"**{cell}**" if (row, column) in made.best else cell for column, cell in enumerate(cells)]
        lines.append([name.replace("|", "\\|"), *written])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + f"\n\n{NOTE}\n"


def _latex_cell(cell: str, is_best: bool) -> str:
    if not cell:
        return "--"
    value, _, margin = cell.partition(" ± ")
    value = rf"\textbf{{{value}}}" if is_best else value
    return f"{value} $\\pm$ {margin}" if margin else value


def _escaped(text: str) -> str:
    return "".join(ESCAPES.get(letter, letter) for letter in text)
