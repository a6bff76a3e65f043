"""Preservation: terms of the least-squares problem beside the edits themselves.

Each adds a matrix to A in  minimise |(W + D) K - V|^2 + tr(D A D') . Torch only.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from lke_lightning.distributed import Team
from lke_lightning.edits import EditError, check_number

MOST = 1e15
"""Maximum weight of a term: with more, float64 would round everything else away."""

log = logging.getLogger(__name__)


class Preservation(ABC):
    """A quadratic penalty on the change of a weight."""

    weight: float = 1.0
    """Factor of the whole term; 0 switches it off."""

    @abstractmethod
    def gram(self, second_moment: Tensor) -> Tensor:
        """Return the term's summand of A, (d_key, d_key), from C0 (d_key, d_key)."""


def check_preservation(terms: Sequence[Preservation]) -> list[Preservation]:
    """Return the terms; raise `EditError` if all weights are 0, because then the solution is not unique."""
    if not any(term.weight for term in terms):
        state = "has only terms of weight 0" if terms else "is empty"
        raise EditError(
            f"the solver's preservation {state}, so nothing limits its updates: give it a BaseStatistics or a "
            "NormPenalty with a weight above 0"
        )
    return list(terms)


def total_gram(terms: Sequence[Preservation], second_moment: Tensor) -> Tensor:
    """Return A, the sum over terms, (d_key, d_key), from C0 (d_key, d_key)."""
    return torch.stack([term.gram(second_moment) for term in terms]).sum(0)


class BaseStatistics(Preservation):
    """Keeps outputs on ordinary text: weight * tr(D C0 D').

    Args:
        weight: lambda_p; a larger one protects the model and weakens edits. MEMIT's `mom2_update_weight`.
    """

    def __init__(self, weight: float) -> None:
        check_number("BaseStatistics.weight", weight, at_least=0, at_most=MOST)
        self.weight = weight

    def gram(self, second_moment: Tensor) -> Tensor:
        """Scale C0."""
        return self.weight * second_moment


class NormPenalty(Preservation):
    """Keeps the weight near the unedited one: weight * |D|_F^2 (ENCORE's norm constraint).

    With `PastEdits` the penalty applies to the total change since the unedited model, although every batch solves only
    for its own: the sequence of updates is recursive least squares.

    Args:
        weight: lambda_n; a larger one keeps norms lower and edits weaker.
    """

    def __init__(self, weight: float) -> None:
        check_number("NormPenalty.weight", weight, at_least=0, at_most=MOST)
        self.weight = weight

    def gram(self, second_moment: Tensor) -> Tensor:
        """Scale the identity."""
        return self.weight * torch.eye(len(second_moment), dtype=second_moment.dtype, device=second_moment.device)


class PastEdits:
    """Keeps earlier edits: the keys of every batch, as used, enter A for later batches.

    AlphaEdit's code reads them again after the whole batch is written. That gives the same keys: those of a layer
    depend only on the layers below it, which were written when its keys were first read.

    Args:
        weight: weight of an earlier edit relative to a new one; 1 in the published code.
    """

    def __init__(self, weight: float = 1.0) -> None:
        check_number("PastEdits.weight", weight, above=0, at_most=MOST)
        self.weight = weight


class EditWeights:
    """Weights edits relative to the preservation terms; EMMET's slack mu is a weight of 1 / mu.

    Args:
        weight: factor for every edit, on top of a request's own `weight`.
    """

    def __init__(self, weight: float = 1.0) -> None:
        check_number("EditWeights.weight", weight, above=0, at_most=MOST)
        self.weight = weight


class NullSpace:
    """Restricts updates to directions that ordinary text hardly uses (AlphaEdit, arXiv 2410.02355).

    Args:
        threshold: eigenvalues of C0 below this count as unused. Absolute, so it depends on the scale of the model's
            activations; a larger one leaves more room for edits and protects less.
    """

    def __init__(self, threshold: float = 2e-2) -> None:
        check_number("NullSpace.threshold", threshold, above=0)
        self.threshold = threshold

    def basis(self, values: Tensor, vectors: Tensor) -> Tensor:
        """Return an orthonormal basis of the unused directions, (d_key, rank).

        Args:
            values: eigenvalues of C0, ascending, (d_key,).
            vectors: its eigenvectors, as columns, (d_key, d_key).

        Raises:
            EditError: all directions are used, or none.
        """
        rank = int((values < self.threshold).sum())
        if rank in (0, len(values)):
            state = "uses every direction" if rank == 0 else "uses no direction"
            raise EditError(
                f"with threshold {self.threshold:g} ordinary text {state} of {len(values)} keys (eigenvalues "
                f"{values[0]:.2g} to {values[-1]:.2g}, median {values.median():.2g}): choose a threshold in between"
            )
        if Team.of().is_first:
            log.info("null space: %d of %d directions below %g", rank, len(values), self.threshold)
        return vectors[:, :rank]
