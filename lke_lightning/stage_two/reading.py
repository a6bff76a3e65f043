"""Read keys and present outputs at the slots, layer by layer, while the layers are being written."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lke_lightning.edits import EditRequest
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.model.targets import Site
from lke_lightning.model.tokens import Row


class SlotReader:
    """Runs only to the layer asked for, only tokens up to the slot, and continues from the last layer read.

    Ask for layers in ascending order; what was read of a layer stays valid until that layer is written.

    Args:
        model: the language model.
        requests: the edits.
        contexts: templates, `"{}"` first.
    """

    def __init__(self, model: LanguageModel, requests: Sequence[EditRequest], contexts: Sequence[str]) -> None:
        rows = model.text.rows([request.in_context(template) for request in requests for template in contexts])
        self.model = model
        self.batch = model.text.pad([Row(row.ids[: row.slot + 1], row.slot) for row in rows], model.device)
        self.contexts = len(contexts)
        self._start = 0
        self._hidden: Tensor | None = None

    def keys(self, layer: int, weights: Sequence[Tensor]) -> list[Tensor]:
        """Return the keys of a layer averaged over contexts, (requests, d_key), for each set of weights (contexts,)."""
        block, matrix = self.model.architecture.blocks[layer], self.model.architecture.matrix(layer)
        (hidden, _), (keys, _) = self.model.observe(
            self.batch, [block, matrix], stop=layer + 1, start=self._start, hidden=self._hidden
        )
        self._start, self._hidden = layer, hidden
        at_slots = keys[torch.arange(len(self.batch), device=keys.device), self.batch.slots]
        return [self._average(at_slots, w) for w in weights]

    def outputs(self, site: Site, weights: Tensor) -> Tensor:
        """Return what stands at the target layer's site now, averaged over contexts, (requests, hidden size)."""
        target = self.model.target_layer
        module = self.model.architecture.blocks[target] if site == "block" else self.model.architecture.matrix(target)
        used = (weights > 0).to(self.batch.slots.device).repeat(len(self.batch) // self.contexts)
        rows = used.nonzero().squeeze(1)
        batch = self.batch.select(rows)
        hidden = None if self._hidden is None else self._hidden[rows, : batch.ids.shape[1]]
        [(_, output)] = self.model.observe(batch, [module], stop=target + 1, start=self._start, hidden=hidden)
        at_slots = output[torch.arange(len(batch), device=output.device), batch.slots]
        return self._average(at_slots, weights[weights > 0])

    def _average(self, values: Tensor, weights: Tensor) -> Tensor:
        grouped = values.to(self.model.wide_dtype).view(-1, len(weights), values.shape[1])
        return torch.einsum("rcd,c->rd", grouped, weights.to(grouped))
