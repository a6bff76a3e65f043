"""Targets: the result of stage one and the input of stage two."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from lke_lightning.model.weights import EditedWeight

Site = Literal["block", "matrix"]
"""Where a target lives: the output of the target block (MEMIT family) or of its MLP matrix (ROME)."""


class Asked(NamedTuple):
    """What a batch asks of one edited matrix: to add residuals to its outputs for keys."""

    keys: Tensor
    """(rows, d_key)."""
    anchors: Tensor
    """Keys at which an equality-constrained update holds exactly, (rows, d_key)."""
    residuals: Tensor
    """(rows, d_out)."""
    owners: Tensor
    """Which request of the batch each row is of, (rows,) int64."""


class AtSlots(ABC):
    """Reads keys and outputs at the requests' slots under the present weights; stage two has it."""

    @abstractmethod
    def asked(self, layer: int, share: float, vectors: Tensor, site: Site) -> Asked:
        """Ask a layer for a share of what the output at the site lacks of the vectors, one row per request."""


@dataclass(frozen=True)
class Targets:
    """The results of stage one, one entry per request."""

    ADVICE: ClassVar[str] = (
        "raise stage_one.max_steps, stage_one.relative_lr (or lr, where it is given) or the factor of stage_one.space"
    )
    """What to do where targets do not make the model say what they should."""

    vectors: Tensor
    """Target activations: initial + delta, (requests, hidden size)."""
    steps: list[int]
    """Forward passes until the stop."""
    losses: list[float]
    """Total loss of the vector that is kept."""
    first_losses: list[float]
    """Total loss before the first step."""
    reasons: list[str]
    """Name of the rule that stopped the request, or `"MaxSteps"`."""
    site: Site
    """Where the targets live."""
    groups: list[int]
    """Which change each request has; requests with one key share one."""
    distances: list[float]
    """Norm of the change: how far the target is from what the output was."""
    reached: list[bool]
    """Whether the target tokens were the model's first choice at the stop, on the bare prompt."""

    def asked(self, layer: int, share: float, slots: AtSlots) -> Asked:
        """Return what a layer is asked, once the layers before it are written.

        Args:
            layer: its number.
            share: the part of what is missing that this layer takes.
            slots: reads what is missing.
        """
        return slots.asked(layer, share, self.vectors, self.site)

    def written(self, numbers: Sequence[int], outputs: Tensor, weights: Mapping[int, EditedWeight]) -> list[float]:
        """Return which part of what some requests ask is in the weights; 1: all.

        Args:
            numbers: their places in the batch.
            outputs: the present outputs at their slots and the targets' site, (requests, hidden size).
            weights: the edited weights, by layer.
        """
        left = (self.vectors[list(numbers)] - outputs).norm(dim=1).tolist()
        return [part_gone(missing, self.distances[i]) for i, missing in zip(numbers, left, strict=True)]

    def are_finite(self) -> list[bool]:
        """Return for each request whether its optimization gave finite numbers."""
        return (self.vectors.isfinite().all(1) & torch.tensor(self.losses).isfinite().to(self.vectors.device)).tolist()

    def chosen(self, numbers: Sequence[int]) -> Targets:
        """Return the targets of some requests only."""
        lists = (self.steps, self.losses, self.first_losses, self.reasons)
        kept = ([part[i] for i in numbers] for part in lists)
        rest = ([part[i] for i in numbers] for part in (self.groups, self.distances, self.reached))
        return Targets(self.vectors[list(numbers)], *kept, self.site, *rest)

    @classmethod
    def joined(cls, parts: Sequence[Targets]) -> Targets:
        """Concatenate the targets of several lists of requests."""
        return cls(
            torch.cat([part.vectors for part in parts]),
            [steps for part in parts for steps in part.steps],
            [loss for part in parts for loss in part.losses],
            [loss for part in parts for loss in part.first_losses],
            [reason for part in parts for reason in part.reasons],
            parts[0].site,
            [start + group for start, part in zip(_starts(parts), parts, strict=True) for group in part.groups],
            [distance for part in parts for distance in part.distances],
            [reached for part in parts for reached in part.reached],
        )


def part_gone(missing: float, distance: float) -> float:
    """Return which part of a distance is gone; all of it where there was none, and none where it is not finite."""
    gone = 1 - missing / distance if distance else 1.0
    return gone if math.isfinite(gone) else 0.0


def _starts(parts: Sequence[Targets]) -> Iterator[int]:
    """Yield for each part how many targets the parts before it may have."""
    return itertools.accumulate((max(part.groups, default=-1) + 1 for part in parts[:-1]), initial=0)
