"""In which order the edits of a batch are learnt."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from lke_lightning.edits import check_number


class Order(ABC):
    """Divides a batch, by the places of its edits, into parts that are learnt one after the other."""

    @abstractmethod
    def parts(self, count: int) -> list[list[int]]:
        """Return the parts of a batch of so many edits; each is learnt to its end, with an optimiser of its own."""

    @abstractmethod
    def epoch(self, part: list[int], draw: torch.Generator) -> list[list[int]]:
        """Divide a part into the minibatches of an epoch, a step each."""


class DepthFirst(Order):
    """So many edits are learnt to their end before the next ones begin; all minibatches of a part are the part.

    Args:
        size: edits of a part; `None`: the whole batch.
    """

    def __init__(self, size: int | None = None) -> None:
        check_number("DepthFirst.size", 1 if size is None else size, at_least=1)
        self.size = size

    def parts(self, count: int) -> list[list[int]]:
        """Cut the batch."""
        return _cut(list(range(count)), self.size or count)

    def epoch(self, part: list[int], draw: torch.Generator) -> list[list[int]]:
        """Return the part."""
        return [part]


class BreadthFirst(Order):
    """Every epoch goes through all edits of the batch, in minibatches that are shuffled anew (arXiv 2509.22072).

    Args:
        size: edits of a minibatch.
    """

    def __init__(self, size: int = 100) -> None:
        check_number("BreadthFirst.size", size, at_least=1)
        self.size = size

    def parts(self, count: int) -> list[list[int]]:
        """Return one part."""
        return [list(range(count))]

    def epoch(self, part: list[int], draw: torch.Generator) -> list[list[int]]:
        """Shuffle and cut the part."""
        shuffled = [part[place] for place in torch.randperm(len(part), generator=draw).tolist()]
        return [sorted(minibatch) for minibatch in _cut(shuffled, self.size)]


def _cut(places: list[int], size: int) -> list[list[int]]:
    return [places[start : start + size] for start in range(0, len(places), size)]
