"""One edit batch on its way through the two stages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lke_lightning.edits import EditBatch, EditRequest
from lke_lightning.model.targets import Targets
from lke_lightning.model.units import Expansion, Whole

SUPERSEDED = "a later edit of its batch states the same fact"
NOT_FINITE = "its optimisation gave no finite numbers"


Placement = list[tuple[int, ...]]
"""One pass over the edited layers: for each request of a batch those that it is spread over, ascending; its target is
found at the last."""


@dataclass(frozen=True)
class Arrival:
    """How much of a batch is in the weights after it was written, one entry per request, on the bare prompts."""

    written: list[float] | None
    """Which part of the way from the output before to the target the output at the target's site has gone; 1: all.
    Also 0 where the output is not finite. `None`: there were no targets."""
    first_choice: list[bool]
    """Whether each token of the target is the model's first choice, given those before it."""


@dataclass
class EditStep:
    """What is known of one edit batch: stage one makes it, stage two writes it, everything after it reads it."""

    requests: tuple[EditRequest, ...]
    """What is edited: the batch without what is left out."""
    targets: Targets
    """What these requests ask of the layers; where the batch is written several times, what was found last."""
    contexts: Sequence[str]
    """Context templates that the targets hold in, `"{}"` first."""
    left_out: list[tuple[EditRequest, str]] = field(default_factory=list)
    """Requests of the batch that are not edited, each with the reason."""
    fulfilment: dict[int, Tensor] = field(default_factory=dict)
    """By layer, the share of each edit that the solve would write if it were the only one, the mean over its units,
    (requests,) float64; NaN where it is not written into the layer."""
    later: list[Placement] = field(default_factory=list)
    """Where it is still to be written, after what `targets` say: the targets for it are found when that is done."""
    passes: list[Placement] = field(default_factory=list)
    """Where it is written in a round; every round writes where the first did."""
    rounds: int = 1
    """How often the whole batch was edited."""
    scores: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """What the scorecard found just after the batch was written, by id and kind."""
    arrival: Arrival | None = None
    """How much of it arrived; `None`: nothing was written, or nobody has looked."""
    taken_back: str | None = None
    """Why stage two took the whole batch back, if it did."""
    memory: dict[str, Tensor] = field(default_factory=dict)
    """What the parts of stage one remember of the batches up to this one, if it is kept."""
    expansion: Expansion = field(default_factory=Whole)
    """Which units each request has."""

    @classmethod
    def of(cls, batch: EditBatch, targets: Targets, contexts: Sequence[str]) -> EditStep:
        """Start a step from what stage one found for a batch; what is not finite is left out."""
        step = cls(batch.requests, targets, contexts, [(request, SUPERSEDED) for request in batch.superseded])
        step.leave_out([i for i, is_finite in enumerate(targets.are_finite()) if not is_finite], NOT_FINITE)
        return step

    @classmethod
    def joined(cls, parts: Sequence[EditStep], whole: EditStep, left_out: list[tuple[EditRequest, str]]) -> EditStep:
        """Put together what is left of a batch that was edited again in parts.

        Args:
            parts: those that were kept.
            whole: the batch as it was edited at first.
            left_out: the requests that were not kept, each with the reason.
        """
        targets = whole.targets.joined([part.targets for part in parts]) if parts else whole.targets.chosen([])
        requests = tuple(request for part in parts for request in part.requests)
        lost = [*whole.left_out, *(reason for part in parts for reason in part.left_out), *left_out]
        written = [part.fulfilment for part in parts if part.requests]
        shares = {layer: torch.cat([part[layer] for part in written]) for layer in whole.fulfilment if written}
        rounds = max([part.rounds for part in parts], default=whole.rounds)
        return cls(requests, targets, whole.contexts, lost, shares, rounds=rounds, expansion=whole.expansion)

    def __len__(self) -> int:
        """Count the requests that are edited."""
        return len(self.requests)

    def chosen(self, places: Sequence[int]) -> EditStep:
        """Return some of the requests, by their places, with their targets; of the rest, what it was."""
        return replace(
            self, requests=tuple(self.requests[place] for place in places), targets=self.targets.chosen(places)
        )

    def leave_out(self, numbers: Sequence[int], reason: str) -> None:
        """Take some requests, by their place in the batch, out of it."""
        kept = [i for i in range(len(self.requests)) if i not in set(numbers)]
        self.left_out += [(self.requests[i], reason) for i in numbers]
        self.requests, self.targets = tuple(self.requests[i] for i in kept), self.targets.chosen(kept)
        self.fulfilment = {layer: shares[kept] for layer, shares in self.fulfilment.items() if kept}

    def take_back(self, reason: str) -> None:
        """Take all requests out of the batch, because stage two took back what it wrote."""
        self.leave_out(range(len(self.requests)), reason)
        self.taken_back = reason

    def layers(self, edited: Sequence[int]) -> list[tuple[int, ...]]:
        """Return the layers that each request is written into, given all edited ones."""
        return self.targets.layers or [tuple(edited)] * len(self)

    def by_layers(self, edited: Sequence[int]) -> list[tuple[tuple[int, ...], list[int]]]:
        """Group the requests, by their places, by the layers that they are written into, lowest layers first."""
        of_each = self.layers(edited)
        return [(layers, [i for i, own in enumerate(of_each) if own == layers]) for layers in sorted(set(of_each))]

    @property
    def shares(self) -> dict[int, float]:
        """The median fulfilment of each layer that something was written into."""
        medians = {layer: shares.nanmedian().item() for layer, shares in self.fulfilment.items()}
        return {layer: share for layer, share in medians.items() if not math.isnan(share)}

    @property
    def loss(self) -> float:
        """Mean loss of the targets; 0 where no request is left."""
        return sum(self.targets.losses) / len(self.requests) if self.requests else 0.0
