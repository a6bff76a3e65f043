"""How the keys of an edit are averaged over its contexts."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class KeyPolicy(ABC):
    """The weight of each context, the bare prompt first, in an average; weights sum to 1."""

    @abstractmethod
    def key_weights(self, contexts: int, reference_quirks: bool) -> Tensor:
        """Return the weights (contexts,) whose average of keys is the key of an edit."""

    @abstractmethod
    def anchor_weights(self, contexts: int) -> Tensor:
        """Return the weights (contexts,) of the keys, and present outputs, that the target is compared with."""


class ContextMean(KeyPolicy):
    """The mean over all contexts, as in MEMIT's paper; the target is compared on the bare prompt.

    The published code averages in two levels, so the bare prompt has weight one half (`reference_quirks`).
    """

    def key_weights(self, contexts: int, reference_quirks: bool) -> Tensor:
        """Weigh all contexts alike."""
        if not reference_quirks or contexts == 1:
            return _uniform(contexts)
        weights = torch.full((contexts,), 0.5 / (contexts - 1), dtype=torch.float64)
        weights[0] = 0.5
        return weights

    def anchor_weights(self, contexts: int) -> Tensor:
        """Take the bare prompt."""
        return _bare(contexts)


class MixedKeys(KeyPolicy):
    """ROME: the direction uses the mean over contexts, the equality the bare prompt.

    This mix is the reason that some single edits disable a model; see `ConsistentKeys`.
    """

    def key_weights(self, contexts: int, reference_quirks: bool) -> Tensor:
        """Weigh all contexts alike."""
        return _uniform(contexts)

    def anchor_weights(self, contexts: int) -> Tensor:
        """Take the bare prompt."""
        return _bare(contexts)


class ConsistentKeys(KeyPolicy):
    """r-ROME (arXiv 2403.07175): the mean over contexts everywhere."""

    def key_weights(self, contexts: int, reference_quirks: bool) -> Tensor:
        """Weigh all contexts alike."""
        return _uniform(contexts)

    def anchor_weights(self, contexts: int) -> Tensor:
        """Weigh all contexts alike."""
        return _uniform(contexts)


def _uniform(contexts: int) -> Tensor:
    return torch.full((contexts,), 1 / contexts, dtype=torch.float64)


def _bare(contexts: int) -> Tensor:
    weights = torch.zeros(contexts, dtype=torch.float64)
    weights[0] = 1
    return weights
