"""Targets: the result of stage one and the input of stage two."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Site = Literal["block", "matrix"]
"""Where a target lives: the output of the target block (MEMIT family) or of its MLP matrix (ROME)."""


@dataclass(frozen=True)
class Targets:
    """The results of stage one, one entry per request."""

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


def _starts(parts: Sequence[Targets]) -> Iterator[int]:
    """Yield for each part how many targets the parts before it may have."""
    return itertools.accumulate((max(part.groups, default=-1) + 1 for part in parts[:-1]), initial=0)
