"""A run, finished or not, read from its folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lke_lightning import checkpoints
from lke_lightning.ledger import Ledger
from lke_lightning.report import folders
from lke_lightning.report.records import Card, Curves, History, Score, Series, downstream_curves, drift_curves


@dataclass(frozen=True)
class RunRecord:
    """A run; what was not measured is empty."""

    folder: Path
    name: str
    """Its name among the runs of the report."""
    card: Card
    history: History
    curves: Curves
    """Over edits `just after` and `so far` (by kind), `arrival`, `perplexity`, `downstream` (by task), `retention`,
    `norm growth` and `key drift` (by layer), `seconds per edit`; and others, see `records`."""
    configuration: str
    """YAML, as parsed from the command line."""
    checkpoint: Path | None

    @property
    def made(self) -> int:
        """How many edits were made."""
        return max(self.card.made, self.history.made)

    @property
    def is_finished(self) -> bool:
        """Whether the last evaluation saw all edits; an unfinished run has none, or an early one."""
        seen = [points[-1][0] for points in self.curves.get("so far", {}).values()]
        return bool(self.card.scores["final"]) and max(seen, default=self.made) >= self.made

    def score(self, kind: str, moment: str = "final") -> Score | None:
        """Return the success of a kind, or `S`."""
        return self.card.scores[moment].get("S" if kind == "S" else f"{kind} / success")

    def last(self, topic: str, name: str | None = None) -> float | None:
        """Return the last value of a curve, or the largest of all layers."""
        found = self.curves.get(topic, {})
        ends = [points[-1][1] for key, points in found.items() if key == name or (not name and "layer" in key)]
        return max(ends, default=None)


def read_all(places: Sequence[str]) -> list[RunRecord]:
    """Read runs, each under a unique name.

    Args:
        places: folders of runs, or folders that hold such folders, as `compare` makes them.

    Raises:
        EditError: one of them is neither; none is given; a file is damaged.
    """
    found = folders.find_runs(places)
    names = [folder.name for folder in found]
    return [
        _read(folder, f"{folder.parent.name}/{name}" if names.count(name) > 1 else name)
        for folder, name in zip(found, names, strict=True)
    ]


def _read(folder: Path, name: str) -> RunRecord:
    with folders.whole(folder / folders.SCORECARD):
        card = Card(folders.read_object(folder / folders.SCORECARD))
    with folders.whole(folder / folders.LEDGER):
        history = History(list(Ledger(folder).read()))
    with folders.whole(folder / folders.DRIFT):
        curves = history.curves | card.curves | drift_curves(folders.read_object(folder / folders.DRIFT))
    with folders.whole(folder / folders.DOWNSTREAM):
        curves |= downstream_curves(folders.read_object(folder / folders.DOWNSTREAM))
    batches: dict[int, dict[str, float]] = {}  # a batch that was edited again counts as last edited
    configuration = ""
    for part in folders.log_folders(folder):
        with folders.whole(part / "metrics.csv"):
            batches |= folders.read_metrics(part / "metrics.csv")
        if (part / "config.yaml").is_file():
            configuration = (part / "config.yaml").read_text(encoding="utf-8", errors="replace")
    _complete(curves, card, history, batches)
    return RunRecord(folder, name, card, history, curves, configuration, checkpoints.newest(folder))


def _complete(curves: Curves, card: Card, history: History, batches: dict[int, dict[str, float]]) -> None:
    """Assemble the curves that need more than one file."""
    made = max(card.made, history.made)

    def edits_after(batch: int) -> int:
        return history.ends.get(batch, min((batch + 1) * card.batch_size, made))

    logged: dict[str, Series] = {}
    for batch in sorted(batches):
        for kind, value in batches[batch].items():
            logged.setdefault(kind, []).append((edits_after(batch), value))
    curves["just after"] = curves["just after"] | logged
    if card.retention:
        at_the_end: Series = [(edits_after(batch), value) for batch, value in card.retention]
        curves["retention"] = {"at the end": at_the_end, "just after": curves["just after"]["efficacy"]}
    if not curves["norm growth"]:
        curves["norm growth"] = {layer: [(0, 1.0), (made, value)] for layer, value in card.growth.items()}
    ends = {"before": 0, "final": made}
    points: dict[float, float] = {ends[moment]: value for moment, value in card.perplexity.items() if moment in ends}
    if "perplexity" in curves:  # evaluations during the run have exact positions
        points = {0: points[0]} if 0 in points else {}
        points |= dict(curves["perplexity"]["perplexity"])
    curves["perplexity"] = {"perplexity": sorted(points.items())}
