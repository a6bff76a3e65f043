"""What an update must respect: terms of the least-squares problem beside the edits themselves.

Each says what it adds to A in  minimise |(W + D) K - V|^2 + tr(D A D') .
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lke_lightning.edits import EditError


class Preservation(ABC):
    """A quadratic penalty on the change of a weight."""

    @abstractmethod
    def gram(self, second_moment: Tensor) -> Tensor:
        """Return what is added to A, (d_key, d_key), from C0 (d_key, d_key)."""


class BaseStatistics(Preservation):
    """Outputs on ordinary text shall stay: weight * tr(D C0 D').

    Args:
        weight: lambda_p; more of it protects the model and slows edits. MEMIT's `mom2_update_weight`.
    """

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def gram(self, second_moment: Tensor) -> Tensor:
        """Scale C0."""
        return self.weight * second_moment


class NormPenalty(Preservation):
    """The weight shall stay near the unedited one: weight * |D|_F^2 (ENCORE's norm constraint).

    With `PastEdits` the penalty is on the total change since the unedited model, although every batch solves for its
    own: the sequence of updates is recursive least squares.

    Args:
        weight: lambda_n; more of it keeps norms low and edits weaker.
    """

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def gram(self, second_moment: Tensor) -> Tensor:
        """Scale the identity."""
        return self.weight * torch.eye(len(second_moment), dtype=second_moment.dtype, device=second_moment.device)


class PastEdits:
    """Earlier edits shall stay: the keys of every batch, as used, enter A for the batches after it.

    AlphaEdit's code reads them again once the whole batch is written. That gives the same keys: those of a layer depend
    on the layers below it only, and these were written when its keys were first read.

    Args:
        weight: how much an earlier edit counts beside a new one; 1 in the published code.
    """

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight


class EditWeights:
    """Edits count more or less than one beside the preservation terms; EMMET's slack mu is a weight of 1 / mu.

    Args:
        weight: factor for every edit, on top of a request's own `weight`.
    """

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight


class NullSpace:
    """Updates act only on directions that ordinary text hardly uses (AlphaEdit, arXiv 2410.02355).

    Args:
        threshold: eigenvalues of C0 below this count as unused. Absolute, so it depends on the scale of the model's
            activations; more of it leaves more room for edits and protects less.
    """

    def __init__(self, threshold: float = 2e-2) -> None:
        self.threshold = threshold

    def basis(self, values: Tensor, vectors: Tensor) -> Tensor:
        """Return an orthonormal basis of the unused directions, (d_key, rank).

        Args:
            values: eigenvalues of C0, ascending, (d_key,).
            vectors: its eigenvectors, as columns, (d_key, d_key).

        Raises:
            EditError: all directions are used, or none is.
        """
        rank = int((values < self.threshold).sum())
        if rank in (0, len(values)):
            state = "uses every direction" if rank == 0 else "uses no direction"
            raise EditError(
                f"with threshold {self.threshold:g} ordinary text {state} of {len(values)} keys (eigenvalues "
                f"{values[0]:.2g} to {values[-1]:.2g}, median {values.median():.2g}): choose a threshold in between"
            )
        rank_zero_info(f"null space: {rank} of {len(values)} directions below {self.threshold:g}")
        return vectors[:, :rank]
