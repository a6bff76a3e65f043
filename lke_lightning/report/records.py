"""What each file of a run tells, in plain numbers; what was not measured is empty."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from lke_lightning.evaluation.teacher_forced import KINDS
from lke_lightning.ledger import Entry

MOMENTS = ("before", "just_after", "final")
PAUSE = 10
"""A batch that took so many times the median is taken for a pause between two parts of a run."""

Series = list[tuple[int, float]]
"""Points of a curve: edits made, and a value."""


@dataclass(frozen=True)
class Score:
    """A mean over edits, and the interval that holds it with 95 % confidence, where there is one."""

    value: float
    bounds: tuple[float, float] | None = None


@dataclass(frozen=True)
class Card:
    """What `scorecard.json` tells."""

    about: dict[str, str]
    """What was edited with what, by the scorecard's names."""
    made: int
    batch_size: int
    scores: dict[str, dict[str, Score]]
    """By moment and by measure: `S`, `efficacy / success`, and so on, as deep as the scorecard goes."""
    perplexity: dict[str, float]
    """By moment."""
    norm_growth: dict[str, float]
    """By layer, at the end."""
    retention: Series
    """Number of each batch, and its efficacy at the end."""
    matrix: tuple[list[int], list[list[float]]]
    """After how many edits was evaluated, and the efficacy then of each batch so far; NaN: none of its edits stood."""
    probabilities: dict[str, tuple[list[float], float]]
    """By whose they are: how many facts have a probability per token in each of some equal bins, and the mean."""
    steps: float | None
    """Median of stage one."""
    seconds: dict[str, float]
    """By activity, without those that took none; what is left of the total is `other`."""
    examples: list[list[str]]
    """Prompts, wanted answers and what the model generated."""

    @classmethod
    def of(cls, card: dict[str, Any]) -> Card:
        """Understand a scorecard."""
        seconds = {name: float(value) for name, value in (card.get("seconds") or {}).items() if value}
        total = seconds.pop("total", 0.0)
        other = total - sum(seconds.values())
        matrix, steps = card.get("retention_matrix") or {}, (card.get("steps") or {}).get("median")
        rows = [list(map(_number, row)) for row in matrix.get("success") or []]
        probabilities = {name: part["per_token"] for name, part in (card.get("probability") or {}).items()
                         if isinstance(part, dict) and part.get("per_token")}  # fmt: skip
        versions = ", ".join(f"{name} {number}" for name, number in (card.get("versions") or {}).items())
        names = ("method", "model", "data", "protocol", "intervals", "device")
        retention = [(int(part["batch"]), _success(part)) for part in card.get("retention") or []]
        examples = (card.get("generated") or {}).get("examples") or []
        return cls(
            about={name: str(card[name]) for name in names if card.get(name)} | ({"versions": versions} if versions else {}),
            made=int(card.get("edits") or 0),
            batch_size=int(card.get("batch_size") or 1),
            scores={moment: dict(_scores(card.get(moment) or {})) for moment in MOMENTS},
            perplexity={name: float(value) for name, value in (card.get("perplexity") or {}).items() if value is not None},
            norm_growth={str(int(layer)): float(norms["after"]) / float(norms["before"])
                         for layer, norms in (card.get("weight_norms") or {}).items()},
            retention=[(batch, success) for batch, success in retention if not math.isnan(success)],
            matrix=([int(edits) for edits in matrix.get("evaluated_after") or []][: len(rows)], rows),
            probabilities={name: ([float(count) for count in part["histogram"]], float(part["mean"]))
                           for name, part in probabilities.items()},
            steps=None if steps is None else float(steps),
            seconds={**seconds, **({"other": other} if other > 0.01 * total else {})},
            examples=[[str(part[name]) for name in ("prompt", "target", "said")] for part in examples],
        )  # fmt: skip


@dataclass(frozen=True)
class History:
    """What the ledger tells."""

    made: int
    ends: dict[int, int]
    """By batch, how many edits had been made after it."""
    efficacy: Series
    """Of each batch, right after it was edited."""
    so_far: dict[str, Series]
    """By kind, `S` and `perplexity`: of all edits so far, at each evaluation during the run."""
    norm_growth: dict[str, Series]
    """By layer, the Frobenius norm of the edited matrix in multiples of the unedited one's."""
    seconds_per_edit: Series
    """From the end of one batch to the end of the next, without pauses."""
    steps: dict[str, list[int]]
    """By the rule that stopped stage one."""
    guard: list[list[str]]
    """Batch, action, and what was measured."""
    norm_limit: float | None
    """The guard's, where it acted."""
    left_out: int
    standing: int
    failed: list[list[str]]
    """Of the edits that stand, those without success just after: see `FAILED`."""

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> History:
        """Understand the entries of a ledger."""
        events: dict[str, list[Entry]] = {}
        for entry in entries:
            events.setdefault(entry["event"], []).append(entry)
        edits, batches, guard = (events.get(name, []) for name in ("edit", "batch", "guard"))
        totals = itertools.accumulate(int(entry["edits"]) for entry in batches)
        ends = {int(entry["batch"]): total for entry, total in zip(batches, totals, strict=True)}
        steps, growth, success = {}, {}, {}
        for entry in edits:
            steps.setdefault(str(entry["stopped_by"]), []).append(int(entry["steps"]))
            success.setdefault(int(entry["batch"]), []).append(_success(entry, "_just_after"))
        for entry in batches:
            for layer, value in entry["norm_growth"].items():
                growth.setdefault(str(int(layer)), [(0, 1.0)]).append((ends[int(entry["batch"])], float(value)))
        limits = guard[-1]["limits"] if guard else {}
        standing = _standing(entries)
        means = {batch: sum(parts) / len(parts) for batch, parts in success.items()}
        return cls(
            made=len(edits), ends=ends,
            efficacy=[(ends[batch], mean) for batch, mean in means.items() if batch in ends and not math.isnan(mean)],
            so_far=_so_far(events.get("evaluation", [])), norm_growth=growth,
            seconds_per_edit=_seconds_per_edit(batches, ends), steps=steps,
            guard=[_decision(entry) for entry in guard],
            norm_limit=float(limits["norm_growth"]) if "norm_growth" in limits else None,
            left_out=len(events.get("left_out", [])), standing=len(standing),
            failed=[_failed(entry) for entry in standing if _success(entry, "_just_after") == 0],
        )  # fmt: skip


@dataclass(frozen=True)
class Drift:
    """What `drift.json` tells."""

    key_drift: dict[str, Series]
    """By layer."""
    matrix_norms: dict[str, list[float]]
    """By moment, of every block."""
    unedited: dict[str, list[float]]
    """By layer, the singular values of the unedited matrix."""
    spectra: list[tuple[int, dict[str, list[float]]]]
    """Edits made, and by layer the singular values of the change."""
    ranks: dict[str, float]
    """By layer, the effective rank of the last change."""
    shares: dict[str, dict[str, float]]
    """By moment and sub-module, its share of what is added to the residual stream."""

    @classmethod
    def of(cls, drift: dict[str, Any]) -> Drift:
        """Understand what the callback `Drift` wrote."""
        snapshots = drift.get("snapshots") or []
        found: dict[str, Series] = {}
        for snapshot in snapshots:
            for layer, value in snapshot["key_drift"].items():
                found.setdefault(layer, [(0, 0.0)]).append((int(snapshot["edits"]), float(value)))
        last = snapshots[-1]["spectrum"] if snapshots else {}
        return cls(
            key_drift=found,
            matrix_norms={name: list(map(float, norms)) for name, norms in (drift.get("matrix_norms") or {}).items()},
            unedited=_singular_values(drift.get("unedited") or {}),
            spectra=[(int(snapshot["edits"]), _singular_values(snapshot["spectrum"])) for snapshot in snapshots],
            ranks={layer: float(part["effective_rank"]) for layer, part in last.items()},
            shares={moment: dict(zip(part["submodules"], map(float, part["share"]), strict=True))
                    for moment, part in (drift.get("contributions") or {}).items()},
        )  # fmt: skip


def downstream_scores(found: dict[str, Any]) -> dict[str, dict[str, Series]]:
    """Return, by task and by measure, what `downstream.json` tells, over edits."""
    scores: dict[str, dict[str, Series]] = {}
    for part in found.get("measurements") or []:
        for task, measures in part["results"].items():
            for name, value in measures.items():
                if isinstance(value, float):
                    scores.setdefault(task, {}).setdefault(name, []).append((int(part["edits"]), value))
    return scores


FAILED = ("id", "prompt", "wanted", "original", "p(wanted)", "p(original)", "steps", "stopped by")


def _failed(entry: Entry) -> list[str]:
    likely = [entry.get("nll_just_after"), entry.get("nll_of_original_just_after")]
    prompt = entry["prompt"].replace("{}", entry.get("subject") or "{}")
    shown = ["" if nll is None else f"{math.exp(-nll):.3f}" for nll in likely]
    cells = (entry["id"], prompt, entry["target"], entry.get("original") or "", *shown, entry["steps"])
    return [str(cell) for cell in (*cells, entry["stopped_by"])]


def _decision(entry: Entry) -> list[str]:
    limits, measured = entry["limits"], entry["measured"]
    told = [f"{name.replace('_', ' ')} {measured[name]:.3g} (limit {limits[name]:g})" for name in limits]
    return [str(int(entry["batch"]) + 1), str(entry["action"]), ", ".join(told)]


def _standing(entries: Sequence[Entry]) -> list[Entry]:
    """Return the edits that were made and neither replaced nor undone since."""
    made: dict[str, Entry] = {}
    standing: dict[str, None] = {}
    for entry in entries:
        event, name, other = entry["event"], entry.get("id"), entry.get("replaces") or entry.get("other")
        if event == "edit":
            made[name] = entry
        holds, gone = (other, name) if event == "undo" else (name, other)
        if event in ("edit", "undo", "redo"):
            standing.pop(gone, None)
            standing |= {holds: None} if holds in made else {}
    return [made[name] for name in standing]


def _so_far(evaluations: Sequence[Entry]) -> dict[str, Series]:
    found: dict[str, Series] = {}
    for entry in evaluations:
        values = [entry.get(f"{kind}_success") for kind in KINDS]
        all_kinds = None if None in values else _harmonic_mean(values)
        for name, value in zip((*KINDS, "S", "perplexity"), (*values, all_kinds, entry.get("perplexity")), strict=True):
            if value is not None:
                found.setdefault(name, []).append((int(entry["edits"]), float(value)))
    return found


def _seconds_per_edit(batches: Sequence[Entry], ends: dict[int, int]) -> Series:
    times = [datetime.fromisoformat(entry["time"]) for entry in batches]
    took = [
        (ends[int(entry["batch"])], (end - begin).total_seconds() / entry["edits"])
        for entry, (begin, end) in zip(batches[1:], itertools.pairwise(times), strict=True)
        if entry["edits"] and end > begin
    ]
    usual = sorted(seconds for _, seconds in took)[len(took) // 2] if took else 0
    return [(edits, seconds) for edits, seconds in took if seconds <= PAUSE * usual]


def _scores(section: dict[str, Any]) -> Iterator[tuple[str, Score]]:
    intervals = section.get("intervals") or {}
    for path, value in _leaves({name: part for name, part in section.items() if name != "intervals"}):
        bounds = intervals
        for name in path:
            bounds = bounds.get(name) or {}
        low, high = map(float, bounds) if bounds else (0.0, 0.0)
        yield " / ".join(path) if path != ("score",) else "S", Score(value, (low, high) if bounds else None)


def _leaves(tree: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], float]]:
    for name, part in tree.items():
        if isinstance(part, dict):
            yield from _leaves(part, (*path, name))
        elif part is not None:
            yield (*path, name), float(part)


def _success(part: dict[str, Any], moment: str = "") -> float:
    """Return the success, or the accuracy where there is nothing to compare with; NaN where there is neither."""
    found = part.get("success" + moment)
    return _number(part.get(("accuracy" if not moment else "accurate") + moment) if found is None else found)


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _harmonic_mean(values: Sequence[float]) -> float:
    return len(values) / sum(1 / value for value in values) if min(values) > 0 else 0.0


def _singular_values(by_layer: dict[str, Any]) -> dict[str, list[float]]:
    return {layer: [float(value) for value in part["singular_values"]] for layer, part in by_layer.items()}
