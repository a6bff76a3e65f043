"""What earlier edits have done to the matrix of the target layer, read from its total change; nothing else is kept."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

COLUMNS = 4096
"""How many columns of the change are float64 at a time."""
NUMERICAL = 1e-10
"""Eigenvalues of A A', relative to the largest, that are no more than rounding of a change in float32."""


class UpdateHistory:
    """The sum A of the updates that are in a matrix: its total change, so that edits that were undone are not in it.

    Args:
        change: A, (d_out, d_key); not to be changed while this object is used.
    """

    def __init__(self, change: Tensor) -> None:
        self.change = change

    @cached_property
    def is_empty(self) -> bool:
        """Whether there is no edit in the matrix."""
        return not self.change.any()

    def directions(
        self,
        at_most: int,
        relative_threshold: float = NUMERICAL,
        threshold: float | None = None,
        beside: Tensor | None = None,
    ) -> Tensor:
        """Return left singular vectors of A, those of the largest singular values first, (d_out, directions) float64.

        They are eigenvectors of A A' in float64: deterministic, at the cost of an eigendecomposition of d_out.

        Args:
            at_most: how many.
            relative_threshold: eigenvalues of A A', squares of singular values, count above this share of the largest.
            threshold: they count above this instead.
            beside: a vector (d_out,); its direction comes first, and the others are those of what A does beside it.
        """
        if self.is_empty:
            return self._gram[:, :0]
        if beside is None:
            values, vectors = self._spectrum
            first = vectors[:, :0]
        else:
            first = (beside.double() / beside.double().norm()).unsqueeze(1)
            deflate = torch.eye(len(first), dtype=first.dtype, device=first.device) - first @ first.T
            values, vectors = torch.linalg.eigh(deflate @ self._gram @ deflate)
        limit = max(0.0, relative_threshold * values[-1].item() if threshold is None else threshold)
        return torch.cat([first, vectors[:, values > limit].flip(1)], dim=1)[:, :at_most]

    @cached_property
    def _gram(self) -> Tensor:
        """A A', (d_out, d_out) float64."""
        return torch.stack([part.double() @ part.double().T for part in self.change.split(COLUMNS, dim=1)]).sum(0)

    @cached_property
    def _spectrum(self) -> tuple[Tensor, Tensor]:
        return torch.linalg.eigh(self._gram)
