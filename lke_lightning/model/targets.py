"""Targets: the result of stage one and the input of stage two."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from lke_lightning.model.weights import EditedWeight

Site = Literal["block", "matrix"]
"""Where a target lives: the output of the target block (MEMIT family) or of its MLP matrix (ROME)."""


class Asked(NamedTuple):
    """What a batch asks of one edited matrix: to add residuals to its outputs for keys."""

    keys: Tensor
    """(units, d_key)."""
    anchors: Tensor
    """Keys at which an equality-constrained update holds exactly, (units, d_key)."""
    residuals: Tensor
    """(units, d_out)."""


class AtSlots(ABC):
    """Reads keys and outputs at the requests' slots under the present weights; stage two has it."""

    @abstractmethod
    def asked(self, layer: int, share: float, vectors: Tensor, site: Site) -> Asked:
        """Ask a layer for a share of what the output at the site lacks of the vectors (units, hidden size)."""


@dataclass(frozen=True)
class Targets:
    """The results of stage one, one entry per request."""

    ADVICE: ClassVar[str] = (
        "raise stage_one.max_steps, stage_one.relative_lr (or lr, where it is given) or the factor of stage_one.space"
    )
    """What to do where targets do not make the model say what they should."""

    are_known: ClassVar[bool] = True
    """Whether there are target activations at all."""

    vectors: Tensor
    """Target activations: initial + delta, (units, hidden size), those of a request one after the other."""
    steps: list[int]
    """Forward passes until the stop, of all units together."""
    losses: list[float]
    """Total loss of the vector that is kept; of several units, the mean."""
    first_losses: list[float]
    """Total loss before the first step."""
    reasons: list[str]
    """Name of the rule that stopped the request, its worst unit, or `"MaxSteps"`."""
    site: Site
    """Where the targets live."""
    groups: list[int]
    """Which change each request has; requests with one key share one."""
    distances: list[float]
    """Norm of the change, of all units together: how far the target is from what the output was."""
    reached: list[bool]
    """Whether the target tokens were the model's first choice at the stop, on the bare prompt."""
    units: list[int] = field(default_factory=list)
    """How many units, and so vectors, each request has; not given: one."""
    layers: list[tuple[int, ...]] | None = None
    """The layers that each is to be written into, ascending; it lives at the last. `None`: all edited layers."""
    nlls: list[tuple[float, float]] | None = None
    """Mean negative log-likelihood of the target's tokens over all contexts, before the first step and at the stop."""

    def __post_init__(self) -> None:
        """Fill in the number of units."""
        if not self.units:
            object.__setattr__(self, "units", [1] * len(self.steps))

    def asked(self, layer: int, share: float, slots: AtSlots) -> Asked:
        """Return what a layer is asked, once the layers before it are written.

        Args:
            layer: its number.
            share: the part of what is missing that this layer takes.
            slots: reads what is missing.
        """
        return slots.asked(layer, share, self.vectors, self.site)

    def written(
        self, numbers: Sequence[int], outputs: Sequence[Tensor], weights: Mapping[int, EditedWeight]
    ) -> list[float]:
        """Return which part of what some requests ask is in the weights; 1: all.

        Args:
            numbers: their places in the batch.
            outputs: of each, the present outputs at its slots and the targets' site, (units, hidden size).
            weights: the edited weights, by layer.
        """
        vectors = self.of_requests(self.vectors)
        left = [(vectors[i] - output).norm().item() for i, output in zip(numbers, outputs, strict=True)]
        return [part_gone(missing, self.distances[i]) for i, missing in zip(numbers, left, strict=True)]

    def are_finite(self) -> list[bool]:
        """Return for each request whether its optimization gave finite numbers."""
        finite = iter(self.vectors.isfinite().all(1).tolist())
        wholes = [all([next(finite) for _ in range(count)]) for count in self.units]
        return [whole and math.isfinite(loss) for whole, loss in zip(wholes, self.losses, strict=True)]

    def of_requests(self, values: Tensor) -> list[Tensor]:
        """Divide values (units, ...) into those of each request."""
        return list(values.split(self.units))

    def places(self, numbers: Sequence[int]) -> list[int]:
        """Return which units those of some requests are."""
        ends = [*itertools.accumulate(self.units)]
        return [place for i in numbers for place in range(ends[i] - self.units[i], ends[i])]

    def chosen(self, numbers: Sequence[int]) -> Targets:
        """Return the targets of some requests only."""
        lists: dict[str, Any] = {name: [part[i] for i in numbers] for name, part in self._lists()}
        return replace(self, vectors=self.vectors[self.places(numbers)], **lists)

    @classmethod
    def of_units(cls, found: Sequence[Sequence[Targets]]) -> Targets:
        """Put the targets of each request's units, found as if they were requests, together."""
        worst = [max(parts, key=lambda part: part.losses[0]) for parts in found]
        return cls(
            torch.cat([part.vectors for parts in found for part in parts]),
            [sum(part.steps[0] for part in parts) for parts in found],
            [sum(part.losses[0] for part in parts) / len(parts) for parts in found],
            [sum(part.first_losses[0] for part in parts) / len(parts) for parts in found],
            [part.reasons[0] for part in worst],
            found[0][0].site,
            [parts[0].groups[0] for parts in found],
            [math.hypot(*(part.distances[0] for part in parts)) for parts in found],
            [all(part.reached[0] for part in parts) for parts in found],
            [len(parts) for parts in found],
            nlls=[_mean([part.nlls[0] for part in parts]) for parts in found],  # type: ignore[index]  # descents know them
        )

    @classmethod
    def joined(cls, parts: Sequence[Targets]) -> Targets:
        """Concatenate the targets of several lists of requests."""
        names = [name for name, _ in parts[0]._lists()]
        lists: dict[str, Any] = {name: [value for part in parts for value in getattr(part, name)] for name in names}
        starts = zip(_starts(parts), parts, strict=True)
        lists["groups"] = [start + group for start, part in starts for group in part.groups]
        return replace(parts[0], vectors=torch.cat([part.vectors for part in parts]), **lists)

    def _lists(self) -> Iterator[tuple[str, list[Any]]]:
        """Yield what is known of each request, by its name."""
        parts = ((field.name, getattr(self, field.name)) for field in fields(self))
        return ((name, part) for name, part in parts if isinstance(part, list))


def part_gone(missing: float, distance: float) -> float:
    """Return which part of a distance is gone; all of it where there was none, and none where it is not finite."""
    gone = 1 - missing / distance if distance else 1.0
    return gone if math.isfinite(gone) else 0.0


def _starts(parts: Sequence[Targets]) -> Iterator[int]:
    """Yield for each part how many targets the parts before it may have."""
    return itertools.accumulate((max(part.groups, default=-1) + 1 for part in parts[:-1]), initial=0)


def _mean(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return sum(first for first, _ in pairs) / len(pairs), sum(last for _, last in pairs) / len(pairs)
