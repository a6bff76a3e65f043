"""The inverse of the preservation terms' matrix, with jitter or an error if it is singular, and what a batch adds."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from lke_lightning.distributed import Team
from lke_lightning.edits import EditError


def invert(gram: Tensor) -> tuple[Tensor, float]:
    """Invert a symmetric positive definite matrix; return the inverse and the jitter added to the diagonal.

    Jitter rule: statistics are kept in float32, so nothing below eps32 * (largest diagonal entry) is known. If a
    factorization needs that much jitter, it is added, with a warning, if at most one direction in a hundred needs it.

    Raises:
        EditError: more directions than that are empty, so the statistics are singular; or they are not finite, or zero.
    """
    if not gram.isfinite().all():
        raise EditError("the statistics are not finite: the unedited model gives NaN or infinity on their text")
    if not gram.any():
        raise EditError(
            "the preservation terms add up to zero, so nothing limits the updates: give the solver a "
            "BaseStatistics or a NormPenalty with a weight above 0"
        )
    factor, info = torch.linalg.cholesky_ex(gram)
    largest, size, jitter = gram.diagonal().max().item(), len(gram), 0.0
    if info.item() or factor.diagonal().min() ** 2 < 1e-11 * largest:  # far above float64's noise, far below jitter
        jitter = torch.finfo(torch.float32).eps * largest
        empty = int((torch.linalg.eigvalsh(gram) < jitter).sum())
        if empty > size / 100:
            raise EditError(
                f"the statistics are singular: no token of the corpus uses {empty} of {size} directions. Read more "
                "tokens (stage_two.statistics.tokens) or add a NormPenalty to the solver's preservation terms"
            )
        if Team.of().is_first:
            warnings.warn(
                f"{empty} of {size} directions of the statistics are empty: {jitter:.1e} is added to all", stacklevel=2
            )
        factor = torch.linalg.cholesky(gram + jitter * torch.eye(size, dtype=gram.dtype, device=gram.device))
    return torch.cholesky_inverse(factor), jitter


def half_gain(inverse: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Return X' = L^-1 K' P, (n, d_key), and L, (n, n), with I + K' P K = L L', for keys (n, d_key)."""
    projected = keys @ inverse
    inner = projected @ keys.T
    inner.diagonal().add_(1)
    factor = torch.linalg.cholesky(inner)
    return torch.linalg.solve_triangular(factor, projected, upper=False), factor


def beside(inverse: Tensor, keys: Tensor) -> Tensor:
    """Return (A + K' K)^-1 from A^-1 (d_key, d_key), for keys K (m, d_key), in steps of d_key of them."""
    for part in keys.to(inverse).split(len(inverse)):
        half, _ = half_gain(inverse, part)
        inverse = inverse - half.T @ half
    return inverse
