"""The table of runs, one figure per column."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lke_lightning.edits import KINDS
from lke_lightning.report.reading import RunRecord
from lke_lightning.report.records import Score

NOTE = (
    "At the end of each run: success in percent, ± half of the 95 % confidence interval over edits where it is "
    "known; S is the harmonic mean of the three. Mean over downstream tasks, of weighted F1 or accuracy. Perplexity of "
    "unrelated text; largest growth of the Frobenius norm of an edited matrix; mean probability per token of edited "
    "answers, just after; median steps of stage one; seconds of both stages per edit."
)


@dataclass(frozen=True)
class Column:
    """One figure of every run."""

    name: str
    read: Callable[[RunRecord], Score | float | None]
    digits: int
    best: Callable[[Sequence[float]], float] | None = None
    """Selects the figure to set in bold; `None`: none."""
    factor: float = 1.0
    """Multiplier of the figure: 100 for percent."""

    def score(self, run: RunRecord) -> Score | None:
        """Read the figure of a run."""
        found = self.read(run)
        return found if found is None or isinstance(found, Score) else Score(found)

    def cell(self, score: Score | None) -> str:
        """Write a figure, with half the width of its interval where it has one."""
        if score is None:
            return ""
        value = score.value * self.factor
        # perplexities of broken models have many meaningless digits
        shown = f"{value:.1e}" if value >= 1e6 else f"{value:,.0f}" if value >= 1e3 else f"{value:.{self.digits}f}"
        half = (score.bounds[1] - score.bounds[0]) / 2 * self.factor if score.bounds else None
        return shown if half is None else f"{shown} ± {half:.{self.digits}f}"


def _seconds(run: RunRecord) -> float | None:
    spent = sum(run.card.seconds.get(name, 0.0) for name in ("stage_one", "stage_two"))
    return spent / run.made if run.made and spent else None


def _success(kind: str) -> Callable[[RunRecord], Score | None]:
    return lambda run: run.score(kind)


COLUMNS = (
    Column("Edits", lambda run: run.made, 0),
    *(Column(kind.capitalize(), _success(kind), 1, max, 100) for kind in (*KINDS, "S")),
    Column("Downstream", lambda run: run.last("downstream", "mean"), 1, max, 100),
    Column("Perplexity", lambda run: run.card.perplexity.get("final"), 2, min),
    Column("Norm growth", lambda run: run.last("norm growth"), 2, min),
    Column("p(edited)", lambda run: run.card.probability.get("edited_just_after"), 2),
    Column("Steps", lambda run: run.card.steps, 1),
    Column("s/edit", _seconds, 2),
)


def table(runs: Sequence[RunRecord]) -> tuple[list[str], list[list[str]], set[tuple[int, int]]]:
    """Make a table of runs, without columns that none of them has.

    Returns:
        The header, the rows, and the row and column of each column's best figure. Only for runs with
        equally many edits: shorter runs degrade less.
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
    return ["Run", *(column.name for column, _ in found)], rows, best
