"""What a run left behind, read once: scorecard, ledger, logs, drift, downstream tasks, configuration."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from lke_lightning import checkpoints
from lke_lightning.edits import KINDS, EditError
from lke_lightning.ledger import NAME as LEDGER
from lke_lightning.ledger import Entry, Ledger, states
from lke_lightning.report.folders import DOWNSTREAM, DRIFT, SCORECARD, is_run, logged, parts_of, read_json

MOMENTS = ("before", "just_after", "final")
BINS = 20
PAUSE = 10
"""A batch that took so many times the median is taken for a pause between two parts of a run."""

Series = list[tuple[int, float]]
"""Points of a curve: edits made, and a value."""


@dataclass(frozen=True)
class Score:
    """A mean over edits, a fraction of 1 unless said otherwise, and how sure it is."""

    value: float
    bounds: tuple[float, float] | None = None
    """The interval that holds it with 95 % confidence, where the scorecard has one."""


@dataclass(frozen=True)
class RunRecord:
    """A run as its folder tells it; what was not measured is empty."""

    folder: Path
    name: str
    """What it is called beside others."""
    card: dict[str, Any]
    entries: list[Entry]
    """The ledger, in order."""
    drift: dict[str, Any]
    downstream: dict[str, Any]
    logged: list[dict[str, float]]
    """By batch, what Lightning's CSV logger wrote, with `step` the number of the batch."""
    configuration: str
    """YAML, as the command line understood it."""
    checkpoint: Path | None

    @classmethod
    def read(cls, folder: Path, name: str) -> RunRecord:
        """Read a run's folder, finished or not.

        Raises:
            EditError: nothing of a run is in it, or a file is damaged.
        """
        if not is_run(folder):
            raise EditError(f"{str(folder)!r} is not the folder of a run: it has no {SCORECARD} and no {LEDGER}")
        try:
            entries = list(Ledger(folder).read())
        except ValueError as error:
            raise EditError(f"{folder / LEDGER} is damaged: {error}") from error
        card, drift, downstream = (read_json(folder / name) for name in (SCORECARD, DRIFT, DOWNSTREAM))
        parts = parts_of(folder)
        written = [version / "config.yaml" for version in parts if (version / "config.yaml").is_file()]
        configuration = written[-1].read_text(encoding="utf-8") if written else ""
        newest = checkpoints.newest(folder)
        return cls(folder, name, card, entries, drift, downstream, logged(parts), configuration, newest)

    def events(self, kind: str) -> list[Entry]:
        """Return the ledger's entries of a kind, in order."""
        return [entry for entry in self.entries if entry["event"] == kind]

    @property
    def method(self) -> str:
        """The method's name; where there is no scorecard yet, the folder's."""
        return self.card.get("method") or self.name

    @property
    def made(self) -> int:
        """How many edits were made."""
        return max(self.card.get("edits") or 0, len(self.events("edit")))

    @property
    def is_evaluated(self) -> bool:
        """Whether the last evaluation saw all edits; an unfinished run has none, or an early one."""
        seen = [entry["edits"] for entry in self.events("evaluation")]
        return bool(self.card.get("final")) and (not seen or seen[-1] >= self.made)

    def score(self, moment: str, kind: str, measure: str = "success") -> Score | None:
        """Return a mean of the scorecard.

        Args:
            moment: one of `MOMENTS`.
            kind: one of `KINDS`, or `S` for the harmonic mean of their successes.
            measure: `success`, `magnitude` or `accuracy`; ignored for S.
        """
        path = ("score",) if kind == "S" else (kind, measure)
        return self._score(moment, path)

    def further(self) -> dict[tuple[str, ...], dict[str, Score]]:
        """Return all other means of the scorecard: by where they stand in its sections, by moment."""
        found: dict[tuple[str, ...], dict[str, Score]] = {}
        for moment in MOMENTS:
            section = self.card.get(moment) or {}
            others = {name: part for name, part in section.items() if name not in (*KINDS, "score", "intervals")}
            for path in _leaves(others):
                score = self._score(moment, path)
                if score is not None:
                    found.setdefault(path, {})[moment] = score
        return found

    def _score(self, moment: str, path: Sequence[str]) -> Score | None:
        section = self.card.get(moment) or {}
        value, bounds = _at(section, path), _at(section.get("intervals"), path)
        return None if value is None else Score(value, (bounds[0], bounds[1]) if bounds else None)

    def edits_after(self, batch: int) -> int:
        """Return how many edits had been made after a batch; the first is 0."""
        made = self._made_by_batch()
        if batch < len(made):
            return made[batch]
        return min((batch + 1) * (self.card.get("batch_size") or 1), self.made or math.inf)

    def just_after(self, kind: str) -> Series:
        """Return the success of each batch right after it was edited."""
        rows = [(row["step"], row.get(f"just_after/{kind}")) for row in self.logged]
        found = [(self.edits_after(int(step)), value) for step, value in rows if value is not None]
        if found or kind != "efficacy":
            return found
        by_batch: dict[int, list[bool]] = {}
        for entry in self.events("edit"):
            success = entry.get("success_just_after", entry.get("accurate_just_after"))
            if success is not None:
                by_batch.setdefault(entry["batch"], []).append(success)
        return [(self.edits_after(batch), sum(part) / len(part)) for batch, part in sorted(by_batch.items())]

    def evaluated(self, what: str) -> Series:
        """Return a mean over all edits so far, from the evaluations during and at the end of the run.

        Args:
            what: one of `KINDS` for its success, `S`, or `perplexity`.
        """
        found: dict[int, float] = {}
        first = self._perplexity("before") if what == "perplexity" else self.score("before", what)
        for edits, score in ((0, first), (self.made, self._final(what))):
            if score is not None:
                found[edits] = score.value
        for entry in self.events("evaluation"):
            values = [entry.get(f"{kind}_success") for kind in KINDS]
            if what == "perplexity":
                value = entry.get("perplexity")
            elif what == "S":
                value = None if None in values else _harmonic_mean(values)
            else:
                value = entry.get(f"{what}_success")
            if value is not None:
                found[entry["edits"]] = value
        return sorted(found.items())

    def perplexity(self, moment: str) -> float | None:
        """Return the perplexity of untouched text, `before` or `final`."""
        found = self._perplexity(moment)
        return None if found is None else found.value

    def norm_growth(self) -> dict[str, Series]:
        """Return, by layer, the Frobenius norm of its edited matrix in multiples of the unedited one's."""
        grown: dict[str, dict[int, float]] = {}
        for row in self.logged:
            for name, value in row.items():
                if name.startswith("norm_growth/layer_"):
                    layer = name.removeprefix("norm_growth/layer_")
                    grown.setdefault(layer, {0: 1.0})[self.edits_after(int(row["step"]))] = value
        for entry in self.events("batch"):
            for layer, value in entry["norm_growth"].items():
                grown.setdefault(layer, {0: 1.0})[self.edits_after(entry["batch"])] = value
        for layer, norms in (self.card.get("weight_norms") or {}).items():
            grown.setdefault(layer, {0: 1.0})[self.made] = norms["after"] / norms["before"]
        return {layer: sorted(points.items()) for layer, points in sorted(grown.items(), key=lambda item: int(item[0]))}

    def seconds_per_edit(self) -> Series:
        """Return the wall time of each batch, with all that ran between it and the one before, per edit."""
        ends = [
            (entry["batch"], entry["edits"], datetime.fromisoformat(entry["time"])) for entry in self.events("batch")
        ]
        took = [
            (self.edits_after(batch), (end - begin).total_seconds() / edits)
            for (_, _, begin), (batch, edits, end) in itertools.pairwise(ends)
            if edits and end > begin
        ]
        usual = sorted(seconds for _, seconds in took)[len(took) // 2] if took else 0
        return [(edits, seconds) for edits, seconds in took if seconds <= PAUSE * usual]

    def time_spent(self) -> dict[str, float]:
        """Return seconds by activity, without those that took none, and `other` for what is left of the total."""
        told = {name: value for name, value in (self.card.get("seconds") or {}).items() if value}
        total = told.pop("total", 0.0)
        other = total - sum(told.values())
        return {**told, **({"other": other} if other > 0.01 * total else {})}

    def downstream_measured(self) -> dict[int, dict[str, dict[str, Any]]]:
        """Return, by edits made and by task, what was measured on downstream tasks."""
        measured = self.downstream.get("measurements")
        if measured is None:
            found: dict[int, dict[str, dict[str, Any]]] = {}
            for entry in self.events("downstream"):
                found.setdefault(entry["edits"], {}).update(entry["tasks"])
            return found
        return {part["edits"]: part["results"] for part in measured}

    def downstream_tasks(self) -> dict[str, Series]:
        """Return the weighted F1 of each downstream task that has one, over edits; fractions of 1."""
        found: dict[str, Series] = {}
        for edits, tasks in sorted(self.downstream_measured().items()):
            for task, measured in tasks.items():
                if measured.get("f1") is not None:
                    found.setdefault(task, []).append((edits, measured["f1"]))
        return found

    def downstream_mean(self) -> Series:
        """Return the mean over downstream tasks, over edits."""
        by_edits: dict[int, list[float]] = {}
        for points in self.downstream_tasks().values():
            for edits, value in points:
                by_edits.setdefault(edits, []).append(value)
        return [(edits, sum(values) / len(values)) for edits, values in sorted(by_edits.items())]

    def retention(self) -> list[dict[str, Any]]:
        """Return the efficacy of each batch at the end: `batch`, `age`, `edits`, `success` and `accuracy`."""
        return [
            part for part in self.card.get("retention") or [] if part.get("success", part.get("accuracy")) is not None
        ]

    def retention_matrix(self) -> tuple[list[int], list[list[float | None]]]:
        """Return after how many edits was evaluated, and the success then of the edits of each batch so far."""
        matrix = self.card.get("retention_matrix") or {}
        moments, rows = matrix.get("evaluated_after") or [], matrix.get("success") or []
        if len(moments) < 2:
            seen = {e["edits"]: e["efficacy_by_batch"]["success"] for e in self.events("evaluation")
                    if "efficacy_by_batch" in e}  # fmt: skip
            moments, rows = list(seen), list(seen.values())
        return list(moments), [list(row) for row in rows]

    def probabilities(self) -> dict[str, tuple[list[int], float]]:
        """Return histograms of probabilities per token, 0 to 1 in bins of equal width, each with its mean.

        By whose they are: `edited_just_after`, `edited_final`, `known_originals`, `known_neighborhood`.
        """
        told = self.card.get("probability") or {}
        found = {
            name: (part["per_token"]["histogram"], part["per_token"]["mean"])
            for name, part in told.items()
            if isinstance(part, dict) and part.get("per_token")
        }
        nll = [entry["nll_just_after"] for entry in self.events("edit") if "nll_just_after" in entry]
        if "edited_just_after" not in found and nll:
            values = [math.exp(-value) for value in nll]
            counts = [0] * BINS
            for value in values:
                counts[min(int(value * BINS), BINS - 1)] += 1
            found["edited_just_after"] = (counts, sum(values) / len(values))
        return found

    def said(self) -> dict[str, str]:
        """Return what was generated after edited prompts, by id, as far as the scorecard shows it."""
        return {part["id"]: part["said"] for part in _at(self.card, ("generated", "examples")) or []}

    def edited_layers(self) -> list[int]:
        """Return the layers that were edited."""
        return [int(layer) for layer in self.norm_growth()]

    def standing(self) -> list[Entry]:
        """Return the edits that were made and neither replaced nor undone since, in order."""
        now = states(self.entries)
        return [entry for number, entry in enumerate(self.entries) if now.get(number) == "in the weights"
                and entry["event"] == "edit"]  # fmt: skip

    def failed(self) -> list[Entry]:
        """Return the standing edits that had no success just after they were made."""
        return [
            entry
            for entry in self.standing()
            if entry.get("success_just_after", entry.get("accurate_just_after")) is False
        ]

    def _made_by_batch(self) -> list[int]:
        edits = {entry["batch"]: entry["edits"] for entry in self.events("batch")}
        return list(itertools.accumulate(edits.get(batch, 0) for batch in range(max(edits, default=-1) + 1)))

    def _final(self, what: str) -> Score | None:
        if self.events("evaluation"):
            return None  # they say exactly when
        return self._perplexity("final") if what == "perplexity" else self.score("final", what)

    def _perplexity(self, moment: str) -> Score | None:
        value = (self.card.get("perplexity") or {}).get(moment)
        return None if value is None else Score(value)


def read_all(places: Sequence[str]) -> list[RunRecord]:
    """Read runs, each under a name of its own.

    Args:
        places: folders of runs, or folders that hold such folders, as `compare` makes them.

    Raises:
        EditError: one of them is neither; or none is given.
    """
    folders: list[Path] = []
    for place in places:
        folder = Path(place)
        if not folder.is_dir():
            raise EditError(
                f"no folder {place!r}: a report is made of the folders of runs, such as runs/20260101-120000"
            )
        inside = [] if is_run(folder) else sorted(path for path in folder.iterdir() if path.is_dir() and is_run(path))
        if not inside and not is_run(folder):
            raise EditError(f"{place!r} is neither the folder of a run nor one that holds such folders")
        folders += inside or [folder]
    if not folders:
        raise EditError("name at least one run: report RUN [RUN ...]")
    unique = list(dict.fromkeys(folder.resolve() for folder in folders))
    names = [folder.name for folder in unique]
    twice = {name for name in names if names.count(name) > 1}
    return [
        RunRecord.read(folder, f"{folder.parent.name}/{name}" if name in twice else name)
        for folder, name in zip(unique, names, strict=True)
    ]


def _leaves(tree: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, part in tree.items():
        if isinstance(part, dict):
            yield from _leaves(part, (*path, name))
        elif isinstance(part, (int, float)):
            yield (*path, name)


def _at(tree: Any, path: Sequence[str]) -> Any:
    for name in path:
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree


def _harmonic_mean(values: Sequence[float]) -> float:
    return len(values) / sum(1 / value for value in values) if min(values) > 0 else 0.0
