"""Tensors with a row for each edit, which grow with every batch."""

from __future__ import annotations

from torch import Tensor

ROOM = 1.5
"""How much larger than needed a tensor becomes when it is full: few copies, little waste."""


def appended(part: Tensor, new: Tensor) -> Tensor:
    """Append rows, in place if there is room; the given part must own its storage and is consumed."""
    count, size = len(part) + len(new), part.stride(0) * part.element_size()
    has_room = part.storage_offset() == 0 and part.untyped_storage().nbytes() >= count * size
    if not has_room:
        roomy = part.new_empty((int(count * ROOM), *part.shape[1:]))
        roomy[: len(part)] = part
        part = roomy[: len(part)]
    whole = part.as_strided((count, *part.shape[1:]), part.stride())
    whole[len(part) :] = new
    return whole


def without_room(part: Tensor) -> Tensor:
    """Return a tensor whose storage holds nothing but itself: what is saved is the storage."""
    return part if part.untyped_storage().nbytes() == part.numel() * part.element_size() else part.clone()
