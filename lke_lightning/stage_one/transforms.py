"""Changes of targets after they were found and before they are written."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from lke_lightning.edits import SLOT, EditError, EditRequest, check_number
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.model.reading import SlotReader
from lke_lightning.model.targets import Site, Targets

ENOUGH = 20
"""Fewer norms than this are a poor mean, of which the largest 5 % cannot be left out."""


@dataclass(frozen=True)
class Found:
    """What stage one found for some requests, at the slots of their bare prompts; each (requests, hidden size)."""

    change: Tensor
    """delta, the target without `initial`."""
    initial: Tensor
    """The unchanged activation where the target lives."""
    output: Tensor
    """The unchanged output of the target layer's matrix; `initial` itself where targets live there."""

    @classmethod
    @torch.no_grad()
    def of(cls, model: LanguageModel, requests: Sequence[EditRequest], targets: Targets) -> Found:
        """Read what the targets of some requests were before any change, under the model's present weights."""
        reader, bare = SlotReader(model, requests, [SLOT]), torch.ones(1)
        reader.keys(model.target_layer, [bare])  # what follows runs the target layer alone
        matrix = reader.outputs("matrix", bare)
        initial = matrix if targets.site == "matrix" else reader.outputs("block", bare)
        return cls(targets.vectors - initial, initial, matrix)

    @classmethod
    def joined(cls, parts: Sequence[Found]) -> Found:
        """Concatenate what was found for several lists of requests."""
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in ("change", "initial", "output")))


Pilot = Callable[[int], Found]
"""Finds the targets of so many of the first edits of a run, under the unedited weights."""


class TargetTransform(ABC):
    """Changes targets, or drops edits, once stage one has found what they ask for."""

    sample: int = 0
    """Of how many edits `prepared` finds the targets."""

    def prepared(self, memory: dict[str, Tensor], model: LanguageModel, site: Site, pilot: Pilot) -> dict[str, Tensor]:
        """Return the memory of stage one with what the transform has to know of the unedited model.

        Args:
            memory: what is known so far; kept as it is where it has all, as in a run that continues.
            model: the language model, with its present weights.
            site: where targets live.
            pilot: see `Pilot`.
        """
        return memory

    @abstractmethod
    def __call__(self, found: Found, memory: dict[str, Tensor]) -> tuple[Tensor, dict[int, str]]:
        """Return the deltas to write, (requests, hidden size), and the edits to drop, by place, each with a reason."""


class NormAnchor(TargetTransform):
    """NAS: what is asked of the matrix has the norm that is asked of it in the unedited model (arXiv 2602.02543).

    With v0 the matrix's output at the slot and v* = v0 + delta, the anchor is the mean of |v*| over some edits of the
    unedited model, without the largest. Then v* is scaled to the anchor, or the edit is dropped where |v*| exceeds
    gate * anchor; what is shorter than the anchor is stretched to it. The unedited model never changes, so the scale
    cannot grow with the weights.

    The anchor's targets are found as those of the run are, each request with its own stop; the published pilot stops
    16 requests together. A published drop still writes the present output at its key; here the edit is left out.

    Args:
        norm: the anchor, where it is known; then nothing is found before the first batch.
        sample: the anchor is that of so many of the first edits of the run, which costs as much as stage one of
            them. Published: 1,000 of CounterFact.
        gate: how many times the anchor an output asked for may be; lower drops more edits.
        drop: share of the largest norms that the mean leaves out, rounded down.
    """

    def __init__(self, norm: float | None = None, sample: int = 100, gate: float = 2.0, drop: float = 0.05) -> None:
        check_number("NormAnchor.norm", 1 if norm is None else norm, above=0)
        check_number("NormAnchor.sample", sample, at_least=1)
        check_number("NormAnchor.gate", gate, at_least=1)
        check_number("NormAnchor.drop", drop, at_least=0, below=1)
        self.norm, self.sample, self.gate, self.drop = norm, sample, gate, drop

    def prepared(self, memory: dict[str, Tensor], model: LanguageModel, site: Site, pilot: Pilot) -> dict[str, Tensor]:
        """Find the anchor, unless it is known.

        Raises:
            EditError: a norm stands behind the matrix and targets live behind that norm; or no target is finite.
        """
        if site == "block" and model.site == "matrix":
            raise EditError(
                "NormAnchor measures what is asked of the edited matrix, and behind this model's stands a norm: set "
                "stage_one.site to matrix, or leave it out"
            )
        if "anchor" in memory:
            return memory
        anchor = self.norm
        if anchor is None:
            found = pilot(self.sample)
            norms = (found.output + found.change).norm(dim=1).double()
            norms = norms[norms.isfinite()].sort().values
            if not len(norms):
                raise EditError("NormAnchor found no finite target to measure: lower stage_one.relative_lr (or lr)")
            if len(norms) < ENOUGH:
                rank_zero_warn(
                    f"the norm anchor is a mean of {len(norms)} edits only, and later edits keep to it: give "
                    "stage_one.transform.norm, or begin with more edits"
                )
            anchor = norms[: len(norms) - int(self.drop * len(norms))].mean().item()
            rank_zero_info(f"Norm anchor: {anchor:.4g}, from {len(norms)} edits of the unedited model")
        return {**memory, "anchor": torch.tensor(anchor, dtype=torch.float64)}

    def __call__(self, found: Found, memory: dict[str, Tensor]) -> tuple[Tensor, dict[int, str]]:
        """Scale what is asked of the matrix; an output of zero has no direction and stays."""
        anchor, asked = memory["anchor"].item(), found.output + found.change
        norms = asked.norm(dim=1, keepdim=True)
        return asked * torch.where(norms > 0, anchor / norms, 1) - found.output, {
            i: f"it asks for an output of norm {norm:.3g}, more than {self.gate:g} times the anchor {anchor:.3g} "
            "(NormAnchor.gate)"
            for i, norm in enumerate(norms.squeeze(1).tolist())
            if norm > self.gate * anchor
        }
