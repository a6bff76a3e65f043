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
    """A quadratic penalty on the change of a weight, by an absolute weight or in proportion to the other terms."""

    weight: float | None = 1.0
    """Factor of the whole term; 0 switches it off, `None`: it has none of its own."""
    fulfilment: float | None = None
    """The share of a single edit that is to be written; it determines the factor of all terms."""

    @abstractmethod
    def gram(self, second_moment: Tensor) -> Tensor:
        """Return the term's summand of A, (d_key, d_key), from C0 (d_key, d_key)."""


def check_preservation(terms: Sequence[Preservation]) -> list[Preservation]:
    """Return the terms.

    Raises:
        EditError: no term has a strength of its own, because then the solution is not unique; or a term has a weight
            where another one has a fulfilment, because then it is not clear what is in proportion to what.
    """
    if not any(term.weight or term.fulfilment for term in terms):
        state = "has only terms of weight 0 or in proportion to others" if terms else "is empty"
        raise EditError(
            f"the solver's preservation {state}, so nothing limits its updates: give it a BaseStatistics or a "
            "NormPenalty with a weight above 0"
        )
    wanting = [term for term in terms if term.fulfilment is not None]
    weighted = [term for term in terms if term.weight is not None or term in wanting[1:]]
    if wanting and weighted:
        raise EditError(
            f"{type(wanting[0]).__name__} of the solver's preservation has a fulfilment, which determines the weights "
            f"of all, and {type(weighted[0]).__name__} has a strength of its own: leave that out (NormPenalty takes a "
            "proportion in its place, a class of your own has `weight = None`), or give every term a weight"
        )
    return list(terms)


def wanted_fulfilment(terms: Sequence[Preservation]) -> float | None:
    """Return the fulfilment that one of the terms asks for; `None`: A is what the terms say."""
    return next((term.fulfilment for term in terms if term.fulfilment is not None), None)


def total_gram(terms: Sequence[Preservation], second_moment: Tensor) -> Tensor:
    """Return A, the sum over terms, (d_key, d_key), from C0 (d_key, d_key); a fulfilment leaves its factor open."""
    absolute = [term.weight for term in terms if isinstance(term, BaseStatistics) and term.weight is not None]
    unit = absolute[0] if absolute else 1.0
    return torch.stack([term.gram(second_moment) * (unit if term.weight is None else 1.0) for term in terms]).sum(0)


class BaseStatistics(Preservation):
    """Keeps outputs on ordinary text: lambda_p * tr(D C0 D').

    Args:
        weight: lambda_p, MEMIT's `mom2_update_weight`; a larger one protects the model and weakens edits. It is
            measured in the activations of its model and means nothing for another one.
        fulfilment: where no weight is given: the share, between 0 and 1, of a single edit that is written: lambda_p
            is such that k' A^-1 k / (1 + k' A^-1 k) is this in the median of the run's first keys, in every layer.
    """

    def __init__(self, weight: float | None = None, fulfilment: float | None = None) -> None:
        self.weight, self.fulfilment = _strength("BaseStatistics", weight, fulfilment)

    def gram(self, second_moment: Tensor) -> Tensor:
        """Scale C0."""
        return second_moment if self.weight is None else self.weight * second_moment


class NormPenalty(Preservation):
    """Keeps the weight near the unedited one: lambda_n * |D|_F^2 (ENCORE's norm constraint).

    With `PastEdits` the penalty applies to the total change since the unedited model, although every batch solves only
    for its own: the sequence of updates is recursive least squares.

    Args:
        weight: lambda_n; a larger one keeps norms lower and edits weaker.
        fulfilment: where no weight is given and this is the only term: as for `BaseStatistics`.
        proportion: where neither is given: lambda_n / lambda_p, in units of the median mean square of a key's entry
            (the median of C0's diagonal), so that it means the same for every model.
    """

    def __init__(
        self, weight: float | None = None, fulfilment: float | None = None, proportion: float | None = None
    ) -> None:
        if proportion is not None:
            check_number("NormPenalty.proportion", proportion, at_least=0, at_most=MOST)
        self.proportion = proportion if weight is None and fulfilment is None else None
        self.weight, self.fulfilment = None, None
        if self.proportion is None:
            self.weight, self.fulfilment = _strength("NormPenalty", weight, fulfilment)

    def gram(self, second_moment: Tensor) -> Tensor:
        """Scale the identity."""
        scale: float | Tensor = 1.0 if self.weight is None else self.weight
        if self.proportion is not None:
            scale = self.proportion * second_moment.diagonal().median()
        return scale * torch.eye(len(second_moment), dtype=second_moment.dtype, device=second_moment.device)


def _strength(owner: str, weight: float | None, fulfilment: float | None) -> tuple[float | None, float | None]:
    """Check the two ways to say how strong a term is; the weight counts where both are given."""
    if weight is not None:
        check_number(f"{owner}.weight", weight, at_least=0, at_most=MOST)
        return weight, None
    if fulfilment is None:
        raise EditError(f"{owner} has neither a weight nor a fulfilment: give it one of them")
    check_number(f"{owner}.fulfilment", fulfilment, above=0, below=1)
    return None, fulfilment


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
        threshold: eigenvalues of C0 below this count as unused. It depends on the scale of the model's activations; a
            larger one leaves more room for edits and protects less.
        share: where no threshold is given: the share, between 0 and 1, of the text's mean |k|^2 that the unused
            directions hold together. It means the same for every model.
    """

    def __init__(self, threshold: float | None = None, share: float | None = None) -> None:
        if threshold is None and share is None:
            raise EditError("NullSpace has neither a threshold nor a share: give it one of them")
        if threshold is not None:
            check_number("NullSpace.threshold", threshold, above=0)
        if share is not None:
            check_number("NullSpace.share", share, above=0, below=1)
        self.threshold, self.share = threshold, share if threshold is None else None

    def basis(self, values: Tensor, vectors: Tensor) -> Tensor:
        """Return an orthonormal basis of the unused directions, (d_key, rank).

        Args:
            values: eigenvalues of C0, ascending, (d_key,).
            vectors: its eigenvectors, as columns, (d_key, d_key).

        Raises:
            EditError: all directions are used, or none.
        """
        if self.share is not None:
            unused, limit = values.cumsum(0) < self.share * values.sum(), f"share {self.share:g}"
        else:
            unused, limit = values < self.threshold, f"threshold {self.threshold:g}"  # type: ignore[operator]  # given
        rank = int(unused.sum())
        if rank in (0, len(values)):
            state = "uses every direction" if rank == 0 else "uses no direction"
            raise EditError(
                f"with {limit} ordinary text {state} of {len(values)} keys (eigenvalues "
                f"{values[0]:.2g} to {values[-1]:.2g}, median {values.median():.2g}): choose one in between"
            )
        if Team.of().is_first:
            log.info("null space: %d of %d directions by %s", rank, len(values), limit)
        return vectors[:, :rank]
