"""LyapLock: least squares in which a virtual queue decides how much ordinary text counts beside the edits."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lke_lightning.edits import check_number
from lke_lightning.stage_two.preservation import Preservation, check_preservation, total_gram, wanted_fulfilment
from lke_lightning.stage_two.solvers.inversion import half_gain, invert
from lke_lightning.stage_two.solvers.solver import EditSystem, Eigen, Memory, Solver, strength


class VirtualQueue(Solver):
    """LyapLock's closed form (arXiv 2505.15702): ordinary text counts q times, past edits keep what they were given.

    With T the total change so far, G = sum K_i K_i' over past batches and Y = sum T_i K_i K_i', T_i the total change
    just after batch i,

        D = (R K' - q T A + Y - T G) (K K' + q A + G)^-1,

    solved as T + D = (Y + (T K + R) K') (K K' + q A + G)^-1. Then q <- max(q + L / (budget L_1) - 1, 1), starting from
    1, with the preservation loss L = tr((T + D) A (T + D)') and L_1 that of the first batch: q rises exactly when the
    loss exceeds its budget. The published form, with Z = q sqrt(budget L_1) and outputs in place of changes, gives the
    same updates.

    The memory: M = (q A + G)^-1, maintained as by `LeastSquares` and computed anew when q has moved; A, G, Y and q. All
    in float64; nothing is changed in place. A batch of n costs O(d_key^2 (n + d_out)), and O(d_key^3) when q moves. It
    counts as it is solved: what an `UpdateTransform` leaves out of an update, the memory does not know.

    Args:
        preservation: terms that make up A; published: `BaseStatistics(1000)`.
        budget: alpha; how many times the loss of the first batch is allowed. Published: 60.
    """

    on_device = frozenset({"inverse", "gram", "past", "realised"})

    def __init__(self, preservation: Sequence[Preservation], budget: float = 60.0) -> None:
        check_number("VirtualQueue.budget", budget, at_least=1)
        self.preservation, self.budget = check_preservation(preservation), budget

    def init(self, second_moment: Tensor, keys: Tensor | None = None, eigen: Eigen = torch.linalg.eigh) -> Memory:
        """Invert A.

        Raises:
            EditError: A is singular: too few tokens of statistics and no norm penalty.
        """
        gram, wanted = total_gram(self.preservation, second_moment.double()), wanted_fulfilment(self.preservation)
        inverse, jitter = invert(gram)
        found = strength(wanted, None if keys is None else _gains(inverse, keys.to(inverse)))
        memory = self.completed({"jitter": torch.tensor(jitter, dtype=torch.float64), "strength": found}, second_moment)
        return self.cleared(memory)

    def completed(self, memory: Memory, second_moment: Tensor) -> Memory:
        """Add A."""
        gram = total_gram(self.preservation, second_moment.double())
        gram.diagonal().add_(memory["jitter"].item())
        return {**memory, "gram": gram * memory["strength"][0].item()}

    def cleared(self, memory: Memory) -> Memory:
        """Begin anew, with the strength that was found."""
        kept = {name: memory[name] for name in ("jitter", "strength", "gram")}
        inverse, _ = invert(memory["gram"])
        one = torch.ones((), dtype=torch.float64)
        return {**kept, "inverse": inverse, "past": torch.zeros_like(inverse), "multiplier": one, "allowed": 0 * one}

    def saved(self, memory: Memory) -> Memory:
        """Leave out A, which the statistics give again."""
        return {name: part for name, part in memory.items() if name != "gram"}

    def why_not_exact(self) -> str:
        """Say that the queue has seen every edit."""
        return (
            "its solver weighs ordinary text by what all edits together have done to it, and keeps sums over past "
            "edits, from which none can be taken out (VirtualQueue)"
        )

    def fulfilment(self, memory: Memory, system: EditSystem) -> Tensor:
        """Compute it from M; that the solve also mends what past edits miss does not count."""
        gains = _gains(memory["inverse"], system.keys.to(memory["inverse"]) * system.scale)
        return gains / (1 + gains)

    def compute(self, memory: Memory, system: EditSystem) -> tuple[Tensor, Memory]:
        """Solve for one batch, enter it, and let the queue see what it did to ordinary text."""
        keys, residuals = (part.to(memory["inverse"]) * system.scale for part in (system.keys, system.residuals))
        total = torch.zeros_like(residuals.T @ keys) if system.total is None else system.total.to(keys)
        realised = memory.get("realised", torch.zeros_like(total))
        half, _ = half_gain(memory["inverse"], keys)
        inverse = memory["inverse"] - half.T @ half
        after = (realised + (residuals + keys @ total.T).T @ keys) @ inverse
        entered = {
            "inverse": inverse, "past": memory["past"] + keys.T @ keys, "realised": realised + (after @ keys.T) @ keys,
        }  # fmt: skip
        return after - total, self._weighed({**memory, **entered}, ((after @ memory["gram"]) * after).sum().item())

    def _weighed(self, memory: Memory, loss: float) -> Memory:
        """Move the queue; the budget is set by the first batch that changes anything."""
        if not math.isfinite(loss):  # then the update is not either, and will be refused
            return memory
        allowed = memory["allowed"].item() or self.budget * loss
        moved = memory["multiplier"] + (loss / allowed - 1 if allowed else 0)
        moved = moved.clamp(min=1)
        if moved != memory["multiplier"]:
            memory = {**memory, "inverse": invert(moved.item() * memory["gram"] + memory["past"])[0]}
        return {**memory, "multiplier": moved, "allowed": torch.full_like(moved, allowed)}

    def mark(self, memory: Memory) -> Memory:
        """Return the memory itself: nothing in it is changed in place."""
        return dict(memory)

    def rolled_back(self, memory: Memory, mark: Memory) -> Memory:
        """Return the memory of the mark, bit for bit."""
        return dict(mark)


def _gains(inverse: Tensor, keys: Tensor) -> Tensor:
    """Return k' M k for each of some keys (n, d_key), (n,)."""
    return ((keys @ inverse) * keys).sum(1)
