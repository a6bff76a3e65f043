"""Targets: the result of stage one and the input of stage two."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

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
    layers: list[tuple[int, ...]] | None = None
    """The layers that each is to be written into, ascending; it lives at the last. `None`: all edited layers."""
    nlls: list[tuple[float, float]] | None = None
    """Mean negative log-likelihood of the target's tokens over all contexts, before the first step and at the stop."""

    def are_finite(self) -> list[bool]:
        """Return for each request whether its optimization gave finite numbers."""
        return (self.vectors.isfinite().all(1) & torch.tensor(self.losses).isfinite().to(self.vectors.device)).tolist()

    def chosen(self, numbers: Sequence[int]) -> Targets:
        """Return the targets of some requests only."""
        lists = {name: [part[i] for i in numbers] for name, part in self._lists()}
        return replace(self, vectors=self.vectors[list(numbers)], **lists)

    @classmethod
    def joined(cls, parts: Sequence[Targets]) -> Targets:
        """Concatenate the targets of several lists of requests."""
        lists = {name: [value for part in parts for value in getattr(part, name)] for name, _ in parts[0]._lists()}
        starts = zip(_starts(parts), parts, strict=True)
        lists["groups"] = [start + group for start, part in starts for group in part.groups]
        return replace(parts[0], vectors=torch.cat([part.vectors for part in parts]), **lists)

    def _lists(self) -> Iterator[tuple[str, list[Any]]]:
        """Yield what is known of each request, by its name."""
        parts = ((field.name, getattr(self, field.name)) for field in fields(self))
        return ((name, part) for name, part in parts if isinstance(part, list))


def _starts(parts: Sequence[Targets]) -> Iterator[int]:
    """Yield for each part how many targets the parts before it may have."""
    return itertools.accumulate((max(part.groups, default=-1) + 1 for part in parts[:-1]), initial=0)
