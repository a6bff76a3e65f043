"""What stage one hands to stage two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
    reasons: list[str]
    """Name of the rule that stopped the request, or `"MaxSteps"`."""
    site: Site
    """Where the targets live."""

    @classmethod
    def unset(cls, initial: Tensor, site: Site) -> Targets:
        """Start from the unchanged activations, to be filled in."""
        count = len(initial)
        return cls(initial.clone(), [0] * count, [0.0] * count, [""] * count, site)
