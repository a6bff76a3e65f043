"""The scorecard, the ledger and the measurements of a run, in plain numbers; what is unknown is empty."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lke_lightning.edits import KINDS
from lke_lightning.ledger import Entry

MOMENTS = ("before", "just_after", "final")

Series = list[tuple[float, float]]
"""Points of a curve."""
Curves = dict[str, dict[str, Series]]
"""Curves by topic and by name."""

WHOSE = {
    "known_originals": "known: answers that edits replace", "known_neighborhood": "known: answers about others",
    "edited_just_after": "edited, just after", "edited_final": "edited, at the end",
}  # fmt: skip


@dataclass(frozen=True)
class Score:
    """A mean over edits, with its 95 % confidence interval, if there is one."""

    value: float
    bounds: tuple[float, float] | None = None


class Card:
    """The contents of `scorecard.json`."""

    def __init__(self, card: dict[str, Any]) -> None:
        named = ("method", "model", "data", "protocol", "intervals", "device")
        self.about = {name: str(card[name]) for name in named if card.get(name)}
        self.about |= {name: str(number) for name, number in _part(card, "versions").items()}
        self.made, self.batch_size = int(card.get("edits") or 0), int(card.get("batch_size") or 1)
        self.scores = {moment: dict(_scores(_part(card, moment))) for moment in MOMENTS}
        """By moment and by measure: `S`, `efficacy / success`, and so on, as deep as the scorecard goes."""
        self.perplexity = {name: float(value) for name, value in _part(card, "perplexity").items() if value is not None}
        self.growth = {
            f"layer {int(layer)}": float(norms["after"]) / float(norms["before"])
            for layer, norms in _part(card, "weight_norms").items()
        }
        retention = [(int(part["batch"]), _success(part)) for part in card.get("retention") or []]
        self.retention = [(batch, success) for batch, success in retention if not math.isnan(success)]
        """Number of each batch, and its efficacy at the end."""
        matrix = _part(card, "retention_matrix")
        self.evaluated_after = [int(edits) for edits in matrix.get("evaluated_after") or []]
        self.matrix = [[_number(value) for value in row] for row in matrix.get("success") or []]
        """By evaluation and by batch, the efficacy; NaN: none of its edits was active."""
        parts = {name: part.get("per_token") for name, part in _part(card, "probability").items() if name in WHOSE}
        self.probability = {name: float(part["mean"]) for name, part in parts.items() if part}
        self.curves: Curves = {"probability": {
            f"{WHOSE[name]} (mean {mean:.2f})": _histogram(parts[name]["histogram"])
            for name, mean in self.probability.items()
        }}  # fmt: skip
        median = _part(card, "steps").get("median")
        self.steps = None if median is None else float(median)
        self.seconds = {name: float(value) for name, value in _part(card, "seconds").items() if value}
        examples = _part(card, "generated").get("examples") or []
        self.examples = [[str(part[name]) for name in ("prompt", "target", "said")] for part in examples]


class History:
    """The contents of the ledger."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        events: dict[str, list[Entry]] = {}
        for entry in entries:
            events.setdefault(entry["event"], []).append(entry)
        edits, batches, guard = (events.get(name, []) for name in ("edit", "batch", "guard"))
        totals = itertools.accumulate(int(entry["edits"]) for entry in batches)
        self.ends = {int(entry["batch"]): total for entry, total in zip(batches, totals, strict=True)}
        """By batch, how many edits had been made after it."""
        self.made, self.left_out = len(edits), len(events.get("left_out", []))
        self.curves: Curves = {
            "just after": {"efficacy": self._by_batch(edits, lambda edit: _success(edit, "_just_after"))},
            "arrival": self._arrival(edits, batches),
            "norm growth": self._norm_growth(batches),
            "steps": _cumulated(edits),
            **_so_far(events.get("evaluation", [])),
        }
        self.guard = [_decision(entry) for entry in guard]

    def _by_batch(
        self,
        edits: Sequence[Entry],
        read: Callable[[Entry], float],
        over: Callable[[Sequence[float]], float] = statistics.fmean,
    ) -> Series:
        """Return a figure of each batch: a mean, or another one, over those of its edits from which one is read."""
        by_batch: dict[int, list[float]] = {}
        for entry in edits:
            value = read(entry)
            if not math.isnan(value):  # a scorecard of a sample has no success of the others
                by_batch.setdefault(int(entry["batch"]), []).append(value)
        return [(self.ends[batch], over(parts)) for batch, parts in by_batch.items() if batch in self.ends]

    def _arrival(self, edits: Sequence[Entry], batches: Sequence[Entry]) -> dict[str, Series]:
        """Return the fulfilment of new edits, over all layers and where it is lowest, and what arrived of batches."""
        shares = {int(entry["batch"]): list(map(float, _part(entry, "fulfilment").values())) for entry in batches}
        found: dict[str, Series] = {
            "fulfilment (median of layers)": [
                (self.ends[n], statistics.median(parts)) for n, parts in shares.items() if parts
            ],
            "fulfilment (lowest layer)": [(self.ends[n], min(parts)) for n, parts in shares.items() if len(parts) > 1],
            "first choice": self._by_batch(edits, lambda edit: _number(edit.get("first_choice_just_after"))),
            "written (median)": self._by_batch(edits, lambda edit: _number(edit.get("written")), statistics.median),
        }
        return {name: points for name, points in found.items() if points}

    def _norm_growth(self, batches: Sequence[Entry]) -> dict[str, Series]:
        found: dict[str, Series] = {}
        for entry in batches:
            for layer, value in sorted(entry["norm_growth"].items(), key=lambda item: int(item[0])):
                points = found.setdefault(f"layer {layer}", [(0, 1.0)])
                points.append((self.ends[int(entry["batch"])], float(value)))
        return found


def drift_curves(drift: dict[str, Any]) -> Curves:
    """Return the curves of `drift.json`: over edits, over blocks, and over singular values."""
    found: Curves = {}

    def add(topic: str, name: str, points: Series) -> None:
        found.setdefault(topic, {}).setdefault(name, []).extend(points)

    for layer, part in _part(drift, "unedited").items():
        add(f"spectrum of layer {layer}", "unedited", _numbered(part["singular_values"], 1))
    for snapshot in drift.get("snapshots") or []:
        for layer, value in snapshot["key_drift"].items():
            add("key drift", f"layer {layer}", [(int(snapshot["edits"]), float(value))])
        for layer, part in snapshot["spectrum"].items():
            change = f"change after {snapshot['edits']:,} edits"
            add(f"spectrum of layer {layer}", change, _numbered(part["singular_values"], 1))
    names = {"before": "unedited", "after": "edited"}
    for moment, norms in _part(drift, "matrix_norms").items():
        add("norms by depth", names[moment], _numbered(norms))
    for moment, part in _part(drift, "contributions").items():
        for name, share in zip(part["submodules"], part["share"], strict=True):
            module, _, block = name.partition(" ")
            if block:
                add(f"share of {module}", names[moment], [(int(block), float(share))])
    return found


def downstream_curves(found: dict[str, Any]) -> Curves:
    """Return the curves of `downstream.json` over edits: each measure by task, and F1 or accuracy with its mean."""
    curves: Curves = {}
    for part in found.get("measurements") or []:
        parts = {f"task {task}": measures for task, measures in part["results"].items()}
        scores = {task: measures.get("f1", measures.get("accuracy")) for task, measures in part["results"].items()}
        scores = {task: score for task, score in scores.items() if score is not None}
        parts["downstream"] = scores | ({"mean": sum(scores.values()) / len(scores)} if scores else {})
        for topic, values in parts.items():
            for name, value in values.items():
                if isinstance(value, float):
                    curves.setdefault(topic, {}).setdefault(name, []).append((int(part["edits"]), value))
    return curves


def _part(tree: dict[str, Any], name: str) -> dict[str, Any]:
    return tree.get(name) or {}


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _numbered(values: Sequence[Any], first: int = 0) -> Series:
    return [(number, float(value)) for number, value in enumerate(values, first)]


def _histogram(counts: Sequence[Any]) -> Series:
    total = max(1, sum(counts))
    return [((number + 0.5) / len(counts), float(count) / total) for number, count in enumerate(counts)]


def _scores(section: dict[str, Any]) -> Iterator[tuple[str, Score]]:
    for path, value in _leaves({name: part for name, part in section.items() if name != "intervals"}):
        bounds: Any = _part(section, "intervals")
        for name in path:
            bounds = bounds.get(name) or {}
        shown = " / ".join(path) if path != ("score",) else "S"
        yield shown, Score(value, (float(bounds[0]), float(bounds[1])) if bounds else None)


def _leaves(tree: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], float]]:
    for name, part in tree.items():
        if isinstance(part, dict):
            yield from _leaves(part, (*path, name))
        elif part is not None:
            yield (*path, name), float(part)


def _success(part: dict[str, Any], moment: str = "") -> float:
    """Return the success, or the accuracy if there is no original answer; NaN if there is neither."""
    found = part.get(f"success{moment}")
    return _number(part.get("accurate_just_after" if moment else "accuracy") if found is None else found)


def _so_far(evaluations: Sequence[Entry]) -> Curves:
    """Return the successes on all edits so far, with S, their harmonic mean, and the perplexity of unrelated text."""
    found: Curves = {}
    for entry in evaluations:
        values = {kind: float(entry[f"{kind}_success"]) for kind in KINDS if entry.get(f"{kind}_success") is not None}
        if len(values) == len(KINDS):
            values["S"] = len(KINDS) / sum(1 / v for v in values.values()) if min(values.values()) > 0 else 0.0
        for kind, value in values.items():
            found.setdefault("so far", {}).setdefault(kind, []).append((int(entry["edits"]), value))
        if entry.get("perplexity") is not None:
            points = found.setdefault("perplexity", {}).setdefault("perplexity", [])
            points.append((int(entry["edits"]), float(entry["perplexity"])))
    return found


def _cumulated(edits: Sequence[Entry]) -> dict[str, Series]:
    """Return, by stop rule, the cumulative share of all edits stopped by each step."""
    taken: dict[str, list[int]] = {"all": [int(entry["steps"]) for entry in edits]} if edits else {}
    for entry in edits:
        taken.setdefault(str(entry["stopped_by"]), []).append(int(entry["steps"]))
    return {
        rule: [(step, sum(other <= step for other in steps) / len(edits)) for step in sorted({0, *steps})]
        for rule, steps in taken.items()
    }


def _decision(entry: Entry) -> list[str]:
    limits, measured = entry["limits"], entry["measured"]
    parts = [f"{name.replace('_', ' ')} {measured[name]:.3g} (limit {limits[name]:g})" for name in limits]
    return [str(int(entry["batch"]) + 1), str(entry["action"]), ", ".join(parts)]
