"""A run as its folder tells it, finished or not."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lke_lightning import checkpoints
from lke_lightning.evaluation.teacher_forced import KINDS
from lke_lightning.ledger import NAME as LEDGER
from lke_lightning.ledger import Ledger
from lke_lightning.report.folders import (
    DOWNSTREAM,
    DRIFT,
    SCORECARD,
    find_runs,
    log_folders,
    read_metrics,
    read_object,
    whole,
)
from lke_lightning.report.records import Card, Drift, History, Score, Series, downstream_scores


@dataclass(frozen=True)
class RunRecord:
    """A run; what was not measured is empty."""

    folder: Path
    name: str
    """What it is called beside others."""
    card: Card
    history: History
    drift: Drift
    downstream: dict[str, dict[str, Series]]
    """By task and by measure."""
    logged: dict[str, Series]
    """By kind, number and success of each batch right after it was edited."""
    configuration: str
    """YAML, as the command line understood it."""
    checkpoint: Path | None

    @property
    def method(self) -> str:
        """The method's name; where there is no scorecard yet, the run's."""
        return self.card.about.get("method", self.name)

    @property
    def made(self) -> int:
        """How many edits were made."""
        return max(self.card.made, self.history.made)

    @property
    def is_finished(self) -> bool:
        """Whether the last evaluation saw all edits; an unfinished run has none, or an early one."""
        seen = self.history.so_far.get("efficacy")
        return bool(self.card.scores["final"]) and (not seen or seen[-1][0] >= self.made)

    def score(self, kind: str, moment: str = "final") -> Score | None:
        """Return the success of a kind, or `S`."""
        return self.card.scores[moment].get(kind if kind == "S" else f"{kind} / success")

    def edits_after(self, batch: int) -> int:
        """Return how many edits had been made after a batch; the first is 0."""
        return self.history.ends.get(batch, min((batch + 1) * self.card.batch_size, self.made))

    def just_after(self, kind: str) -> Series:
        """Return the success of each batch right after it was edited."""
        logged = [(self.edits_after(batch), value) for batch, value in self.logged.get(kind, [])]
        return logged or (self.history.efficacy if kind == "efficacy" else [])

    def so_far(self, what: str) -> Series:
        """Return a mean over all edits so far, from the evaluations during and at the end of the run.

        Args:
            what: a kind for its success, `S`, or `perplexity`, which begins with the unedited model's.
        """
        found = dict(self.history.so_far.get(what, []))
        of_text, score = self.card.perplexity, self.score(what)
        final = of_text.get("final") if what == "perplexity" else score and score.value
        if not found and final is not None:
            found = {self.made: final}
        if what == "perplexity" and "before" in of_text:
            found[0] = of_text["before"]
        return sorted(found.items())

    def norm_growth(self) -> dict[str, Series]:
        """Return, by layer, the norm of its edited matrix in multiples of the unedited one's."""
        at_the_end = {layer: [(0, 1.0), (self.made, value)] for layer, value in self.card.norm_growth.items()}
        return dict(sorted((self.history.norm_growth or at_the_end).items(), key=lambda item: int(item[0])))

    def retention(self) -> Series:
        """Return the efficacy of each batch at the end, at the edits made after it."""
        return [(self.edits_after(batch), value) for batch, value in self.card.retention]

    def downstream_f1(self) -> dict[str, Series]:
        """Return the weighted F1 of each downstream task that has one, over edits, and their `mean`."""
        tasks = {task: measures["f1"] for task, measures in self.downstream.items() if "f1" in measures}
        return tasks | ({"mean": _combined(tasks.values(), lambda values: sum(values) / len(values))} if tasks else {})


Runs = Sequence[RunRecord]


def of_each(
    runs: Runs, several: Callable[[RunRecord], Series], one: Callable[[RunRecord], dict[str, Series]]
) -> dict[str, Series]:
    """Take several curves of one run, or one curve of each of several runs."""
    return one(runs[0]) if len(runs) == 1 else {run.name: several(run) for run in runs}


def largest(by_layer: dict[str, Series]) -> Series:
    """Return the largest value of any layer, over edits."""
    return _combined(by_layer.values(), max)


def _combined(curves: Iterable[Series], combine: Callable[[list[float]], float]) -> Series:
    by_edits: dict[int, list[float]] = {}
    for edits, value in itertools.chain.from_iterable(curves):
        by_edits.setdefault(edits, []).append(value)
    return [(edits, combine(values)) for edits, values in sorted(by_edits.items())]


def read_all(places: Sequence[str]) -> list[RunRecord]:
    """Read runs, each under a name of its own.

    Args:
        places: folders of runs, or folders that hold such folders, as `compare` makes them.

    Raises:
        EditError: one of them is neither; none is given; a file is damaged.
    """
    folders = find_runs(places)
    names = [folder.name for folder in folders]
    return [
        _read(folder, f"{folder.parent.name}/{name}" if names.count(name) > 1 else name)
        for folder, name in zip(folders, names, strict=True)
    ]


def _read(folder: Path, name: str) -> RunRecord:
    with whole(folder / SCORECARD):
        card = Card.of(read_object(folder / SCORECARD))
    with whole(folder / LEDGER):
        history = History.of(list(Ledger(folder).read()))
    with whole(folder / DRIFT):
        drift = Drift.of(read_object(folder / DRIFT))
    with whole(folder / DOWNSTREAM):
        downstream = downstream_scores(read_object(folder / DOWNSTREAM))
    batches: dict[int, dict[str, float]] = {}  # one that was edited again counts as it was the last time
    configuration = ""
    for part in log_folders(folder):
        with whole(part / "metrics.csv"):
            batches |= read_metrics(part / "metrics.csv")
        if (part / "config.yaml").is_file():
            configuration = (part / "config.yaml").read_text(encoding="utf-8", errors="replace")
    logged = {kind: [(batch, found[kind]) for batch, found in sorted(batches.items()) if kind in found] for kind in KINDS}
    return RunRecord(folder, name, card, history, drift, downstream, logged, configuration, checkpoints.newest(folder))
