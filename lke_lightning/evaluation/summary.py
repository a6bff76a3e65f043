"""Summaries of scores: means per edit, then over edits, with confidence intervals; the sections of a scorecard."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lke_lightning.edits import KINDS
from lke_lightning.evaluation.generated import GENERATED, SAID, TEXTS
from lke_lightning.evaluation.long_answers import OVERLAP
from lke_lightning.evaluation.teacher_forced import ASKED, SAYS, TOKENS, Scores
from lke_lightning.metrics import (
    ANSWER_MEASURES,
    MEASURES,
    OVERLAPS,
    TOKEN_MEASURES,
    agreement,
    distribution,
    harmonic_mean,
    interval,
    preferences,
    record_means,
    resampled_means,
    token_accuracies,
)

TEACHER_FORCED, FREE, LONG = "teacher_forced", "generated", "long_answers"
"""Names of the protocols in a section of the scorecard."""

INTERVALS = "95 %, percentile bootstrap over edits, 1000 draws, seed 0"
"""How intervals are computed, for the scorecard; figures from `lke_lightning.metrics.records`."""

DIGITS = 6

Path = tuple[str, ...]
"""The keys of a figure in a section."""


def summarize(scores: Iterable[Scores]) -> dict[str, Any]:
    """Average the teacher-forced scores of some edits.

    Returns:
        For each kind a dict of success, magnitude and accuracy, and under `score` the harmonic mean S of the three
        successes; fractions, `None` where undefined.
    """
    return _figures(_preferences(list(scores)))


def section(
    scores: Mapping[str, Scores], names: Sequence[str], unedited: Mapping[str, Scores] | None = None
) -> dict[str, Any] | None:
    """Summarize the scores of one moment.

    Args:
        scores: of each edit, by id.
        names: the ids to include; those without scores are left out.
        unedited: scores before the first edit, which locality compares with.

    Returns:
        What `summarize` does; under `teacher_forced`, `generated` and `long_answers` the figures of these protocols by
        kind; under `texts` fluency and consistency; under `intervals` the interval of every figure, under the same
        keys, `None` for fewer than two edits. Figures without data are left out. `None` if no edit has scores.
    """
    known = [name for name in names if name in scores]
    found = [scores[name] for name in known]
    if not found:
        return None
    values = _preferences(found)
    for kind in ASKED:
        counts = _rows(found, kind + TOKENS)
        if counts is not None:
            right, tokens = counts[0][:, :2].T
            values |= _named((TEACHER_FORCED, kind), TOKEN_MEASURES, token_accuracies(right, tokens), counts[1])
        answers = _rows(found, kind + GENERATED)
        if answers is not None:
            values |= _named((FREE, kind), (*ANSWER_MEASURES, "judged"), *answers)
        written = _rows(found, kind + OVERLAP)
        if written is not None:
            values |= _named((LONG, kind), (*OVERLAPS, "embedding"), *written)
    values |= _localities(found, [(unedited or {}).get(name, {}) for name in known])
    texts = _rows(found, TEXTS)
    if texts is not None:
        values |= _named((TEXTS,), ("fluency", "consistency"), *texts)
    kept = {
        path: value for path, value in values.items() if (len(path) == 2 and path[0] in KINDS) or value.isfinite().any()
    }
    return {**_figures(kept), "intervals": _bounds(kept)}


def _preferences(scores: list[Scores]) -> dict[Path, Tensor]:
    values: dict[Path, Tensor] = {}
    for kind in KINDS:
        rows = _rows(scores, kind)
        if rows is None:
            values |= {(kind, measure): torch.full((len(scores),), torch.nan) for measure in MEASURES}
        else:
            wanted, other, correct = rows[0].T
            values |= _named((kind,), MEASURES, preferences(wanted, other, correct.bool()), rows[1])
    return values


def _localities(scores: list[Scores], unedited: list[Scores]) -> dict[Path, Tensor]:
    """Compare predictions about other subjects with those before the first edit."""
    values: dict[Path, Tensor] = {}
    for name, path in ((SAYS, (TEACHER_FORCED, "locality")), (SAID, (FREE, "locality"))):
        both = [name in one and name in other for one, other in zip(scores, unedited, strict=True)]
        if not any(both):
            continue
        now, before = (
            torch.cat([part[name] for part, there in zip(parts, both, strict=True) if there])
            for parts in (scores, unedited)
        )
        if name == SAID:
            sizes = torch.tensor([len(one[name]) if there else 0 for one, there in zip(scores, both, strict=True)])
            values |= _named(path, ("exact",), (now == before).unsqueeze(1), sizes)
        else:
            answers = "neighborhood" + TOKENS
            sizes = torch.tensor([len(one[answers]) if there else 0 for one, there in zip(scores, both, strict=True)])
            tokens = torch.cat([one[answers][:, 1] for one, there in zip(scores, both, strict=True) if there])
            values |= _named(path, TOKEN_MEASURES, agreement(now, before, tokens), sizes)
    return values


def _rows(scores: Sequence[Scores], name: str) -> tuple[Tensor, Tensor] | None:
    """Return the prompts of all edits, (prompts, columns), and how many each edit has; `None` if there are none."""
    sizes = [len(scored[name]) if name in scored else 0 for scored in scores]
    if not any(sizes):
        return None
    return torch.cat([scored[name] for scored in scores if name in scored]), torch.tensor(sizes)


def _named(path: Path, names: Sequence[str], rows: Tensor, sizes: Tensor) -> dict[Path, Tensor]:
    return {(*path, name): column for name, column in zip(names, record_means(rows, sizes).T, strict=True)}


def _successes(values: Mapping[Path, Any]) -> list[Any]:
    return [values[kind, "success"] for kind in KINDS]


def _figures(values: dict[Path, Tensor]) -> dict[str, Any]:
    columns = torch.stack(list(values.values()), 1)
    means = dict(zip(values, (_figure(mean) for mean in columns.nanmean(0).tolist()), strict=True))
    return {**_tree(means), "score": _figure(harmonic_mean(_successes(means)))}


def _bounds(values: dict[Path, Tensor]) -> dict[str, Any]:
    """Return the interval of every figure, including S; all figures of a draw use the same edits."""
    columns = torch.stack(list(values.values()), 1)
    defined = (~columns.isnan()).sum(0).tolist()
    draws = dict(zip(values, resampled_means(columns).T, strict=True))
    found = {path: _bound(draws[path], count) for path, count in zip(values, defined, strict=True)}
    harmonic = 3 / sum(1 / success for success in _successes(draws))  # 1 / 0 is infinite, and S then 0
    fewest = min(count for path, count in zip(values, defined, strict=True) if path[1:] == ("success",))
    return {**_tree(found), "score": _bound(harmonic, fewest)}


def _bound(draws: Tensor, edits: int) -> list[float] | None:
    bounds = interval(draws) if edits > 1 else None
    return None if bounds is None else [round(bound, DIGITS) for bound in bounds]


def _figure(value: float | None) -> float | None:
    return None if value is None or value != value else round(value, DIGITS)


def _tree(figures: Mapping[Path, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in figures.items():
        place = tree
        for name in path[:-1]:
            place = place.setdefault(name, {})
        place[path[-1]] = value
    return tree


def by_batch(scores: Mapping[str, Scores], batches: Sequence[Sequence[str]]) -> list[dict[str, Any] | None]:
    """Summarize the efficacy of each batch over its edits with scores; `None` for a batch without.

    Returns:
        For each batch: how many edits, success, magnitude and accuracy, and under `generated` exact and prefix where
        answers were generated.
    """
    found: list[dict[str, Any] | None] = []
    for batch in batches:
        scored = [scores[name] for name in batch if name in scores]
        if not scored:
            found.append(None)
            continue
        summed = {"edits": len(scored), **summarize(scored)["efficacy"]}
        answers = _rows(scored, "efficacy" + GENERATED)
        if answers is not None:
            exact, prefix = answers[0][:, :2].mean(0).tolist()
            summed[FREE] = {"exact": _figure(exact), "prefix": _figure(prefix)}
        found.append(summed)
    return found


def probability(
    unedited: Mapping[str, Scores],
    just_after: Mapping[str, Scores],
    final: Mapping[str, Scores],
    names: Sequence[str],
) -> dict[str, Any]:
    """Compare the probability of targets with that of answers the unedited model knew.

    Args:
        unedited: scores before the first edit.
        just_after: scores right after each edit.
        final: scores at the last evaluation.
        names: the edits to include.

    Returns:
        The distribution (`metrics.distribution`) of the targets of edits just after and at the end, and, where the
        unedited model was measured, of the originals and of the neighborhood's answers that it gets right, every token
        the most probable one.
    """
    before = [unedited[name] for name in names if name in unedited]
    parts = {
        "edited_just_after": _distribution([just_after[name] for name in names if name in just_after], "efficacy"),
        "edited_final": _distribution([final[name] for name in names if name in final], "efficacy"),
        "known_originals": _distribution(before, "efficacy", rival=True, known=True),
        "known_neighborhood": _distribution(before, "neighborhood", known=True),
    }
    return {"protocol": "teacher-forced", **{name: part for name, part in parts.items() if part is not None}}


def _distribution(scores: list[Scores], kind: str, rival: bool = False, known: bool = False) -> dict[str, Any] | None:
    rows, counts = _rows(scores, kind), _rows(scores, kind + TOKENS)
    if rows is None or counts is None:
        return None
    right, tokens = counts[0][:, 2:].T if rival else counts[0][:, :2].T
    chosen = (right == tokens) if known else ~tokens.isnan()
    found = distribution(rows[0][chosen, 1 if rival else 0], tokens[chosen])
    for name in ("per_token", "joint"):
        found[name]["mean"] = _figure(found[name]["mean"])
    return found if found["facts"] else None


def by_step(
    scores: Mapping[str, Scores], steps: Sequence[Sequence[str]], unedited: Mapping[str, Scores]
) -> list[dict[str, Any] | None]:
    """Summarize each time step over its edits with scores; `None` for a step without.

    Returns:
        For each step: how many edits, and the token accuracy of each kind of prompt, of locality in place of the
        neighborhood's where the unedited model was scored: WikiBigEdit's measure (arXiv 2503.05683).
    """
    found: list[dict[str, Any] | None] = []
    for step in steps:
        names = [name for name in step if name in scores]
        summed = section(scores, names, unedited)
        kinds = (summed or {}).get(TEACHER_FORCED, {})
        accuracies = {kind: kinds[kind]["token_accuracy"] for kind in (*ASKED, "locality") if kind in kinds}
        found.append({"edits": len(names), **accuracies} if summed else None)
    return found
