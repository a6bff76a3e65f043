"""Transforms of an update before it is written, and of the total change when the model is read. Torch only."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from lke_lightning.distributed import Team
from lke_lightning.edits import EditError, check_number

State = dict[str, Tensor]
"""What a transform keeps of one layer from update to update; its tensors are replaced, never changed in place."""

log = logging.getLogger(__name__)


class UpdateTransform(ABC):
    """Changes each update before it is written.

    It keeps nothing itself: its state of a layer is taken and returned, saved in checkpoints and rolled back with a
    batch. Matrices are (d_out, d_key), however the network stores its weight, and of one dtype, float32 or wider.
    """

    def start(self, base: Tensor) -> State:
        """Return the state of a layer before its first update, from the unedited weight. Default: there is none."""
        return {}

    @abstractmethod
    def __call__(self, base: Tensor, change: Tensor, update: Tensor, state: State) -> tuple[Tensor, State]:
        """Return the update to write and the next state; what is given is not changed.

        Args:
            base: the unedited weight.
            change: the total change of the weight so far.
            update: what was solved for.
            state: of this layer.
        """


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

    def __call__(self, base: Tensor, change: Tensor, update: Tensor, state: State) -> tuple[Tensor, State]:
        """Zero the other entries."""
        relative = update.abs() / ((base + change).to(update).abs() + 1e-8)  # of magnitudes: never 0
        dropped = update.numel() - round(self.keep * update.numel())
        if dropped:
            update = update * (relative > relative.flatten().kthvalue(dropped).values)
        return update, state


class SpectralFilter(UpdateTransform):
    """Takes out of each update what lies in the leading singular directions of the weight (REVIVE, SPHERE).

    D -> (I - alpha U U') D (I - alpha V V'), where U and V are the fewest left and right singular vectors that hold
    more than a share of the squared singular values; with `sides: keys` the left factor is I.

    REVIVE (arXiv 2601.11042) is `both`, `unedited` and alpha 1: what remains of D has no coefficient (i, j) with i <= k
    or j <= k in the basis of the unedited weight. SPHERE (arXiv 2510.01172) is `keys`, `current`, `unit_rows` and
    alpha 0.5 to 0.8.

    Args:
        share: REVIVE's tau, SPHERE's eta, between 0 and 1; a larger one protects more of the weight and leaves less
            room for edits.
        strength: alpha; 1 removes what lies in the directions, less only damps it.
        sides: whether outputs are protected beside keys.
        basis: `unedited`: the directions are found once; `current`: anew for each update, in the edited weight.
        unit_rows: scale the rows of the weight to length one first.

    Raises:
        EditError: an argument is out of range; or, from `start`, nothing of an update would be left.
    """

    def __init__(
        self,
        share: float,
        strength: float = 1.0,
        sides: Literal["both", "keys"] = "both",
        basis: Literal["unedited", "current"] = "unedited",
        unit_rows: bool = False,
    ) -> None:
        check_number("SpectralFilter.share", share, above=0, below=1)
        check_number("SpectralFilter.strength", strength, above=0, at_most=1)
        self.share, self.strength, self.sides, self.basis, self.unit_rows = share, strength, sides, basis, unit_rows

    def start(self, base: Tensor) -> State:
        """Find the directions of the unedited weight: `keys` (d_key, k) and, with both sides, `outputs` (d_out, k)."""
        found = self._directions(base)
        count = found["keys"].shape[1]
        if self.strength == 1 and any(count == len(directions) for directions in found.values()):
            raise EditError(
                f"SpectralFilter.share {self.share:g} protects all {count} directions of a weight "
                f"{tuple(base.shape)}, so nothing could be written: choose a smaller one"
            )
        if Team.of().is_first:
            log.info("spectral filter: %d of %d directions by share %g", count, min(base.shape), self.share)
        return found if self.basis == "unedited" else {}

    def __call__(self, base: Tensor, change: Tensor, update: Tensor, state: State) -> tuple[Tensor, State]:
        """Filter the update."""
        found = state if self.basis == "unedited" else self._directions(base + change)
        keys = found["keys"]
        update = update - self.strength * (update @ keys) @ keys.T
        if "outputs" in found:
            outputs = found["outputs"]
            update = update - self.strength * outputs @ (outputs.T @ update)
        return update, state

    def _directions(self, weight: Tensor) -> State:
        wide = weight.double()
        if self.unit_rows:
            wide = normalize(wide, dim=1)
        outputs, keys = leading_directions(wide, self.share)
        found = {"keys": keys} if self.sides == "keys" else {"keys": keys, "outputs": outputs}
        return {name: directions.to(weight.dtype) for name, directions in found.items()}


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


class WrittenReadout(UpdateTransform):
    """Writes what a readout would show: after each update the total change is the readout of what it would have been.

    Args:
        readout: `SpectralCap`: PRUNE whose restraint stays in the weights, where the next batch meets it.
    """

    def __init__(self, readout: ReadoutTransform) -> None:
        self.readout = readout

    def __call__(self, base: Tensor, change: Tensor, update: Tensor, state: State) -> tuple[Tensor, State]:
        """Return readout(base, change + update) - change."""
        return self.readout(base, change + update) - change, state


def leading_directions(weight: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Return the fewest singular vectors whose squared singular values are more than a share of all of them.

    Those of the shorter side are eigenvectors of its Gram matrix, a fraction of the cost of decomposing the weight, and
    the others follow from them: the leading ones are exact enough in float64.

    Args:
        weight: (d_out, d_key) float64.
        share: between 0 and 1.

    Returns:
        The left ones, (d_out, k), and the right ones, (d_key, k), as columns; none of a weight that is zero.
    """
    if len(weight) > weight.shape[1]:
        keys, outputs = leading_directions(weight.T, share)
        return outputs, keys
    values, vectors = torch.linalg.eigh(weight @ weight.T)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    leads = (values.cumsum(0) - values <= share * values.sum()) & (values > 0)
    outputs = vectors[:, leads]
    return outputs, normalize(weight.T @ outputs, dim=0)
