"""Keys and values of the tokens before the first change, computed once and reused.

Tokens before a slot cannot see it, so nothing written at the slot changes them. A beginning that several prefixes share
(a context template, the words of a relation) is computed once for all of them.

Where a module beside the network looks at earlier tokens too (`LanguageModel.is_token_wise`), nothing is computed here:
every text runs whole.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from lke_lightning.model.activations import change_output
from lke_lightning.model.batching import by_length
from lke_lightning.model.cache import Padded, PrefixCache, PrefixLayer
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.model.targets import Site

Ids = tuple[int, ...]

Held = tuple[tuple[int, Tensor], ...]
"""Tokens of a text, by position and ascending, and the output (hidden size,) that each has where targets live, whatever
the weights make of it."""


@dataclass(frozen=True)
class Prefixes:
    """Keys and values of distinct token sequences, aligned on the right so that any text can follow."""

    numbers: dict[Ids, int]
    lengths: Tensor
    """(sequences,) int64."""
    blocks: list[tuple[Tensor, Tensor] | None]
    """For each block keys and values, (sequences, heads, longest, head size); `None` while nothing is known."""

    @classmethod
    def run(
        cls,
        model: LanguageModel,
        sequences: Sequence[Ids],
        max_tokens: int = 32768,
        held: Mapping[Ids, Held] | None = None,
        site: Site = "block",
        layer: int | None = None,
    ) -> Prefixes:
        """Run sequences; beginnings shared by neighbors in sorted order run once.

        Args:
            model: the language model.
            sequences: token ids; repeated and empty ones are allowed.
            max_tokens: how many tokens run at once.
            held: outputs that stand in some of them.
            site: where.
            layer: in which layer; `None`: the last edited one.
        """
        distinct = sorted(set(sequences))
        if not model.is_token_wise:
            return cls._unknown(model, distinct)
        held = held or {}
        shared = [  # what is held is no part of a shared beginning
            stem[: held[ids][0][0]] if ids in held else stem
            for ids, stem in zip(distinct, shared_beginnings(distinct), strict=True)
        ]
        nothing = cls._unknown(model, [()])
        stems = nothing._extended(model, {ids: ((), ids) for ids in dict.fromkeys(shared)}, max_tokens)
        wholes = {ids: (stem, ids[len(stem) :]) for ids, stem in zip(distinct, shared, strict=True)}
        return stems._extended(model, wholes, max_tokens, held, site, layer)

    def followed_by(self, model: LanguageModel, prefixes: Sequence[Ids], continuations: Sequence[Ids]) -> Padded:
        """Make a batch of continuations, each after its prefix; the first token of each is its slot."""
        chosen = torch.tensor([self.numbers[ids] for ids in prefixes], device=model.device)
        if not model.is_token_wise:
            wholes = model.text.align([one + other for one, other in zip(prefixes, continuations, strict=True)])
            ids, mask = (part.to(model.device) for part in wholes)
            return Padded(ids, mask, torch.zeros_like(chosen), offsets=self.lengths[chosen])
        ids, mask = (part.to(model.device) for part in model.text.align(continuations))
        lengths = self.lengths[chosen]
        positions = lengths.unsqueeze(1) + torch.arange(ids.shape[1], device=ids.device)
        longest = int(lengths.max())
        real = torch.arange(longest, device=ids.device) >= (longest - lengths).unsqueeze(1)
        layers = [
            PrefixLayer(states[0][chosen, :, -longest:], states[1][chosen, :, -longest:], longest)
            if states is not None and longest
            else PrefixLayer(None, None, longest)
            for states in self.blocks
        ]
        return Padded(ids, mask, torch.zeros_like(lengths), positions, PrefixCache(layers, real.long()))

    @classmethod
    def _unknown(cls, model: LanguageModel, sequences: Sequence[Ids]) -> Prefixes:
        lengths = torch.tensor([len(ids) for ids in sequences], device=model.device)
        return cls({ids: i for i, ids in enumerate(sequences)}, lengths, [None] * len(model.architecture.blocks))

    def _extended(
        self,
        model: LanguageModel,
        wholes: dict[Ids, tuple[Ids, Ids]],
        max_tokens: int,
        held: Mapping[Ids, Held] | None = None,
        site: Site = "block",
        layer: int | None = None,
    ) -> Prefixes:
        """Continue these prefixes into whole sequences, each given as one of these and the rest."""
        sequences = list(wholes)
        found = self._unknown(model, list(wholes))
        parts = list(wholes.values())
        no_reads = torch.zeros(0, dtype=torch.long, device=model.device)
        for members in by_length([len(rest) for _, rest in parts], max_tokens, model.device):
            batch = self.followed_by(model, [parts[i][0] for i in members], [parts[i][1] for i in members])
            standing = [
                (row, position - len(parts[i][0]), output)
                for row, i in enumerate(members)
                for position, output in (held or {}).get(sequences[i], ())
            ]
            if batch.ids.shape[1]:
                with _standing(model, site, layer, standing, len(batch)):
                    model.states(batch, no_reads, no_reads)
            found._take(torch.tensor(members, device=model.device), batch)
        return found

    def _take(self, places: Tensor, batch: Padded) -> None:
        """Copy what a forward left in its cache, which is padded on both sides, to where it belongs."""
        longest, past = int(self.lengths.max()), batch.past
        if past is None or not longest:
            return
        column = torch.arange(longest, device=places.device)
        padding = (column < (longest - self.lengths[places]).unsqueeze(1))[:, None, :, None]
        end = past.mask.shape[1] + batch.mask.sum(1)
        source = (column + (end - longest).unsqueeze(1)).clamp(min=0)[:, None, :, None]
        for block, layer in enumerate(past.layers):
            if layer.keys is None or layer.values is None:  # only empty sequences so far
                continue
            both = (layer.keys, layer.values)
            if (held := self.blocks[block]) is None:
                keys, values = (x.new_zeros(len(self.lengths), x.shape[1], longest, x.shape[3]) for x in both)
                held = self.blocks[block] = (keys, values)
            for kept, states in zip(held, both, strict=True):
                moved = states.gather(2, source.expand(-1, states.shape[1], -1, states.shape[3]))
                kept[places] = moved.masked_fill(padding, 0)


def _standing(
    model: LanguageModel, site: Site, layer: int | None, places: Sequence[tuple[int, int, Tensor]], rows: int
) -> AbstractContextManager[None]:
    """Put outputs in the place of those at (row, column) of a layer's site."""
    if not places:
        return nullcontext()
    target, architecture = model.target_layer if layer is None else layer, model.architecture
    module = architecture.blocks[target] if site == "block" else architecture.matrix(target)

    def put(hidden: Tensor) -> Tensor:
        where, columns = torch.tensor([place[:2] for place in places], device=hidden.device).T
        outputs = torch.stack([output for *_, output in places]).to(hidden)
        return hidden.index_put((where, columns), outputs)

    return change_output(module, put, rows)


def shared_beginnings(distinct: Sequence[Ids]) -> list[Ids]:
    """Return, for each of several sorted distinct sequences, the beginning that it shares with a neighbor."""
    common = [0, *(_common(one, other) for one, other in itertools.pairwise(distinct)), 0]
    return [ids[: max(common[i], common[i + 1])] for i, ids in enumerate(distinct)]


def _common(one: Ids, other: Ids) -> int:
    """Return the length of the common prefix of two sequences."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count
