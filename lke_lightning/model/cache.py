"""Batches of token rows, and the keys and values of their prefixes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import Cache, DynamicLayer


class _WriteBehind(torch.autograd.Function):
    """Write new states behind the prefix, into the same memory at every pass, and return the whole."""

    @staticmethod
    def forward(ctx: Any, room: Tensor, states: Tensor) -> Tensor:
        ctx.width = states.shape[-2]
        room[..., -ctx.width :, :] = states
        return room.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        return None, gradients[0][..., -ctx.width :, :]


class PrefixLayer(DynamicLayer):
    """Keys and values of one block: the first `length` columns are kept, later ones are overwritten by every forward.

    One forward at a time: its backward must finish before the next forward overwrites its states.

    Args:
        keys: (rows, heads, columns, head size), the prefix in the first `length` columns; `None`: nothing is known.
        values: the same of the values.
        length: columns of the prefix.
    """

    def __init__(self, keys: Tensor | None, values: Tensor | None, length: int) -> None:
        super().__init__()
        self.keys, self.values, self.length = keys, values, length
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write new keys and values behind the prefix and return the whole."""
        self.keys = self._with_room(self.keys, key_states)
        self.values = self._with_room(self.values, value_states)
        return _WriteBehind.apply(self.keys, key_states), _WriteBehind.apply(self.values, value_states)

    def _with_room(self, states: Tensor | None, new: Tensor) -> Tensor:
        length = self.length + new.shape[-2]
        if states is not None and states.shape[-2] == length:
            return states
        room = torch.empty((*new.shape[:-2], length, new.shape[-1]), dtype=new.dtype, device=new.device)
        if states is not None:
            room[..., : self.length, :] = states[..., : self.length, :]
        return room

    def get_seq_length(self) -> int:
        """Return the length of the prefix."""
        return self.length


class PrefixCache(Cache):
    """Keys and values of the rows' prefixes, for all blocks of a network.

    Args:
        layers: one per block; blocks that will not run may hold nothing.
        mask: 1 for real tokens, 0 for padding on the left, (rows, prefix length), int64.
    """

    layers: list[PrefixLayer]  # type: ignore[assignment]  # no others are ever put in

    def __init__(self, layers: list[PrefixLayer], mask: Tensor) -> None:
        super().__init__(layers=[*layers])
        self.mask = mask

    def select(self, rows: Tensor) -> PrefixCache:
        """Keep some rows."""
        kept = [
            layer
            if layer.keys is None or layer.values is None
            else PrefixLayer(layer.keys[rows], layer.values[rows], layer.length)
            for layer in self.layers
        ]
        return PrefixCache(kept, self.mask[rows])

    def above(self, start: int) -> PrefixCache:
        """Free the blocks below `start`."""
        kept = [layer if i >= start else PrefixLayer(None, None, layer.length) for i, layer in enumerate(self.layers)]
        return PrefixCache(kept, self.mask)


@dataclass(frozen=True)
class Padded:
    """Rows as one right-padded batch, possibly continuing prefixes that were run before."""

    ids: Tensor
    """(rows, length), int64."""
    mask: Tensor
    """1 for real tokens, 0 for padding, (rows, length), int64."""
    slots: Tensor
    """Index of each row's slot in `ids`, (rows,), int64."""
    positions: Tensor | None = None
    """Position of every token, (rows, length), int64; `None`: counted from 0."""
    past: PrefixCache | None = None
    """Keys and values of the prefixes."""
    offsets: Tensor | None = None
    """Where the prefixes are in `ids` instead: how many tokens of each row they take, (rows,), int64."""

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.slots)

    def select(self, rows: Tensor) -> Padded:
        """Keep some rows, in the order given, without the columns that are padding in all of them."""
        width = int(self.mask[rows].sum(1).max())
        return Padded(
            self.ids[rows, :width],
            self.mask[rows, :width],
            self.slots[rows],
            None if self.positions is None else self.positions[rows, :width],
            None if self.past is None else self.past.select(rows),
            None if self.offsets is None else self.offsets[rows],
        )

    def continued(self, tokens: Tensor, rows: Tensor) -> Padded:
        """Keep some rows, without a cache, and put the token that follows its one behind each; then that is its one.

        Args:
            tokens: what follows each of all rows, (rows before,) int64.
            rows: which are kept.
        """
        offsets = self.offsets[rows] + 1  # type: ignore[index]  # rows without a cache have them
        place = offsets.unsqueeze(1)
        ids = pad(self.ids[rows], (0, 1)).scatter(1, place, tokens[rows].unsqueeze(1))
        mask = pad(self.mask[rows], (0, 1)).scatter(1, place, torch.ones_like(place))
        return Padded(ids, mask, torch.zeros_like(offsets), offsets=offsets)
