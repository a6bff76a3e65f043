"""EvoEdit: updates in a null space from which every batch takes the directions of its keys."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from lke_lightning.distributed import Team
from lke_lightning.edits import EditError
from lke_lightning.stage_two.preservation import (
    NormPenalty,
    NullSpace,
    Preservation,
    check_preservation,
    total_gram,
    wanted_fulfilment,
)
from lke_lightning.stage_two.solvers.solver import EditSystem, Eigen, Memory, Solver, strength

VANISHED = 1e-3
"""A key of which less than this share of its length is left in the null space cannot be edited."""

NOISE = 1e-6
"""Directions in which a batch has less than this share of its longest key are noise of a float32 model."""

log = logging.getLogger(__name__)


class ShrinkingNullSpace(Solver):
    """EvoEdit's closed form (arXiv 2510.13851): D = R (K' P K + l I)^-1 K' P, then P <- P - Q Q', Q = orth(P K).

    P starts as AlphaEdit's projector. After a batch no update can change the outputs for its keys any more: what past
    edits were given stays, and every new key uses up a direction. A key whose directions are used up, such as that of
    a fact edited before, cannot be edited; the published code skips its batch in silence, here a warning counts them.

    The memory: P, float64, never changed in place, and on the host the basis that it began with. A batch of n costs
    O(d_key^2 n).

    Args:
        preservation: `NormPenalty` alone, l.
        null_space: the directions that edits may use at first.

    Raises:
        EditError: there are other terms: they mean nothing where the null space is all that protects.
    """

    on_device = frozenset({"projector"})

    def __init__(self, preservation: Sequence[Preservation], null_space: NullSpace) -> None:
        self.preservation, self.null_space = check_preservation(preservation), null_space
        if not all(isinstance(term, NormPenalty) for term in preservation):
            raise EditError("ShrinkingNullSpace solves with a NormPenalty alone: take the other preservation terms out")

    def init(self, second_moment: Tensor, keys: Tensor | None = None, eigen: Eigen = torch.linalg.eigh) -> Memory:
        """Find the null space.

        Raises:
            EditError: ordinary text uses all directions, or none.
        """
        moment = second_moment.double()
        basis = self.null_space.basis(*eigen(moment)).double()
        penalty = total_gram(self.preservation, moment)[0, 0]
        room = None if keys is None else (keys.to(basis) @ basis).square().sum(1) / penalty
        found = strength(wanted_fulfilment(self.preservation), room)
        memory = {"basis": basis.cpu(), "penalty": penalty.cpu() * found[0], "strength": found}
        return self.cleared({**memory, "projector": basis})

    def why_not_exact(self) -> str:
        """Say that directions are not given back."""
        return "its solver keeps the directions that are left, not which edit took which (ShrinkingNullSpace)"

    def fulfilment(self, memory: Memory, system: EditSystem) -> Tensor:
        """Compute it from P."""
        keys = system.keys.to(memory["projector"]) * system.scale
        gains = ((keys @ memory["projector"]) * keys).sum(1) / memory["penalty"]
        return gains / (1 + gains)

    def compute(self, memory: Memory, system: EditSystem) -> tuple[Tensor, Memory]:
        """Solve for one batch, and take its directions out of the null space."""
        projector, scale = memory["projector"], system.scale
        keys, residuals = system.keys.to(projector) * scale, system.residuals.to(projector) * scale
        projected, lengths = keys @ projector, keys.norm(dim=1)
        inner = projected @ keys.T
        inner.diagonal().add_(memory["penalty"])
        update = residuals.T @ torch.cholesky_solve(projected, torch.linalg.cholesky(inner))
        directions, sizes, _ = torch.linalg.svd(projected.T, full_matrices=False)
        taken = directions[:, sizes > NOISE * lengths.max()]
        left = projector - taken @ taken.T
        vanished = int((projected.norm(dim=1) <= VANISHED * lengths).sum())
        if vanished and Team.of().is_first:
            log.warning(
                "%d of %d edits are not written, %d since the start: earlier ones have used up the directions of their "
                "keys; %d of %d directions are left", vanished, len(keys), memory["vanished"] + vanished,
                round(left.trace().item()), memory["basis"].shape[1],
            )  # fmt: skip
        return update, {**memory, "projector": left, "vanished": memory["vanished"] + vanished}

    def cleared(self, memory: Memory) -> Memory:
        """Begin anew with the whole null space."""
        basis = memory["basis"].to(memory["projector"].device)
        return {**memory, "projector": basis @ basis.T, "vanished": torch.zeros((), dtype=torch.long)}

    def mark(self, memory: Memory) -> Memory:
        """Return the memory itself: nothing in it is changed in place."""
        return dict(memory)

    def rolled_back(self, memory: Memory, mark: Memory) -> Memory:
        """Return the memory of the mark, bit for bit."""
        return dict(mark)
