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
from lke_lightning.model.replay import renumber
from lke_lightning.model.targets import Asked, AtSlots, Site
from lke_lightning.model.tokens import Row
from lke_lightning.model.units import Expansion, Text, Whole, texts

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
        expansion: which units each request has; each has a slot of its own.
        with_rest: also read the keys at all other tokens of the bare prompts and their answers (`rest`).
    """

    def __init__(
        self,
        model: LanguageModel,
        requests: Sequence[EditRequest],
        contexts: Sequence[str],
        expansion: Expansion | None = None,
        with_rest: bool = False,
    ) -> None:
        self._team = Team.of(model.network)
        found = texts(model.text, self._team.share(requests), contexts, expansion or Whole())
        self.model, self.contexts = model, len(contexts)
        self.rest: Tensor | None = None
        """At the layer whose keys were read last, (tokens, d_key); `None`: nobody has asked for them."""
        self._with_rest = with_rest
        reads = _reads(found, len(contexts), model.context_length if with_rest else 0)
        lengths = [1 + max(position for position, _ in row) for row in reads]
        self._parts = [
            _Part.of(model, members, [found[i].ids[: lengths[i]] for i in members], [reads[i] for i in members])
            for members in by_length(lengths, MAX_TOKENS, model.device)
        ]
        self._rows = len(found)
        self._start = 0

    def keys(self, layer: int, averages: Sequence[Tensor]) -> list[Tensor]:
        """Return the keys of a layer averaged over contexts, (units, d_key), those of a request one after the other.

        Args:
            layer: its number.
            averages: the weights (contexts,) of each requested average; one result for each.
        """
        block, matrix = self.model.architecture.blocks[layer], self.model.architecture.matrix(layer)
        at_slots, others = [], []
        for part in self._parts:
            (hidden, _), (keys, _) = self.model.observe(
                part.batch, [block, matrix], stop=layer + 1, start=self._start, hidden=part.hidden
            )
            part.hidden = hidden
            at_slots.append(part.at_slots(keys))
            others.append(part.elsewhere(keys))
        self._start = layer
        if self._with_rest:
            self.rest = self._team.gather_rows(torch.cat(others) if others else None, self.model.device)
        return [self._average(self._parts, at_slots, weights) for weights in averages]

    def outputs(self, site: Site, weights: Tensor, layer: int | None = None) -> Tensor:
        """Return the current output at a layer's site, averaged over contexts, (units, hidden size).

        Args:
            site: where in the layer.
            weights: of the contexts, (contexts,).
            layer: its number, none below the layer whose keys were read last; `None`: the last edited layer.
        """
        target = self.model.target_layer if layer is None else layer
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
        """Average the parts' values at their slots over contexts; gather all requests, (units, size)."""
        mine = None
        if parts:  # more processes than requests: some have none
            ordered = torch.cat(list(values))[torch.cat([part.numbers for part in parts]).argsort()]
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
    target_layer: int
    """Where the targets live."""

    def asked(self, layer: int, share: float, vectors: Tensor, site: Site) -> Asked:
        """Read the layer, and the output at the site."""
        keys, anchors = self.reader.keys(layer, [self.key_weights, self.anchor_weights])
        present = self.reader.outputs(site, self.anchor_weights, self.target_layer)
        return Asked(keys, anchors, (vectors - present) * share)


def _reads(found: Sequence[Text], contexts: int, rest: int | None) -> list[list[tuple[int, int]]]:
    """Return for each text the positions that are read, each with its place in the result; -1: it is of the rest.

    The rest is that of the first `rest` tokens of a bare text; `None`: of all. Places go by request, then unit, then
    context, so that the contexts of a unit can be averaged.
    """
    reads, place = [], 0
    for i, text in enumerate(found):
        context = i % contexts
        read = [(slot, place + unit * contexts + context) for unit, slot in enumerate(text.slots)]
        if context == 0:
            read += [(position, -1) for position in range(len(text.ids[:rest])) if position not in text.slots]
        reads.append(read)
        place += len(text.slots) * contexts if context == contexts - 1 else 0
    return reads


@dataclass
class _Part:
    """Rows of similar length that run together. All tensors of numbers are int64."""

    rows: Tensor
    """Which rows these are, (rows,)."""
    batch: Padded
    reads: Tensor
    """Row in this part, position and place in the result of everything that is read, (reads, 3)."""
    hidden: Tensor | None = None
    """Input of the block read last, (rows, length, hidden size); `None` before the first."""

    @classmethod
    def of(
        cls,
        model: LanguageModel,
        members: Sequence[int],
        ids: Sequence[tuple[int, ...]],
        reads: Sequence[Sequence[tuple[int, int]]],
    ) -> _Part:
        """Pad some rows, by their numbers, into one batch."""
        batch = model.text.pad([Row(row, len(row) - 1) for row in ids], model.device)
        places = [(row, *read) for row, own in enumerate(reads) for read in own]
        return cls(torch.tensor(members, device=model.device), batch, torch.tensor(places, device=model.device))

    @property
    def numbers(self) -> Tensor:
        """The places in the result of the values at the slots, (slots,)."""
        return self.reads[self.reads[:, 2] >= 0, 2]

    def select(self, kept: Tensor) -> _Part:
        """Keep the rows marked in `kept` (rows,) bool."""
        places = kept.nonzero().squeeze(1)
        batch = self.batch.select(places)
        hidden = None if self.hidden is None else self.hidden[places, : batch.ids.shape[1]]
        reads = self.reads[kept[self.reads[:, 0]]]
        reads = torch.cat([renumber(kept)[reads[:, :1]], reads[:, 1:]], 1)
        return _Part(self.rows[places], batch, reads, hidden)

    def at_slots(self, values: Tensor) -> Tensor:
        """Take the values (rows, length, size) at the slots, (slots, size)."""
        rows, positions, _ = self.reads[self.reads[:, 2] >= 0].T
        return values[rows, positions]

    def elsewhere(self, values: Tensor) -> Tensor:
        """Take them at the other tokens that are read, (tokens, size)."""
        rows, positions, _ = self.reads[self.reads[:, 2] < 0].T
        return values[rows, positions]
