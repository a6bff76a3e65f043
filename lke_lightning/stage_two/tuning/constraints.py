"""Which steps of the optimiser are allowed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from lke_lightning.distributed import Team
from lke_lightning.edits import EditError, check_number
from lke_lightning.model.backward import curvature
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.model.tokens import Row
from lke_lightning.model.weights import EditedWeight
from lke_lightning.stage_two.statistics import Statistics
from lke_lightning.stage_two.tuning.parameters import entry

Memory = dict[int, dict[str, Tensor]]
"""What a constraint remembers of the edits, by layer; its tensors are replaced, never changed in place."""


class StepConstraint(ABC):
    """Changes what a step of the optimiser makes of a matrix, after the optimiser and not before it."""

    def start(self, model: LanguageModel, statistics: Statistics | None) -> Memory:
        """Return the memory before the first edit; the model is the unedited one. Default: there is none."""
        return {}

    def begin(self, memory: Memory, device: torch.device) -> None:
        """Make ready for a batch, from the memory, which may be elsewhere than the model."""
        return

    def count(self, d_out: int, d_key: int) -> int:
        """Return how many numbers it remembers of a matrix, float64. Default: none."""
        return 0

    def followed(self, layer: int, gradient: Tensor) -> Tensor:
        """Return the part of a gradient, (d_out, d_key), that the optimiser is to follow. Default: all of it."""
        return gradient

    @abstractmethod
    def allowed(self, layer: int, weight: EditedWeight, after: Tensor) -> Tensor:
        """Return what the total change of a matrix may become.

        Args:
            layer: its number.
            weight: before the step.
            after: the total change that the step would make, (d_out, d_key).
        """

    def learnt(self, model: LanguageModel, texts: Sequence[Row], memory: Memory) -> Memory:
        """Return the memory after a batch, whose texts these are. Default: what it was."""
        return memory


class Box(StepConstraint):
    """No entry of the total change exceeds a bound: the L-infinity constraint of FT-L (arXiv 2012.00363, 2202.05262).

    Args:
        relative_bound: in typical entries of each matrix (`entry`).
        bound: in absolute numbers, as published; it counts where it is given.
    """

    def __init__(self, relative_bound: float = 0.5, bound: float | None = None) -> None:
        check_number("Box.relative_bound", relative_bound, above=0)
        check_number("Box.bound", 1 if bound is None else bound, above=0)
        self.relative_bound, self.bound = relative_bound, bound

    def allowed(self, layer: int, weight: EditedWeight, after: Tensor) -> Tensor:
        """Clamp every entry."""
        bound = self.relative_bound * entry(weight) if self.bound is None else self.bound
        return after.clamp(-bound, bound)


class LowCurvature(StepConstraint):
    """Steps only where the loss on ordinary text and earlier edits is flat (CrispEdit, arXiv 2602.15823).

    With A = E[k k'] and B = E[g g'] over tokens, keys k and gradients g of the matrix's output, and their eigenvectors
    U_A and U_B, the curvature of direction u_B,i u_A,j' is the product of the two eigenvalues. A step S becomes

        U_B ((U_B' S U_A) o M) U_A'

    where M is 0 at the largest products, the fewest that hold a share of their sum, and 1 elsewhere. The gradient is
    projected as published, and the optimiser's step again, since what Adam makes of a gradient leaves the subspace.
    Tokens of batches that were learnt enter A and B with the weight of any other token.

    Args:
        share: a larger one protects more, 0: nothing.
    """

    def __init__(self, share: float = 0.5) -> None:
        check_number("LowCurvature.share", share, at_least=0, below=1)
        self.share = share
        self._bases: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        self._of: dict[int, Tensor] = {}

    def start(self, model: LanguageModel, statistics: Statistics | None) -> Memory:
        """Measure the curvature on ordinary text."""
        if statistics is None:
            raise EditError("LowCurvature is measured on ordinary text: set stage_two.statistics to KeyStatistics")
        found, count = statistics.curvatures(model)
        tokens = torch.tensor(float(count), dtype=torch.float64)
        return {layer: {"keys": c.keys, "gradients": c.gradients, "tokens": tokens} for layer, c in found.items()}

    def begin(self, memory: Memory, device: torch.device) -> None:
        """Decompose what has changed since the last batch, where the model is."""
        for layer, own in memory.items():
            if self._of.get(layer) is not own["gradients"]:
                self._of[layer], self._bases[layer] = own["gradients"], self._basis(own, device)

    def _basis(self, own: dict[str, Tensor], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Return U_B, U_A and M, (d_out, d_key) bool; the first process decides."""
        team, tokens = Team.of(), own["tokens"].item()
        outputs, by_output = torch.linalg.eigh(own["gradients"].to(device) / tokens)
        keys, by_key = torch.linalg.eigh(own["keys"].to(device) / tokens)
        products = outputs.clamp(min=0)[:, None] * keys.clamp(min=0)
        values, order = products.flatten().sort(descending=True)
        protected = values.cumsum(0) - values < self.share * values.sum()
        is_free = torch.ones_like(protected).index_put_((order,), ~protected).view_as(products)
        parts = (by_output.contiguous(), by_key.contiguous(), is_free.to(torch.uint8))
        by_output, by_key, is_free = (team.first_tensor(part) for part in parts)
        return by_output, by_key, is_free.bool()

    def count(self, d_out: int, d_key: int) -> int:
        """Count the sums of k k' and of g g'."""
        return d_out**2 + d_key**2

    def followed(self, layer: int, gradient: Tensor) -> Tensor:
        """Project the gradient."""
        return self._projected(layer, gradient)

    def allowed(self, layer: int, weight: EditedWeight, after: Tensor) -> Tensor:
        """Project the step."""
        return weight.delta + self._projected(layer, after - weight.delta)

    def _projected(self, layer: int, matrix: Tensor) -> Tensor:
        by_output, by_key, is_free = self._bases[layer]
        by_output, by_key = by_output.to(matrix), by_key.to(matrix)
        return by_output @ ((by_output.T @ matrix @ by_key) * is_free) @ by_key.T

    def learnt(self, model: LanguageModel, texts: Sequence[Row], memory: Memory) -> Memory:
        """Add the tokens of the batch."""
        team = Team.of(model.network)
        sums, count = curvature(model, texts)
        found = {layer: [team.alike(part) for part in (own.keys, own.gradients)] for layer, own in sums.items()}
        return {
            layer: {
                "keys": own["keys"].to(model.device) + found[layer][0],
                "gradients": own["gradients"].to(model.device) + found[layer][1],
                "tokens": own["tokens"] + count,
            }
            for layer, own in memory.items()
        }
