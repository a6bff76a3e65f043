"""NeuralDB: residuals behind a gate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from lke_lightning.edits import check_number
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.stage_two.memories.store import Store, StoreMemory

ALIKE = 1e-6
"""How far below 1 the cosine of keys may be that are one key."""

AT_ONCE = 512
"""How many keys are compared with all others at once."""


def read(memory: dict, keys: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """Add the residual of the stored key of the highest cosine to the output where that passes gamma."""
    asked = torch.nn.functional.normalize(keys.flatten(0, -2).to(memory["keys"]), dim=1)
    cosine, nearest = (asked @ memory["keys"].T).masked_fill(~memory["open"], -1.0).max(1)
    passes = (cosine > memory["gamma"]).view(*keys.shape[:-1], 1)
    values = memory["values"][nearest].view(output.shape)
    return torch.where(passes, (output.to(values.dtype) + values).to(output.dtype), output)


class GatedStore(Store):
    """Adds the residual of the stored key of the highest cosine where that passes the gate; of equal keys, the newest.

    Args:
        layer: number of the layer.
        gamma: the gate.
    """

    reader = staticmethod(read)
    open: Tensor
    """Which live rows have no newer one of the same key, (rows,) bool."""

    def __init__(self, layer: int, gamma: float) -> None:
        super().__init__(layer)
        self.gamma = gamma
        self.settings["gamma"] = gamma

    def begin(self, model: LanguageModel) -> dict[str, Tensor]:
        """Return no rows."""
        return {**super().begin(model), "open": torch.zeros(0, dtype=torch.bool)}

    def rewrite(self, keys: Tensor, output: Tensor) -> Tensor:
        """Add residuals."""
        memory = {"keys": self.keys, "values": self.values, "open": self.open, "gamma": self.gamma}
        return read(memory, keys, output)

    def tensors(self) -> dict[str, Tensor]:
        """Return the open rows alone."""
        return {"keys": self.keys[self.open], "values": self.values[self.open], "open": self.open[self.open]}

    def exported(self) -> tuple[dict[str, Tensor], dict[str, Any], str]:
        """Return the gate, too."""
        tensors, about, program = super().exported()
        return tensors, {**about, "gamma": self.gamma}, program

    def settle(self, first: int) -> None:
        """Let newer rows shut older ones of the same key."""
        known = self.open[:first] if first else self.live[:0]
        self.open = torch.cat([known, self.live[len(known) :]])
        numbers = torch.arange(len(self.keys), device=self.keys.device)
        for new in numbers[first:][self.live[first:]].split(AT_ONCE):
            same = self.keys @ self.keys[new].T > 1 - ALIKE
            self.open &= ~(same & (numbers.unsqueeze(1) < new)).any(1)


class NeuralDB(StoreMemory):
    """A gated key-value memory beside one matrix (NeuralDB, arXiv 2507.18028).

    With k the matrix's input at a token, k_j the stored keys and r_j = v_j - W k_j what the outputs lacked of the
    targets, the matrix returns W k + r_j where cos(k, k_j) > gamma, j = argmax cos(k, k_j), and W k elsewhere.

    Args:
        gamma: the gate, from 0 to 1: lower ones let more wordings through, and more of what is not meant.
    """

    def __init__(self, gamma: float = 0.75) -> None:
        super().__init__()
        check_number("stage_two.gamma", gamma, at_least=0, below=1)
        self.gamma = gamma

    def made(self, model: LanguageModel) -> GatedStore:
        """Make the store."""
        return GatedStore(model.layers[-1], self.gamma)

    def rows(self, keys: Tensor, outputs: Tensor, residuals: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return keys of length 1 and residuals."""
        return {"keys": normalize(keys, dim=1), "values": residuals}
