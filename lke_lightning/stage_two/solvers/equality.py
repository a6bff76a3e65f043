"""ROME's family: an update that is exact at its keys."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lke_lightning.edits import EditError, check_number
from lke_lightning.stage_two.preservation import Preservation, check_preservation, total_gram, wanted_fulfilment
from lke_lightning.stage_two.solvers.inversion import beside, invert
from lke_lightning.stage_two.solvers.solver import EditSystem, Eigen, Memory, Solver, strength


class EqualityConstrained(Solver):
    """ROME's closed form: the smallest change, measured by C0, that maps the anchors exactly.

    D = R (U' K_anchor + slack I)^-1 U' with U = A^-1 K. With one edit this is ROME (anchors: the bare prompt's key) or
    r-ROME (anchors = keys), as `KeyPolicy` decides; with slack it is EMMET.

    Args:
        preservation: terms that make up A; ROME: `BaseStatistics(1)`.
        slack: mu of EMMET; 0 demands equality, whatever the weights of the terms are.

    Raises:
        EditError: equality is demanded and a term has a fulfilment, which is 1 then.
    """

    keeps_rest = True

    def __init__(self, preservation: Sequence[Preservation], slack: float = 0.0) -> None:
        check_number("EqualityConstrained.slack", slack, at_least=0)
        self.preservation, self.slack = check_preservation(preservation), slack
        if slack == 0 and wanted_fulfilment(self.preservation) is not None:
            raise EditError("without a slack edits are written exactly: give BaseStatistics a weight, or a slack")

    def init(self, second_moment: Tensor, keys: Tensor | None = None, eigen: Eigen = torch.linalg.eigh) -> Memory:
        """Invert A.

        Raises:
            EditError: A is singular.
        """
        inverse, _ = invert(total_gram(self.preservation, second_moment.double()))
        gains = _gains(inverse, keys, keys) / self.slack if keys is not None and self.slack > 0 else None
        found = strength(wanted_fulfilment(self.preservation), gains)
        return {"inverse": inverse / found[0], "strength": found}

    def fulfilment(self, memory: Memory, system: EditSystem) -> Tensor:
        """Compute it from A^-1; with a slack of 0 it is 1."""
        gains = _gains(memory["inverse"], system.keys, system.anchors)
        return gains / (self.slack + gains)

    def compute(self, memory: Memory, system: EditSystem) -> tuple[Tensor, Memory]:
        """Solve for one batch, without memory of earlier ones.

        Raises:
            EditError: two edits of the batch have the same key, or edits have weights.
        """
        if system.importance is not None and (system.importance != 1).any():
            raise EditError(
                "equality constraints cannot be weighted: edits with a weight need LeastSquares (data: weight)"
            )
        inverse = memory["inverse"] if system.rest is None else beside(memory["inverse"], system.rest)
        directions = system.keys.double() @ inverse
        coupling = directions @ system.anchors.double().T
        coupling += self.slack * torch.eye(len(coupling), dtype=coupling.dtype, device=coupling.device)
        solution, info = torch.linalg.solve_ex(coupling, directions)
        if info.item():
            raise EditError(
                "two edits of this batch have the same key, and equality constraints cannot hold for both: "
                "use a smaller data.batch_size, a slack, or LeastSquares"
            )
        return system.residuals.double().T @ solution, memory

    def preview(self, memory: Memory, system: EditSystem) -> Tensor:
        """Compute the update: that changes no memory."""
        return self.compute(memory, system)[0]

    def mark(self, memory: Memory) -> None:
        """Copy nothing: no batch changes the memory."""

    def rolled_back(self, memory: Memory, mark: None) -> Memory:
        """Return the memory, which never changes."""
        return memory


def _gains(inverse: Tensor, keys: Tensor, anchors: Tensor) -> Tensor:
    """Return k' A^-1 k_anchor for each of some edits, (n,)."""
    return ((keys.double() @ inverse) * anchors.double()).sum(1)
