"""What stage one hands to stage two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Site = Literal["block", "matrix"]
"""Where a target lives: the output of the target block (MEMIT family) or of its MLP matrix (ROME)."""


@dataclass(frozen=True)
class Targets:
    """What stage one found, one entry per request."""

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

    def are_finite(self) -> list[bool]:
        """Tell for each request whether its optimisation gave finite numbers."""
        return (self.vectors.isfinite().all(1) & torch.tensor(self.losses).isfinite().to(self.vectors.device)).tolist()

    def chosen(self, numbers: Sequence[int]) -> Targets:
        """Return the targets of some requests only."""
        lists = (self.steps, self.losses, self.first_losses, self.reasons)
        return Targets(self.vectors[list(numbers)], *([part[i] for i in numbers] for part in lists), self.site)

    @classmethod
    def joined(cls, parts: Sequence[Targets]) -> Targets:
        """Put the targets of some requests behind those of others."""
        return cls(
            torch.cat([part.vectors for part in parts]),
            [steps for part in parts for steps in part.steps],
            [loss for part in parts for loss in part.losses],
            [loss for part in parts for loss in part.first_losses],
            [reason for part in parts for reason in part.reasons],
            parts[0].site,
        )
