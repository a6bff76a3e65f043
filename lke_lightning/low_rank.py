"""The best approximation of a matrix by two thin ones, with the error that it really has. Torch only."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lke_lightning.edits import EditError

HINTS = (8, 32, 128)
"""Ranks whose errors are named where the one that is asked for does not pay, beside the largest that does."""


@dataclass(frozen=True)
class LowRank:
    """A matrix (rows, columns) as up @ down."""

    up: Tensor
    """(rows, rank), in the matrix's dtype."""
    down: Tensor
    """(rank, columns), in the matrix's dtype."""
    error: float
    """Frobenius norm of the difference over that of the matrix, with the factors rounded as they are."""

    @property
    def rank(self) -> int:
        """The inner size."""
        return self.up.shape[1]

    def __str__(self) -> str:
        """Say what it is for the user."""
        return f"rank {self.rank}  relative error {self.error:.2e}"


def errors(values: Tensor) -> Tensor:
    """Return the relative Frobenius error of the best approximation of rank 0, 1, ... (values + 1,).

    By the theorem of Eckart and Young it is what the dropped singular values amount to.

    Args:
        values: singular values, descending, (values,).
    """
    dropped = torch.cat([values, values.new_zeros(1)]).square().flip(0).cumsum(0).flip(0).sqrt()
    return dropped / dropped[0] if dropped[0] > 0 else dropped


def approximate(
    name: str,
    matrix: Tensor,
    rank: int | None = None,
    tolerance: float = 0.0,
    remedy: str = "leave --rank out",
) -> LowRank:
    """Approximate a matrix by two factors, through its singular value decomposition in float64.

    Args:
        name: what an error message calls the matrix.
        matrix: (rows, columns), float32 or float64.
        rank: inner size of the factors; `None`: the lowest, at least 1, that keeps `tolerance`.
        tolerance: relative Frobenius error that is allowed where no rank is given.
        remedy: what an error message proposes where the factors take as much room as the matrix.

    Raises:
        EditError: the rank is below 1, or the factors would take as much room as the matrix.
    """
    if rank is not None and rank < 1:
        raise EditError(f"the rank of {name} is {rank}: it must be at least 1")
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    found = errors(values)
    if rank is None:
        asked = f"a relative error of {tolerance:g} needs rank"
        rank = max(1, int((found > tolerance).sum()))  # errors fall: as many ranks are not enough
    else:
        asked = "--rank is"
    paying = (matrix.numel() - 1) // sum(matrix.shape)
    if rank > paying:
        offers = ", ".join(f"rank {r} has {found[r]:.2g}" for r in (*HINTS, paying) if 1 <= r <= paying)
        raise EditError(
            f"{asked} {rank} for {name}, and from rank {paying + 1} on two factors take as much room as the whole "
            f"change: {remedy}" + (f", or accept the error of a lower rank with --rank ({offers})" if offers else "")
        )
    share = values[:rank].sqrt()
    up = (left[:, :rank] * share).to(matrix).contiguous()
    down = (share.unsqueeze(1) * right[:rank]).to(matrix).contiguous()
    size = torch.linalg.matrix_norm(matrix.double())
    missing = torch.linalg.matrix_norm(up.double() @ down.double() - matrix.double())
    return LowRank(up, down, (missing / size).item() if size > 0 else 0.0)
