"""GRACE: a codebook of balls."""

from __future__ import annotations

import torch
from torch import Tensor

from lke_lightning.edits import check_number
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.stage_two.memories.store import Store, StoreMemory

SAME = 1e-3
"""The share of its radius within which a key is at the place of another."""
APART = 1 - 1e-4
"""The share of the half distance of two keys to which the older one's ball shrinks; published: less 1e-5."""


def read(memory: dict, keys: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """Return the value of the nearest stored key where a key (..., d_key) lies in its ball, elsewhere the output."""
    asked = keys.flatten(0, -2).to(memory["keys"])
    distances = torch.cdist(asked, memory["keys"], compute_mode="use_mm_for_euclid_dist")
    distance, nearest = distances.masked_fill(memory["radii"] < 0, torch.inf).min(1)
    inside = (distance <= memory["radii"][nearest]).view(*keys.shape[:-1], 1)
    values = memory["values"][memory["returned"][nearest]].view(output.shape).to(output.dtype)
    return torch.where(inside, values, output)


class Codebook(Store):
    """Returns the value of the nearest stored key where a key lies in its ball.

    Rows enter one by one, each with a first radius e. Outside of the nearest ball by more than e, a row begins a ball
    of its own. Else, where the same is to be said, that ball grows up to it and returns its value; where not, both
    balls get at most half of the distance, and a key at the same place takes the ball over.

    Args:
        layer: number of the layer.
    """

    reader = staticmethod(read)
    labels: Tensor
    """Equal where the same is to be said, (rows,) int64."""
    first: Tensor
    """First radius of each row, (rows,)."""
    radii: Tensor
    """Of each row's ball, (rows,); -1: it has none."""
    returned: Tensor
    """The row whose value each ball returns, (rows,) int64."""

    def begin(self, model: LanguageModel) -> dict[str, Tensor]:
        """Return no rows."""
        number, none = torch.zeros(0, dtype=torch.long), super().begin(model)
        radius = none["keys"].new_zeros(0)
        return {**none, "labels": number, "first": radius, "radii": radius, "returned": number}

    def rewrite(self, keys: Tensor, output: Tensor) -> Tensor:
        """Replace outputs."""
        memory = {"keys": self.keys, "values": self.values, "radii": self.radii, "returned": self.returned}
        return read(memory, keys, output)

    def tensors(self) -> dict[str, Tensor]:
        """Return the balls alone."""
        balls = self.radii >= 0
        values = self.values[self.returned[balls]]
        numbers = torch.arange(len(values))
        return {"keys": self.keys[balls], "values": values, "radii": self.radii[balls], "returned": numbers}

    def settle(self, first: int) -> None:
        """Let live rows enter, in order."""
        new = torch.full_like(self.first[first:], -1.0)
        self.radii = torch.cat([self.radii[:first], new])
        self.returned = torch.cat([self.returned[:first], torch.arange(first, len(self.keys)).to(self.returned)])
        for row in (first + self.live[first:].nonzero().squeeze(1)).tolist():
            self._enter(row)

    def _enter(self, row: int) -> None:
        balls = (self.radii[:row] >= 0).nonzero().squeeze(1)
        distances = (self.keys[balls] - self.keys[row]).norm(dim=1)
        own = self.first[row]
        self.radii[row] = own
        if not len(balls) or distances.min() > own + self.radii[balls[distances.argmin()]]:
            return
        distance, ball = distances.min(), balls[distances.argmin()]
        if self.labels[self.returned[ball]] == self.labels[row]:
            self.radii[row] = -1
            self.radii[ball] = torch.maximum(self.radii[ball], distance)
            self.returned[ball] = row
        elif distance <= SAME * own:
            self.radii[row], self.radii[ball] = self.radii[ball].clone(), -1
        else:
            self.radii[row] = torch.minimum(own, distance / 2)
            self.radii[ball] = torch.minimum(self.radii[ball], distance / 2 * APART)


class Grace(StoreMemory):
    """A codebook of keys, balls and values beside one matrix (GRACE, arXiv 2211.11031).

    The key is the matrix's input at the last token of the prompt (`stage_one.expansion`: `LastToken`), the value the
    output there that makes the model say the target. At any token whose key lies in a ball, the matrix returns the
    ball's value; elsewhere the model is the unedited one, bit for bit.

    Args:
        radius: first radius of a ball, as a share of the norm of its key.
        epsilon: first radius in the units of the activations, as published; it counts where it is given.
    """

    def __init__(self, radius: float = 0.2, epsilon: float | None = None) -> None:
        super().__init__()
        check_number("stage_two.radius", radius, above=0, at_most=2)
        check_number("stage_two.epsilon", 1 if epsilon is None else epsilon, above=0)
        self.radius, self.epsilon = radius, epsilon

    def made(self, model: LanguageModel) -> Codebook:
        """Make the codebook."""
        return Codebook(model.layers[-1])

    def rows(self, keys: Tensor, outputs: Tensor, residuals: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return keys, values, labels and first radii."""
        norms = keys.norm(dim=1)
        first = self.radius * norms if self.epsilon is None else torch.full_like(norms, self.epsilon)
        return {"keys": keys, "values": outputs + residuals, "labels": labels, "first": first}
