"""The interface of solvers: a batch's system, the memory and the update."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from lke_lightning.edits import EditError

Memory = dict[str, Tensor]

Eigen = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From a symmetric matrix to its eigenvalues, ascending, and eigenvectors, as columns."""


@dataclass(frozen=True)
class EditSystem:
    """The system of a batch for one weight: add the residuals to the outputs for the keys."""

    keys: Tensor
    """Averaged over contexts, (n, d_key)."""
    anchors: Tensor
    """Keys at which an equality-constrained update holds exactly, (n, d_key); ROME's differ from `keys`."""
    residuals: Tensor
    """Missing part of the outputs, (n, d_out)."""
    changes: Tensor | None = None
    """What the total change of the weight so far adds to the outputs for the keys, (n, d_out); `None`: nothing."""
    importance: Tensor | None = None
    """Weight of each edit, (n,); `None`: one."""
    total: Tensor | None = None
    """The total change of the weight so far, (d_out, d_key); `None`: nothing. It is the weight's own tensor, to be read
    while the batch is solved: it is another one once the update is written."""
    rest: Tensor | None = None
    """Keys whose outputs shall stay while this batch is solved, scaled by the root of their weight, (m, d_key)."""

    @property
    def scale(self) -> Tensor:
        """The square root of each edit's weight, (n, 1) float64: what its key and residual are scaled by."""
        ones = torch.ones(len(self.keys), dtype=torch.float64, device=self.keys.device)
        return (ones if self.importance is None else self.importance.to(ones)).unsqueeze(1).sqrt()

    def among(self, rows: Sequence[int], count: int) -> EditSystem:
        """Return the system of a batch of `count` rows that has these at some places; the others ask nothing.

        Their keys and residuals are zero, so that they change neither the update nor what is solved later.
        """
        if len(rows) == count:
            return self
        own = {"keys": self.keys, "anchors": self.anchors, "residuals": self.residuals}
        if self.changes is not None:
            own["changes"] = self.changes
        wholes = {name: part.new_zeros(count, part.shape[1]) for name, part in own.items()}
        if self.importance is not None:
            own["importance"], wholes["importance"] = self.importance, self.importance.new_ones(count)
        for name, whole in wholes.items():
            whole[list(rows)] = own[name]
        return replace(self, **wholes)


class Solver(ABC):
    """Turns an `EditSystem` into an update.

    One whose past edits can be taken out of it exactly is `Downdatable`.
    """

    on_device: ClassVar[frozenset[str]] = frozenset({"inverse", "basis"})
    """The parts of a memory that are used on the device; the others stay on the host."""
    keeps_rest: ClassVar[bool] = False
    """Whether `compute` looks at `EditSystem.rest`."""

    @abstractmethod
    def init(self, second_moment: Tensor, keys: Tensor | None = None, eigen: Eigen = torch.linalg.eigh) -> Memory:
        """Start the memory of a layer, from C0 (d_key, d_key).

        Args:
            second_moment: C0.
            keys: of edits, (n, d_key), by the unedited model; a wanted fulfilment is the median over them.
            eigen: decomposes C0, or knows its decomposition already: one serves all hyperparameters.
        """

    @abstractmethod
    def fulfilment(self, memory: Memory, system: EditSystem) -> Tensor:
        """Return for each edit the share that would be written if it were the next one, alone, (n,) float64.

        It is k' P k / (1 + k' P k), with P = A^-1 at first; what is remembered of past edits lowers it.
        """

    @abstractmethod
    def compute(self, memory: Memory, system: EditSystem) -> tuple[Tensor, Memory]:
        """Return the update (d_out, d_key) and the memory for the next batch; the given one is consumed."""

    def preview(self, memory: Memory, system: EditSystem) -> Tensor:
        """Return the update of `compute`, and leave the memory as it is; default: it is computed on a copy."""
        return self.compute({name: part.clone() for name, part in memory.items()}, system)[0]

    def why_not_exact(self) -> str | None:
        """Return why an edit cannot be undone exactly; `None`, from a `Downdatable` solver alone: it can."""
        return "its solver keeps no memory of past edits from which one could be taken out"

    def saved(self, memory: Memory) -> Memory:
        """Return the part of a memory that a checkpoint has to hold."""
        return memory

    def completed(self, memory: Memory, second_moment: Tensor) -> Memory:
        """Complete a saved memory with the parts that follow from C0."""
        return memory

    def mark(self, memory: Memory) -> Any:
        """Return what `rolled_back` needs to return to this moment; default: a copy of the memory."""
        return {name: part.clone() for name, part in memory.items()}

    def rolled_back(self, memory: Memory, mark: Any) -> Memory:
        """Return the memory of an earlier moment, up to rounding; the given one is consumed."""
        return mark

    def cleared(self, memory: Memory) -> Memory:
        """Return a memory without active edits; the given one is consumed. Default: it never has any."""
        return memory


class Downdatable(Solver):
    """A solver that can take edits out of its memory and of the weight, as if they had never been made.

    Its memory has a row for each edit; an edit keeps its row, active or not.
    """

    @abstractmethod
    def retire(self, memory: Memory, edits: Sequence[int], change: Tensor) -> tuple[Tensor, Memory]:
        """Remove edits from the memory and the weight.

        Args:
            memory: is consumed.
            edits: their rows; all are active.
            change: the total change of the weight so far, (d_out, d_key).

        Returns:
            The update (d_out, d_key) that undoes them, and the memory without them.
        """

    @abstractmethod
    def restore(self, memory: Memory, edits: Sequence[int], change: Tensor) -> tuple[Tensor, Memory]:
        """Add retired edits to the memory and the weight again; arguments and result as for `retire`."""

    @abstractmethod
    def why_not_exact(self) -> str | None:
        """Return why an edit cannot be undone exactly as this solver is set; `None`: it can."""


def strength(wanted: float | None, gains: Tensor | None) -> Tensor:
    """Return the factor of A with which single edits reach a wanted fulfilment, and the one they have then, (2,).

    Args:
        wanted: between 0 and 1; `None`: A is as it should be, the factor is 1.
        gains: k' A^-1 k of some edits, with A as it is, (n,); the median counts. Without any, only the factor is
            returned, (1,).

    Raises:
        EditError: a fulfilment is wanted and there are no edits to find it for, or none with a key.
    """
    if gains is None or not len(gains):
        if wanted is not None:
            raise EditError("a fulfilment is found for the keys of the first edits, and there are none: give weights")
        return torch.ones(1, dtype=torch.float64)
    gain = gains.nanmedian().item()  # an edit without finite numbers is left out later
    if wanted is not None and not 0 < gain < float("inf"):
        raise EditError(
            "a fulfilment cannot be found: the keys of the first edits are zero or not finite; give weights"
        )
    factor = 1.0 if wanted is None else gain * (1 - wanted) / wanted
    return torch.tensor([factor, gain / (factor + gain)], dtype=torch.float64)
