"""From keys and residuals to an update of one weight. Torch only; one layer at a time.

Shapes: edits first. keys (n, d_key), residuals (n, d_out), update D (d_out, d_key); the papers' K is `keys.T`.
A solver keeps nothing: what has to survive between batches is the memory it takes and returns, a dict of tensors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lke_lightning.edits import EditError
from lke_lightning.stage_two.preservation import NullSpace, PastEdits, Preservation

Memory = dict[str, Tensor]


@dataclass(frozen=True)
class EditSystem:
    """What a batch asks of one weight: that residuals are added to the outputs for these keys."""

    keys: Tensor
    """Averaged over contexts, (n, d_key)."""
    anchors: Tensor
    """Keys at which an equality-constrained update holds exactly, (n, d_key); ROME's differ from `keys`."""
    residuals: Tensor
    """What the outputs lack, (n, d_out)."""


class Solver(ABC):
    """Turns an `EditSystem` into an update."""

    @abstractmethod
    def init(self, second_moment: Tensor) -> Memory:
        """Do once per layer what depends on C0 (d_key, d_key) only."""

    @abstractmethod
    def compute(self, memory: Memory, system: EditSystem) -> tuple[Tensor, Memory]:
        """Return the update (d_out, d_key), float64, and the memory for the next batch."""


class LeastSquares(Solver):
    """MEMIT's closed form with any preservation terms:  D = R K' (A + S + K K')^-1, S = past keys' Gram matrix.

    ENCORE is `BaseStatistics` + `NormPenalty` + `PastEdits`; MEMIT with memory leaves out the norm penalty; AlphaEdit
    solves in a `NullSpace` with `NormPenalty` alone. Prefer `EqualityConstrained` for a single edit that must hold
    exactly.

    The memory is P = (A + S)^-1 in the basis solved in (float64), so a batch of n costs O(d_key^2 n):
    G = P K (I + K' P K)^-1, D = R G', and P - G (P K)' is the P of the next batch (recursive least squares).

    Args:
        preservation: terms that make up A.
        past_edits: keep earlier edits in mind; `None` forgets them, as MEMIT of 2022 does.
        null_space: solve only in directions that ordinary text hardly uses.
    """

    def __init__(
        self,
        preservation: Sequence[Preservation],
        past_edits: PastEdits | None = None,
        null_space: NullSpace | None = None,
    ) -> None:
        self.preservation, self.past_edits, self.null_space = list(preservation), past_edits, null_space

    def init(self, second_moment: Tensor) -> Memory:
        """Invert A.

        Raises:
            EditError: A is singular: too few tokens of statistics and no norm penalty.
        """
        moment = second_moment.double()
        gram = torch.stack([term.gram(moment) for term in self.preservation]).sum(0)
        memory = {}
        if self.null_space is not None:
            basis = self.null_space.basis(moment)
            gram = basis.T @ gram @ basis
            memory["basis"] = basis
        return {**memory, "inverse": _inverse(gram)}

    def compute(self, memory: Memory, system: EditSystem) -> tuple[Tensor, Memory]:
        """Solve for one batch and take its keys into the memory."""
        inverse, basis = memory["inverse"], memory.get("basis")
        keys, residuals = system.keys.double(), system.residuals.double()
        if basis is not None:
            keys = keys @ basis
        update = residuals.T @ _gain(inverse, keys).T
        if self.past_edits is not None:
            weighted = keys * self.past_edits.weight**0.5
            inverse = inverse - _gain(inverse, weighted) @ (weighted @ inverse)
            memory = {**memory, "inverse": (inverse + inverse.T) / 2}
        return update if basis is None else update @ basis.T, memory


class EqualityConstrained(Solver):
    """ROME's closed form: the smallest change, measured by C0, that maps the anchors exactly.

    D = R (U' K_anchor + slack I)^-1 U' with U = A^-1 K. With one edit this is ROME (anchors: the bare prompt's key) or
    r-ROME (anchors = keys), as `KeyPolicy` decides; with slack it is EMMET.

    Args:
        preservation: terms that make up A; ROME: `BaseStatistics(1)`.
        slack: mu of EMMET; 0 demands equality.
    """

    def __init__(self, preservation: Sequence[Preservation], slack: float = 0.0) -> None:
        self.preservation, self.slack = list(preservation), slack

    def init(self, second_moment: Tensor) -> Memory:
        """Invert A.

        Raises:
            EditError: A is singular.
        """
        moment = second_moment.double()
        return {"inverse": _inverse(torch.stack([term.gram(moment) for term in self.preservation]).sum(0))}

    def compute(self, memory: Memory, system: EditSystem) -> tuple[Tensor, Memory]:
        """Solve for one batch; earlier ones are not remembered.

        Raises:
            EditError: two edits of the batch have the same key.
        """
        directions = system.keys.double() @ memory["inverse"]
        coupling = directions @ system.anchors.double().T
        coupling += self.slack * torch.eye(len(coupling), dtype=coupling.dtype, device=coupling.device)
        solution, info = torch.linalg.solve_ex(coupling, directions)
        if info.item():
            raise EditError(
                "two edits of this batch have the same key, and equality constraints cannot hold for both: "
                "use a smaller data.batch_size, a slack, or LeastSquares"
            )
        return system.residuals.double().T @ solution, memory


def _gain(inverse: Tensor, keys: Tensor) -> Tensor:
    """Return P K (I + K' P K)^-1, (d_key, n), for keys (n, d_key)."""
    projected = keys @ inverse
    inner = projected @ keys.T
    inner.diagonal().add_(1)
    return torch.cholesky_solve(projected, torch.linalg.cholesky(inner)).T


def _inverse(gram: Tensor) -> Tensor:
    """Invert a symmetric positive definite matrix, or say why it is not one."""
    factor, info = torch.linalg.cholesky_ex(gram)
    if info.item():
        raise EditError(
            "the statistics are singular: there are directions that no token of the corpus uses. Read more tokens "
            "(stage_two.statistics.tokens) or add a NormPenalty to the solver's preservation terms"
        )
    return torch.cholesky_inverse(factor)
