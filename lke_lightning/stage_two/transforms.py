"""Transforms of an update before it is written, and of the total change when the model is read. Torch only."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from lke_lightning.edits import check_number


class UpdateTransform(ABC):
    """Changes each update before it is written."""

    @abstractmethod
    def __call__(self, weight: Tensor, update: Tensor) -> Tensor:
        """Return the update to write, given the live weight; both (d_out, d_key)."""


class TopRelativeChange(UpdateTransform):
    """RECT (arXiv 2401.04700): keeps only the entries with the largest change relative to the weight.

    Args:
        keep: share of the entries to keep, 0 to 1; 0.2 in the authors' code, 0.4 in AlphaEdit's comparison.

    Raises:
        EditError: the share is not between 0 and 1.
    """

    def __init__(self, keep: float = 0.4) -> None:
        check_number("TopRelativeChange.keep", keep, above=0, at_most=1)
        self.keep = keep

    def __call__(self, weight: Tensor, update: Tensor) -> Tensor:
        """Zero the other entries."""
        relative = update.abs() / (weight.to(update).abs() + 1e-8)  # of magnitudes: never 0
        dropped = update.numel() - round(self.keep * update.numel())
        if not dropped:
            return update
        return update * (relative > relative.flatten().kthvalue(dropped).values)


class ReadoutTransform(ABC):
    """Transforms the total change when the model is read (scored or exported); editing never sees the result."""

    @abstractmethod
    def __call__(self, base: Tensor, change: Tensor) -> Tensor:
        """Return the total change to read with, given the unedited weight; both (d_out, d_key)."""


class SpectralCap(ReadoutTransform):
    """PRUNE (arXiv 2405.16821): singular values of the total change above the weight's largest grow logarithmically.

    s -> log_b(s) - log_b(m) + m for s > m, the largest singular value of the unedited weight.

    Args:
        base: b; a smaller one preserves more of the change (published: e, 2, 1.5 and 1.2).

    Raises:
        EditError: the base is not above 1.
    """

    def __init__(self, base: float = 1.2) -> None:
        check_number("SpectralCap.base", base, above=1)
        self.base = base

    def __call__(self, base: Tensor, change: Tensor) -> Tensor:
        """Cap the singular values."""
        wide = torch.promote_types(change.dtype, torch.float32)  # half precision has no decomposition
        limit = torch.linalg.matrix_norm(base.to(wide), 2)
        if not limit:  # an empty weight has no scale
            return change
        left, values, right = torch.linalg.svd(change.to(wide), full_matrices=False)
        capped = torch.log(values / limit) / math.log(self.base) + limit
        return ((left * torch.where(values > limit, capped, values)) @ right).to(change)
