"""Read keys and current outputs at the slots, layer by layer, while the layers are being written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lke_lightning.distributed import Team
from lke_lightning.edits import EditRequest
from lke_lightning.model.batching import by_length
from lke_lightning.model.cache import Padded
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.model.targets import Asked, AtSlots, Site
from lke_lightning.model.tokens import Row

MAX_TOKENS = 32768
"""How many tokens run at once: keys need no gradients, and few layers."""


class SlotReader:
    """Runs only up to the requested layer and the slot, and continues from the last layer read.

    Request layers in ascending order; a layer's readings stay valid until that layer is written. Processes divide the
    requests, and each gets the readings of all.

    Args:
        model: the language model.
        requests: the edits.
        contexts: templates, `"{}"` first.
    """

    def __init__(
        self,
        model: LanguageModel,
        requests: Sequence[EditRequest],
        contexts: Sequence[str],
    ) -> None:
        self._team = Team.of(model.network)
        mine = self._team.share(requests)
        rows = model.text.rows([request.in_context(template) for request in mine for template in contexts])
        rows = [Row(row.ids[: row.slot + 1], row.slot) for row in rows]
        self.model, self.contexts = model, len(contexts)
        self._parts = [
            _Part(torch.tensor(members, device=model.device), model.text.pad([rows[i] for i in members], model.device))
            for members in by_length([len(row.ids) for row in rows], MAX_TOKENS, model.device)
        ]
        self._rows = len(rows)
        self._start = 0

    def keys(self, layer: int, averages: Sequence[Tensor]) -> list[Tensor]:
        """Return the keys of a layer averaged over contexts, (requests, d_key).

        Args:
            layer: its number.
            averages: the weights (contexts,) of each requested average; one result for each.
        """
        block, matrix = self.model.architecture.blocks[layer], self.model.architecture.matrix(layer)
        at_slots = []
        for part in self._parts:
            (hidden, _), (keys, _) = self.model.observe(
                part.batch, [block, matrix], stop=layer + 1, start=self._start, hidden=part.hidden
            )
            part.hidden = hidden
            at_slots.append(part.at_slots(keys))
        self._start = layer
        return [self._average(self._parts, at_slots, weights) for weights in averages]

    def outputs(self, site: Site, weights: Tensor) -> Tensor:
        """Return the current output at the target layer's site, averaged over contexts, (requests, hidden size)."""
        target = self.model.target_layer
        module = self.model.architecture.blocks[target] if site == "block" else self.model.architecture.matrix(target)
        used = (weights > 0).to(self.model.device).repeat(self._rows // self.contexts)
        parts = [part.select(used[part.rows]) for part in self._parts if used[part.rows].any()]
        at_slots = []
        for part in parts:
            [(_, output)] = self.model.observe(
                part.batch, [module], stop=target + 1, start=self._start, hidden=part.hidden
            )
            at_slots.append(part.at_slots(output))
        return self._average(parts, at_slots, weights[weights > 0])

    def _average(self, parts: Sequence[_Part], values: Sequence[Tensor], weights: Tensor) -> Tensor:
        """Average the parts' values at their slots over contexts; gather all requests, (requests, size)."""
        mine = None
        if parts:  # more processes than requests: some have none
            ordered = torch.cat(list(values))[torch.cat([part.rows for part in parts]).argsort()]
            grouped = ordered.to(self.model.wide_dtype).view(-1, len(weights), ordered.shape[1])
            mine = torch.einsum("rcd,c->rd", grouped, weights.to(grouped))
        return self._team.gather_rows(mine, self.model.device)


@dataclass(frozen=True)
class Spread(AtSlots):
    """Asks each layer for a share of what the targets at the last one lack, at the averaged keys of the slots."""

    reader: SlotReader
    key_weights: Tensor
    """Of the contexts in a key, (contexts,)."""
    anchor_weights: Tensor
    """Of the contexts in an anchor, and in the output that the target is compared with, (contexts,)."""

    def asked(self, layer: int, share: float, vectors: Tensor, site: Site) -> Asked:
        """Read the layer, and the output at the site."""
        keys, anchors = self.reader.keys(layer, [self.key_weights, self.anchor_weights])
        missing = vectors - self.reader.outputs(site, self.anchor_weights)
        return Asked(keys, anchors, missing * share, torch.arange(len(keys), device=keys.device))


@dataclass
class _Part:
    """Rows of similar length that run together."""

    rows: Tensor
    """Which rows these are, (rows,) int64."""
    batch: Padded
    hidden: Tensor | None = None
    """Input of the block read last, (rows, length, hidden size); `None` before the first."""

    def select(self, kept: Tensor) -> _Part:
        """Keep the rows marked in `kept` (rows,) bool."""
        places = kept.nonzero().squeeze(1)
        batch = self.batch.select(places)
        hidden = None if self.hidden is None else self.hidden[places, : batch.ids.shape[1]]
        return _Part(self.rows[places], batch, hidden)

    def at_slots(self, values: Tensor) -> Tensor:
        """Take the values (rows, length, size) at the slots."""
        return values[torch.arange(len(self.rows), device=values.device), self.batch.slots]
