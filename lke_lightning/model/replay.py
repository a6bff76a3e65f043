"""Rows whose lower blocks are computed once and replayed: what stage one runs at every step."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lke_lightning.model.activations import change_output
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.model.tokens import Padded

Site = Literal["block", "matrix"]
"""Where a target lives: the output of the target block (MEMIT family) or of its MLP matrix (ROME)."""


class Replay:
    """A batch of rows that can be run again and again with a change at each row's slot.

    Everything below the change is computed once, under the weights as they are when the replay is made.

    Args:
        model: the language model.
        batch: right-padded rows.
        site: where the change is added, at the target layer.
    """

    initial: Tensor
    """The unchanged activation at each row's slot, (rows, hidden size), in the wide dtype."""

    def __init__(self, model: LanguageModel, batch: Padded, site: Site = "block") -> None:
        self.model = model
        self.batch = batch
        self.site = site
        layer = model.target_layer
        block, matrix = model.architecture.blocks[layer], model.architecture.matrix(layer)
        (block_in, block_out), (_, matrix_out) = model.observe(batch, [block, matrix], stop=layer + 1)
        at = (torch.arange(len(batch), device=batch.slots.device), batch.slots)
        if site == "block":
            self.start, self.hidden = layer + 1, block_out
            self.initial = block_out[at].to(model.wide_dtype)
        else:
            self.start, self.hidden = layer, block_in
            self.initial = matrix_out[at].to(model.wide_dtype)

    def select(self, rows: Tensor) -> Replay:
        """Keep some rows, in the order given."""
        kept = object.__new__(Replay)
        kept.model, kept.site, kept.start = self.model, self.site, self.start
        kept.batch = self.batch.select(rows)
        kept.hidden = self.hidden[rows, : kept.batch.ids.shape[1]]
        kept.initial = self.initial[rows]
        return kept

    def logits(self, change: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
        """Compute logits (reads, vocabulary) with `change` (rows, hidden size) added at the slots; differentiable."""
        slots = (torch.arange(len(self.batch), device=change.device), self.batch.slots)

        def add(hidden: Tensor) -> Tensor:
            return hidden.index_put(slots, change.to(hidden.dtype), accumulate=True)

        if self.site == "block":
            return self.model.logits(self.batch, rows, positions, self.start, add(self.hidden))
        matrix = self.model.architecture.matrix(self.model.target_layer)
        hidden = self.hidden if self.start > 0 else None
        with change_output(matrix, add):
            return self.model.logits(self.batch, rows, positions, self.start, hidden)
