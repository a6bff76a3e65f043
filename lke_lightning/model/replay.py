"""Rows of which everything that a change at the slot cannot reach is computed once: what stage one runs at every step.

That is: all blocks up to the target layer, and every token before the slot in the blocks above it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lke_lightning.model.activations import change_output
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.model.prefix import continue_prefixes
from lke_lightning.model.targets import Site
from lke_lightning.model.tokens import Padded, Row


@dataclass(frozen=True)
class Replay:
    """Rows that can be run again and again with a change at each row's slot, under the weights of `record`."""

    model: LanguageModel
    batch: Padded
    """What follows the prefixes; each row begins at its slot."""
    row_slots: Tensor
    """Where the slots stand in the whole rows, (rows,)."""
    site: Site
    start: int
    """First block that runs."""
    hidden: Tensor
    """Input of that block, (rows, length, hidden size)."""
    initial: Tensor
    """The unchanged activation at each row's slot, (rows, hidden size), in the wide dtype."""

    @classmethod
    def record(cls, model: LanguageModel, rows: Sequence[Row], site: Site = "block") -> Replay:
        """Compute what will not change.

        Args:
            model: the language model.
            rows: whole rows.
            site: where the change will be added, at the target layer.
        """
        batch = continue_prefixes(model.network, model.text, rows)
        layer = model.target_layer
        block, matrix = model.architecture.blocks[layer], model.architecture.matrix(layer)
        (block_in, block_out), (_, matrix_out) = model.observe(batch, [block, matrix], stop=layer + 1)
        start, hidden, at_site = (layer + 1, block_out, block_out) if site == "block" else (layer, block_in, matrix_out)
        if batch.past is not None:
            batch = replace(batch, past=batch.past.above(start))
        slots = torch.tensor([row.slot for row in rows], device=model.device)
        return cls(model, batch, slots, site, start, hidden, at_site[:, 0].to(model.wide_dtype))

    def select(self, rows: Tensor) -> Replay:
        """Keep some rows, in the order given."""
        batch = self.batch.select(rows)
        hidden = self.hidden[rows, : batch.ids.shape[1]]
        return replace(self, batch=batch, row_slots=self.row_slots[rows], hidden=hidden, initial=self.initial[rows])

    def logits(self, change: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
        """Compute logits (reads, vocabulary) with `change` added at the slots; differentiable.

        Args:
            change: (rows, hidden size).
            rows: which row is read, (reads,) int64.
            positions: where in the whole row, (reads,) int64.
        """

        def add(hidden: Tensor) -> Tensor:
            first = (hidden[:, 0] + change.to(hidden.dtype)).unsqueeze(1)
            return torch.cat([first, hidden[:, 1:]], dim=1)

        positions = positions - self.row_slots[rows]
        if self.site == "block":
            return self.model.logits(self.batch, rows, positions, self.start, add(self.hidden))
        matrix = self.model.architecture.matrix(self.model.target_layer)
        with change_output(matrix, add):
            return self.model.logits(self.batch, rows, positions, self.start, self.hidden)
