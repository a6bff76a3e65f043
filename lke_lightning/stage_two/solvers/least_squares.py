"""MEMIT's family: a least-squares update, and the memory of all edits that allows exact undo."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from lke_lightning.distributed import Team
from lke_lightning.stage_two.preservation import (
    EditWeights,
    NullSpace,
    PastEdits,
    Preservation,
    check_preservation,
    total_gram,
    wanted_fulfilment,
)
from lke_lightning.stage_two.solvers.growing import appended, without_room
from lke_lightning.stage_two.solvers.inversion import beside, half_gain, invert
from lke_lightning.stage_two.solvers.solver import Downdatable, EditSystem, Eigen, Memory, strength

CHECK_EVERY = 1000
"""Edits after which the drift of a maintained inverse is measured."""

DRIFT = {torch.float64: 1e-6, torch.float32: 1e-2}
"""Relative error of P (M x) - x, by dtype, above which P is computed anew."""

PER_EDIT = frozenset({"keys", "changes", "weights", "counts"})
"""The parts of a memory with a row for each edit; `counts` marks the active ones."""

EDITS_AT_ONCE = 8192
"""Past edits whose keys are held in float64 at once."""

log = logging.getLogger(__name__)


class LeastSquares(Downdatable):
    """MEMIT's closed form with any preservation terms:  D = R K' (A + S + K K')^-1, S = past keys' Gram matrix.

    ENCORE is `BaseStatistics` + `NormPenalty` + `PastEdits`; MEMIT leaves out the norm penalty; AlphaEdit solves in a
    `NullSpace` with `NormPenalty` alone. Prefer `EqualityConstrained` for a single edit that must hold exactly.

    The memory is P = (A + S)^-1 in the basis solved in, so a batch of n costs O(d_key^2 n): with I + K' P K = L L' and
    X = P K L'^-1 the update is D = R L'^-1 X', and P - X X' is the P of the next batch (recursive least squares). After
    every `CHECK_EVERY` edits P M x is compared with x for M = A + S, and P computed anew where they differ by more
    than `DRIFT`. Beside P the memory holds, on the host, A and what every past edit asked: so that an edit can be
    retired, and M be had, without a second matrix on the device; and `probe`, M x, kept up to date so that the check
    costs the same however many edits there are.

    Args:
        preservation: terms that make up A.
        past_edits: preserve earlier edits; `None` forgets them, as MEMIT of 2022 does.
        null_space: solve only in directions that ordinary text hardly uses.
        edit_weights: weight of edits relative to the preservation terms; default: 1.
        dtype: of P and of the solve. `float32` halves memory and is fast on GPUs; its error grows with the condition
            of A (measured in benchmarks/solver.py). The first factorisation is done in float64 in any case.
    """

    keeps_rest = True

    def __init__(
        self,
        preservation: Sequence[Preservation],
        past_edits: PastEdits | None = None,
        null_space: NullSpace | None = None,
        edit_weights: EditWeights | None = None,
        dtype: Literal["float64", "float32"] = "float64",
    ) -> None:
        self.preservation = check_preservation(preservation)
        self.past_edits, self.null_space = past_edits, null_space
        self.edit_weights = edit_weights or EditWeights()
        self.dtype: torch.dtype = getattr(torch, dtype)

    def init(self, second_moment: Tensor, keys: Tensor | None = None, eigen: Eigen = torch.linalg.eigh) -> Memory:
        """Invert A.

        Raises:
            EditError: A is singular: too few tokens of statistics and no norm penalty; or all of its terms weigh 0.
        """
        moment = second_moment.double()
        memory: Memory = {}
        if self.null_space is not None:
            memory["basis"] = self.null_space.basis(*eigen(moment)).to(self.dtype)
        gram = self._gram(memory, moment)
        memory["inverse"], jitter = invert(gram)
        gram.diagonal().add_(jitter)
        gains = None if keys is None else self.edit_weights.weight * self._gains(memory, keys)
        memory["strength"] = strength(wanted_fulfilment(self.preservation), gains)
        if wanted_fulfilment(self.preservation) is not None:
            gram *= memory["strength"][0].item()
            memory["inverse"], _ = invert(gram)  # and not that of A, divided: it is to be had again from `gram`
        memory["inverse"] = memory["inverse"].to(self.dtype)
        if self.past_edits is not None:
            memory |= {"gram": gram.cpu(), "jitter": torch.tensor(jitter, dtype=torch.float64)}
            memory["probe"] = memory["gram"] @ _fixed(len(gram))
        return memory

    def why_not_exact(self) -> str | None:
        """Name what past edits are lacking: a memory, or the weight of new ones."""
        if self.past_edits is None:
            return "its solver keeps no memory of past edits (past_edits)"
        if self.past_edits.weight != 1:
            return "past edits count differently from new ones (past_edits.weight)"
        return None

    def fulfilment(self, memory: Memory, system: EditSystem) -> Tensor:
        """Compute it from P."""
        gains = self._importance(system) * self._gains(memory, system.keys)
        return (gains / (1 + gains)).double()

    def saved(self, memory: Memory) -> Memory:
        """Leave out A, which the statistics give again, what follows from it, and the room for edits to come."""
        return {name: without_room(part) for name, part in memory.items() if name not in ("gram", "probe")}

    def completed(self, memory: Memory, second_moment: Tensor) -> Memory:
        """Add A and M x."""
        if self.past_edits is None:
            return memory
        gram = self._gram(memory, second_moment.double())
        gram.diagonal().add_(memory["jitter"].item())
        if "strength" in memory:  # not in checkpoints of earlier versions
            gram *= memory["strength"][0].item()
        memory = {**memory, "gram": gram.cpu()}
        memory["probe"] = memory["gram"] @ _fixed(len(gram))
        if "counts" in memory:
            self._probe(memory, memory["counts"].nonzero().squeeze(1).tolist())
        return memory

    def compute(self, memory: Memory, system: EditSystem) -> tuple[Tensor, Memory]:
        """Solve for one batch and add it to the memory."""
        scale = self._importance(system).unsqueeze(1).sqrt()
        inverse = memory["inverse"]
        if system.rest is not None:  # for this batch alone: the memory does not know of it
            inverse = beside(inverse, self._in_basis(memory, system.rest))
        half, factor = half_gain(inverse, self._in_basis(memory, system.keys) * scale)
        whitened = torch.linalg.solve_triangular(factor, system.residuals.to(scale) * scale, upper=False)
        update = self._from_basis(memory, whitened.T @ half)
        if self.past_edits is not None:
            if self.past_edits.weight != 1 or system.rest is not None:
                scale = scale * self.past_edits.weight**0.5
                half, _ = half_gain(memory["inverse"], self._in_basis(memory, system.keys) * scale)
            memory["inverse"].addmm_(half.T, half, alpha=-1)
            memory = self._remember(memory, system, self.past_edits.weight)
        return update, memory

    def _remember(self, memory: Memory, system: EditSystem, weight: float) -> Memory:
        """Store the batch, so that its edits can be retired; check the inverse if that is due."""
        importance = self._importance(system) * weight
        changes = system.residuals if system.changes is None else system.changes + system.residuals
        new = {"keys": system.keys.cpu(), "changes": changes.cpu(), "weights": importance.double().cpu()}
        new["counts"] = torch.ones(len(system.keys), dtype=torch.bool)
        before = len(memory["weights"]) if "weights" in memory else 0
        memory = {**memory, **{name: appended(memory.get(name, part[:0].clone()), part) for name, part in new.items()}}
        after = len(memory["weights"])
        self._probe(memory, range(before, after))
        return self._checked(memory) if before // CHECK_EVERY < after // CHECK_EVERY else memory

    def _probe(self, memory: Memory, edits: Sequence[int], sign: int = 1) -> None:
        """Add k (k' x) of some edits to M x, or take it away."""
        for keys in self._past_keys(memory, edits):
            memory["probe"] = memory["probe"] + sign * (keys.T @ (keys @ _fixed(keys.shape[1])))

    def retire(self, memory: Memory, edits: Sequence[int], change: Tensor) -> tuple[Tensor, Memory]:
        """Remove edits from the memory and the weight, as if they had never been made.

        With M' = M - k k' the solution that never saw (k, v) is W - (v - W k) k' M'^-1 (a downdate). Where no edit
        counts any more, the update is the negated change and the memory that of `init`, both bit for bit.

        Args:
            memory: is used up.
            edits: their numbers, counted from the first that was remembered; all count today.
            change: the total change of the weight so far, (d_out, d_key).

        Returns:
            The update (d_out, d_key) that undoes them, and the memory without them, in which they keep their numbers.
        """
        return self._moved(memory, edits, change, sign=-1)

    def restore(self, memory: Memory, edits: Sequence[int], change: Tensor) -> tuple[Tensor, Memory]:
        """Add retired edits to the memory and the weight again; arguments and result as for `retire`."""
        return self._moved(memory, edits, change, sign=1)

    def count(self, memory: Memory) -> int:
        """Count the active edits."""
        return int(memory["counts"].sum()) if "counts" in memory else 0

    def mark(self, memory: Memory) -> Tensor:
        """Return which edits are active, (edits,) bool."""
        return memory["counts"].clone() if "counts" in memory else torch.zeros(0, dtype=torch.bool)

    def rolled_back(self, memory: Memory, mark: Tensor) -> Memory:
        """Drop edits added since, and reactivate those retired since."""
        if self.past_edits is None:
            return memory
        if "counts" not in memory:
            return self._factored(memory)
        then = torch.zeros_like(memory["counts"])
        then[: len(mark)] = mark
        nothing = torch.zeros(memory["changes"].shape[1], memory["keys"].shape[1])
        if torch.equal(then, memory["counts"]):  # an interrupted batch may have changed the inverse and nothing else
            memory = self._factored(memory)
        for moved, sign in ((memory["counts"] & ~then, -1), (then & ~memory["counts"], 1)):
            if moved.any():
                _, memory = self._moved(memory, moved.nonzero().squeeze(1).tolist(), nothing, sign)
        return {name: part[: len(mark)] if name in PER_EDIT else part for name, part in memory.items()}

    def cleared(self, memory: Memory) -> Memory:
        """Deactivate all edits; they keep their numbers."""
        if not self.count(memory):
            return memory
        return self._factored({**memory, "counts": torch.zeros_like(memory["counts"])})

    def _moved(self, memory: Memory, edits: Sequence[int], change: Tensor, sign: int) -> tuple[Tensor, Memory]:
        inverse, chosen = memory["inverse"], list(edits)
        scale = memory["weights"][chosen].to(inverse).unsqueeze(1).sqrt()
        given = memory["keys"][chosen].to(inverse)
        keys = self._in_basis(memory, given) * scale
        missing = (memory["changes"][chosen].to(inverse) - given @ change.to(inverse).T) * scale
        memory = {**memory, "counts": memory["counts"].clone()}
        memory["counts"][chosen] = sign > 0
        if not self.count(memory):
            return -change, self._factored(memory)
        self._probe(memory, chosen, sign)
        projected = keys @ inverse
        inner = sign * projected @ keys.T
        inner.diagonal().add_(1)
        factor, info = torch.linalg.cholesky_ex(inner)
        if info.item():  # edits that A hardly holds back: a downdate would lose all digits
            memory = self._factored(memory)
        else:
            half = torch.linalg.solve_triangular(factor, projected, upper=False)
            memory["inverse"].addmm_(half.T, half, alpha=-sign)
            memory = self._checked(memory)
        return self._from_basis(memory, sign * missing.T @ (keys @ memory["inverse"])), memory

    def drift(self, memory: Memory) -> float:
        """Measure |P (M x) - x| / |x| for a fixed random x, with M from A and all past edits."""
        inverse, x = memory["inverse"], _fixed(len(memory["probe"]))
        return ((inverse @ memory["probe"].to(inverse) - x.to(inverse)).norm() / x.norm()).item()

    def _checked(self, memory: Memory) -> Memory:
        drift = self.drift(memory)
        if drift <= DRIFT[self.dtype]:
            return memory
        if Team.of().is_first:
            log.info("the solver's inverse has drifted by %.1e: recomputed from its edits", drift)
        return self._factored(memory)

    def _factored(self, memory: Memory) -> Memory:
        gram = memory["gram"]
        counting = memory["counts"].nonzero().squeeze(1).tolist() if "counts" in memory else []
        for keys in self._past_keys(memory, counting):
            gram = gram + keys.T @ keys
        fresh, _ = invert(gram.to(memory["inverse"].device))
        return {**memory, "inverse": fresh.to(self.dtype), "probe": gram @ _fixed(len(gram))}

    def _past_keys(self, memory: Memory, edits: Sequence[int]) -> Iterator[Tensor]:
        """Yield keys of past edits in the basis solved in, scaled by their weights, float64 on the host."""
        for start in range(0, len(edits), EDITS_AT_ONCE):
            chosen = list(edits[start : start + EDITS_AT_ONCE])
            keys = memory["keys"][chosen].double()
            if "basis" in memory:
                keys = keys @ memory["basis"].double().cpu()
            yield keys * memory["weights"][chosen].unsqueeze(1).sqrt()

    def _gram(self, memory: Memory, moment: Tensor) -> Tensor:
        gram = total_gram(self.preservation, moment)
        if "basis" in memory:
            basis = memory["basis"].to(gram)  # also from another device, where a memory waits on the host
            gram = basis.T @ gram @ basis
        return gram

    def _gains(self, memory: Memory, keys: Tensor) -> Tensor:
        """Return k' P k for each of some keys (n, d_key), (n,)."""
        keys = self._in_basis(memory, keys)
        return ((keys @ memory["inverse"]) * keys).sum(1)

    def _in_basis(self, memory: Memory, keys: Tensor) -> Tensor:
        keys = keys.to(memory["inverse"])
        return keys @ memory["basis"].to(keys) if "basis" in memory else keys

    def _from_basis(self, memory: Memory, update: Tensor) -> Tensor:
        return update @ memory["basis"].T if "basis" in memory else update

    def _importance(self, system: EditSystem) -> Tensor:
        ones = torch.ones(len(system.keys), dtype=self.dtype, device=system.keys.device)
        return self.edit_weights.weight * (ones if system.importance is None else system.importance.to(ones))


def _fixed(size: int) -> Tensor:
    """Return the x of the drift check, (size, 1) float64."""
    return torch.randn(size, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
