"""Where a batch is written: which of the edited layers, in which passes, and where its targets live."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from lke_lightning.step import Placement

DryRun = Callable[[int], list[float]]
"""Edits each request of a batch alone, at one layer, without a trace: from the layer to the relative change of its
weight for each of them, |D|_F / |W|_F; infinite for one that cannot be edited there."""


class LayerPolicy(ABC):
    """Chooses the layers of each batch. No layer may be in two passes of a batch, nor in two lists of layers of one."""

    def among(self, layers: Sequence[int]) -> list[int]:
        """Return those of the configured layers that a run edits at all; of these again, all."""
        return list(layers)

    @abstractmethod
    def choose(self, layers: Sequence[int], requests: int, dry_run: DryRun) -> list[Placement]:
        """Return the passes of a batch, in order; the targets of each are found after the one before was written.

        Args:
            layers: those that the run edits, ascending.
            requests: how many there are in the batch.
            dry_run: see `DryRun`.
        """


class AllLayers(LayerPolicy):
    """MEMIT's: one pass, in which every request is spread over all layers, its target at the last."""

    def choose(self, layers: Sequence[int], requests: int, dry_run: DryRun) -> list[Placement]:
        """Return the one pass."""
        return [[tuple(layers)] * requests]


class MiddleLayer(AllLayers):
    """The middle one of the configured layers, of two the upper: for methods of a single layer (ROME, EMMET)."""

    def among(self, layers: Sequence[int]) -> list[int]:
        """Return the middle."""
        return list(layers)[len(layers) // 2 : len(layers) // 2 + 1]


class LastLayer(AllLayers):
    """The last one of the configured layers: for memories beside the network."""

    def among(self, layers: Sequence[int]) -> list[int]:
        """Return the last."""
        return list(layers)[-1:]


class BoundaryLayers(LayerPolicy):
    """BLUE (arXiv 2502.03748): first the lowest layer, then the highest, each with targets of its own, in full.

    The targets of the second pass are found on the model that the first one has edited.
    """

    def among(self, layers: Sequence[int]) -> list[int]:
        """Return the lowest and the highest."""
        return sorted({*layers[:1], *layers[-1:]})

    def choose(self, layers: Sequence[int], requests: int, dry_run: DryRun) -> list[Placement]:
        """Return a pass for each."""
        return [[(layer,)] * requests for layer in layers]


class LeastChange(LayerPolicy):
    """WilKE (arXiv 2402.10987): each request goes into the layer whose weight it changes least, |D|_F / |W|_F.

    All configured layers are candidates, so that stage one runs once for each and once more. A batch of several
    requests is tried on the model that it finds, each request alone, and written layer by layer from below.
    """

    def choose(self, layers: Sequence[int], requests: int, dry_run: DryRun) -> list[Placement]:
        """Return one pass, with one layer for each request; of equals the lowest."""
        changes = [dry_run(layer) for layer in layers]
        best = [min(range(len(layers)), key=column.__getitem__) for column in zip(*changes, strict=True)]
        return [[(layers[place],) for place in best]]
