"""Keys and values of tokens that never change, computed once and attended to at every step.

Tokens before a slot cannot see it, so nothing written at the slot changes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from lke_lightning.model.tokens import Padded, Row, TextEncoder


class _FrozenLayer(DynamicLayer):
    """A layer of a cache that is read and never extended: each forward sees the prefix and its own tokens."""

    def __init__(self, keys: Tensor | None, values: Tensor | None, length: int) -> None:
        super().__init__()
        self.keys, self.values, self.length = keys, values, length
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return torch.cat([self.keys, key_states], dim=-2), torch.cat([self.values, value_states], dim=-2)

    def get_seq_length(self) -> int:
        return self.length


class PrefixCache(Cache):
    """Frozen keys and values of the rows' prefixes, for all layers of a network.

    Args:
        layers: one per block; layers that will not be run may hold nothing.
        mask: 1 for real tokens, 0 for padding on the left, (rows, prefix length), int64.
    """

    def __init__(self, layers: list[_FrozenLayer], mask: Tensor) -> None:
        super().__init__(layers=layers)
        self.mask = mask

    def select(self, rows: Tensor) -> PrefixCache:
        """Keep some rows."""
        kept = [
            layer if layer.keys is None else _FrozenLayer(layer.keys[rows], layer.values[rows], layer.length)
            for layer in self.layers
        ]
        return PrefixCache(kept, self.mask[rows])

    def above(self, start: int) -> PrefixCache:
        """Let go of the layers below block `start`."""
        kept = [layer if i >= start else _FrozenLayer(None, None, layer.length) for i, layer in enumerate(self.layers)]
        return PrefixCache(kept, self.mask)


@torch.no_grad()
def continue_prefixes(network: nn.Module, text: TextEncoder, rows: Sequence[Row]) -> Padded:
    """Run all tokens before the slots and return what follows, as a batch that continues them.

    In the result each row starts at its slot. Prefixes end where their rows go on, so that distances between tokens
    are the true ones: sliding windows count them.

    Args:
        network: the language model.
        text: its tokens.
        rows: the rows; slots differ, also 0.
    """
    device = network.device
    ids, mask = (part.to(device) for part in text.align([row.ids[row.slot :] for row in rows]))
    slots = torch.tensor([row.slot for row in rows], device=device)
    positions = slots.unsqueeze(1) + torch.arange(ids.shape[1], device=device)
    length = int(slots.max())
    if length == 0:
        return Padded(ids, mask, torch.zeros_like(slots))
    before, real = (part.to(device) for part in text.align([row.ids[: row.slot] for row in rows]))
    cache = DynamicCache()
    network(
        input_ids=before,
        attention_mask=torch.ones_like(real),  # padding on the right is seen by no real token
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    source = torch.arange(length, device=device) - (length - slots).unsqueeze(1)  # right-aligned; below 0 is padding
    layers = [
        _FrozenLayer(_align_right(layer.keys, source), _align_right(layer.values, source), length)
        for layer in cache.layers
    ]
    past = PrefixCache(layers, (source >= 0).long())
    return Padded(ids, mask, torch.zeros_like(slots), positions, past)


def _align_right(states: Tensor, source: Tensor) -> Tensor:
    """Move (rows, heads, length, size) along the length, by source index (rows, length); zero where it is negative."""
    index = source.clamp(min=0)[:, None, :, None].expand_as(states)
    return states.gather(2, index).masked_fill((source < 0)[:, None, :, None], 0)
