"""Targets of a stage one that asks each layer for itself."""

from __future__ import annotations

import itertools
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
    """Targets that ask each layer for themselves, in any number of rows per request, whatever is written before it.

    `vectors` are the residuals of the last layer in each request's first row, (requests, d_out); distances are the
    norms of all residuals of a request.
    """

    ADVICE: ClassVar[str] = "raise stage_one.relative_step (or step, where it is given)"

    rows: dict[int, Asked] = field(default_factory=dict)
    """By layer, what it is asked."""
    before: dict[int, Tensor] = field(default_factory=dict)
    """By layer, what the live weight's change added to the outputs for the keys before the batch, (rows, d_out)."""

    @classmethod
    def of_rows(
        cls, rows: dict[int, Asked], before: dict[int, Tensor], losses: list[float], said: list[bool]
    ) -> RowTargets:
        """Make targets of rows that one forward and one backward pass gave.

        Args:
            rows: see above; each request has the same rows in all layers, and requests are in order.
            before: see above.
            losses: of the requests.
            said: whether each target was the first choice.
        """
        count, last = len(losses), rows[max(rows)]
        moved = torch.stack([asked.residuals.double().square().sum(1) for asked in rows.values()]).sum(0)
        distances = moved.new_zeros(count).index_add(0, last.owners, moved).sqrt()
        starts = torch.searchsorted(last.owners, torch.arange(count, device=last.owners.device))
        return cls(
            last.residuals[starts],
            steps=[1] * count,
            losses=losses,
            first_losses=losses,
            reasons=["OneStep"] * count,
            site="matrix",
            groups=list(range(count)),
            distances=distances.tolist(),
            reached=said,
            rows=rows,
            before=before,
        )

    def asked(self, layer: int, share: float, slots: AtSlots) -> Asked:
        """Return the layer's own rows."""
        return self.rows[layer]

    def written(self, numbers: Sequence[int], outputs: Tensor, weights: Mapping[int, EditedWeight]) -> list[float]:
        """Compare what the live weights add to the outputs for the keys with what they were asked to, over all rows."""
        left = torch.zeros(len(self.steps), dtype=torch.float64, device=self.vectors.device)
        for layer, asked in self.rows.items():
            given = asked.keys @ weights[layer].held().T - self.before[layer]
            left.index_add_(0, asked.owners, (asked.residuals - given).double().square().sum(1))
        return [part_gone(math.sqrt(left[i]), self.distances[i]) for i in numbers]

    def are_finite(self) -> list[bool]:
        """Return for each request whether its loss, its keys and its residuals are finite."""
        return [math.isfinite(loss + far) for loss, far in zip(self.losses, self.distances, strict=True)]

    def chosen(self, numbers: Sequence[int]) -> RowTargets:
        """Return the targets of some requests only."""
        new = torch.full((len(self.steps),), -1, device=self.vectors.device)
        new[list(numbers)] = torch.arange(len(numbers), device=new.device)
        owners = new[self.rows[max(self.rows)].owners]
        order = owners.argsort(stable=True)[(owners < 0).sum() :]
        rows = {
            layer: Asked(asked.keys[order], asked.anchors[order], asked.residuals[order], owners[order])
            for layer, asked in self.rows.items()
        }
        before = {layer: values[order] for layer, values in self.before.items()}
        return self._with(super().chosen(numbers), rows, before)

    @classmethod
    def joined(cls, parts: Sequence[RowTargets]) -> RowTargets:
        """Concatenate the targets of several lists of requests."""
        starts = [0, *itertools.accumulate(len(part.steps) for part in parts)]
        rows = {
            layer: Asked(
                *(torch.cat([part.rows[layer][i] for part in parts]) for i in range(3)),
                torch.cat([part.rows[layer].owners + start for part, start in zip(parts, starts, strict=False)]),
            )
            for layer in parts[0].rows
        }
        before = {layer: torch.cat([part.before[layer] for part in parts]) for layer in rows}
        return cls._with(Targets.joined(parts), rows, before)

    @classmethod
    def _with(cls, targets: Targets, rows: dict[int, Asked], before: dict[int, Tensor]) -> RowTargets:
        return cls(**{part.name: getattr(targets, part.name) for part in fields(Targets)}, rows=rows, before=before)
