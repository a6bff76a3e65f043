"""Scores of many edits as a few flat tensors, for checkpoints: thousands of tiny ones are slow and large."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lke_lightning.evaluation.teacher_forced import Scores

ABSENT = -1
"""The length of a score that an edit does not have."""


def pack(scores: Mapping[str, Scores]) -> dict[str, Any]:
    """Join the scores of edits.

    Args:
        scores: of each edit, by id.

    Returns:
        `ids`, in order; under `kinds`, for each name in `Scores`: `values`, the rows of all edits one after another,
        and `lengths`, how many of them each edit has, (edits,) int64, `ABSENT` where it has no such score.
    """
    names = dict.fromkeys(name for part in scores.values() for name in part)
    kinds = {}
    for name in names:
        lengths = [len(part[name]) if name in part else ABSENT for part in scores.values()]
        values = torch.cat([part[name] for part in scores.values() if name in part])
        kinds[name] = {"values": values, "lengths": torch.tensor(lengths)}
    return {"ids": list(scores), "kinds": kinds}


def unpack(packed: Mapping[str, Any]) -> dict[str, Scores]:
    """Return what `pack` was given, bit for bit."""
    scores: dict[str, Scores] = {name: {} for name in packed["ids"]}
    for kind, joined in packed["kinds"].items():
        lengths = dict(zip(packed["ids"], joined["lengths"].tolist(), strict=True))
        having = [name for name, length in lengths.items() if length != ABSENT]
        parts = joined["values"].split([lengths[name] for name in having])
        for name, values in zip(having, parts, strict=True):
            scores[name][kind] = values
    return scores
