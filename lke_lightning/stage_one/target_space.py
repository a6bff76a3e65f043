"""Constraints on targets: projections applied to delta after every step."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from lke_lightning.edits import check_number


class TargetSpace(ABC):
    """A set that delta is projected onto."""

    @abstractmethod
    def project(self, change: Tensor, initial_norm: Tensor) -> Tensor:
        """Project delta (requests, hidden size); `initial_norm` is (requests,)."""


class NormBall(TargetSpace):
    """|delta| <= factor * |initial activation|.

    Args:
        factor: radius, `clamp_norm_factor` of the published code (ROME 4, MEMIT family 0.75).
    """

    def __init__(self, factor: float = 0.75) -> None:
        check_number("NormBall.factor", factor, above=0)
        self.factor = factor

    def project(self, change: Tensor, initial_norm: Tensor) -> Tensor:
        """Scale vectors that are too long back to the radius."""
        limit = self.factor * initial_norm
        norm = change.norm(dim=1)
        return change * (limit / norm).clamp(max=1).nan_to_num(nan=1.0).unsqueeze(1)
