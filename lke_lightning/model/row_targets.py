"""Targets of a stage one that asks each layer for itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import ClassVar

import torch
from torch import Tensor

from lke_lightning.model.targets import Asked, AtSlots, Targets, part_gone
from lke_lightning.model.weights import EditedWeight


@dataclass(frozen=True)
class RowTargets(Targets):
    """Targets that ask each layer for themselves, whatever is written before it.

    `vectors` are the residuals of the last layer, (units, d_out); distances are the norms of all residuals of a
    request.
    """

    ADVICE: ClassVar[str] = "raise stage_one.relative_step (or step, where it is given)"

    rows: dict[int, Asked] = field(default_factory=dict)
    """By layer, what it is asked."""
    before: dict[int, Tensor] = field(default_factory=dict)
    """By layer, what the live weight's change added to the outputs for the keys before the batch, (units, d_out)."""

    @classmethod
    def of_rows(
        cls, rows: dict[int, Asked], before: dict[int, Tensor], units: list[int], losses: list[float], said: list[bool]
    ) -> RowTargets:
        """Make targets of rows that one forward and one backward pass gave.

        Args:
            rows: see above.
            before: see above.
            units: how many rows each request has, in every layer.
            losses: of the requests.
            said: whether each target was the first choice already.
        """
        moved = torch.stack([asked.residuals.double().square().sum(1) for asked in rows.values()]).sum(0)
        count = len(units)
        return cls(
            rows[max(rows)].residuals,
            steps=[1] * count,
            losses=losses,
            first_losses=losses,
            reasons=["OneStep"] * count,
            site="matrix",
            groups=list(range(count)),
            distances=[own.sum().sqrt().item() for own in moved.split(units)],
            reached=said,
            units=units,
            rows=rows,
            before=before,
        )

    def asked(self, layer: int, share: float, slots: AtSlots) -> Asked:
        """Return the layer's own rows."""
        return self.rows[layer]

    def written(
        self, numbers: Sequence[int], outputs: Sequence[Tensor], weights: Mapping[int, EditedWeight]
    ) -> list[float]:
        """Compare what the live weights add to the outputs for the keys with what they were asked to, over all rows."""
        left = torch.zeros(len(self.vectors), dtype=torch.float64, device=self.vectors.device)
        for layer, asked in self.rows.items():
            given = asked.keys @ weights[layer].held().T - self.before[layer]
            left += (asked.residuals - given).double().square().sum(1)
        missing = [own.sum().sqrt().item() for own in self.of_requests(left)]
        return [part_gone(missing[i], self.distances[i]) for i in numbers]

    def are_finite(self) -> list[bool]:
        """Return for each request whether its loss and all of its residuals are finite."""
        return [math.isfinite(loss + far) for loss, far in zip(self.losses, self.distances, strict=True)]

    def chosen(self, numbers: Sequence[int]) -> RowTargets:
        """Return the targets of some requests only."""
        places = self.places(numbers)
        rows = {layer: Asked(*(part[places] for part in asked)) for layer, asked in self.rows.items()}
        before = {layer: part[places] for layer, part in self.before.items()}
        return self._with(super().chosen(numbers), rows, before)

    @classmethod
    def joined(cls, parts: Sequence[RowTargets]) -> RowTargets:  # type: ignore[override]  # of one kind, like `cls`
        """Concatenate the targets of several lists of requests."""
        rows = {
            layer: Asked(*map(torch.cat, zip(*(part.rows[layer] for part in parts), strict=True)))
            for layer in parts[0].rows
        }
        before = {layer: torch.cat([part.before[layer] for part in parts]) for layer in rows}
        return cls._with(Targets.joined(parts), rows, before)

    @classmethod
    def _with(cls, targets: Targets, rows: dict[int, Asked], before: dict[int, Tensor]) -> RowTargets:
        return cls(**{part.name: getattr(targets, part.name) for part in fields(Targets)}, rows=rows, before=before)
