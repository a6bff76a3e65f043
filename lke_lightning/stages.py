"""The two stages of a method, and what they do to one batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_warn

from lke_lightning.edits import EditBatch, EditError, EditRequest
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.stage_one.gradients import OutputGradients  # noqa: F401 - its name is known where this is imported
from lke_lightning.stage_one.optimization import TargetOptimization
from lke_lightning.stage_one.stage import StageOne
from lke_lightning.stage_one.texts_alone import TextsAlone  # noqa: F401 - likewise
from lke_lightning.stage_two.decoding import Decoding  # noqa: F401 - likewise
from lke_lightning.stage_two.fine_tuning import FineTuning  # noqa: F401 - likewise
from lke_lightning.stage_two.in_context import InContext  # noqa: F401 - likewise
from lke_lightning.stage_two.memories import Grace  # noqa: F401 - and those of the other memories
from lke_lightning.stage_two.register import Register
from lke_lightning.stage_two.stage import StageTwo
from lke_lightning.stage_two.update import WeightUpdate
from lke_lightning.step import SUPERSEDED, EditStep, Placement

SLOTS: dict[str, tuple[type[Callback], type[Callback]]] = {
    "stage_one": (StageOne, TargetOptimization),
    "stage_two": (StageTwo, WeightUpdate),
}
"""The sections of a configuration whose class can be chosen: what it derives from, and which it is where none is named;
the options of the latter may stand in the section itself."""


@dataclass(frozen=True)
class Stages:
    """The two stages of a method.

    Raises:
        EditError: they do not go together.
    """

    one: StageOne
    two: StageTwo

    def __post_init__(self) -> None:
        """Check that stage two has what it needs of stage one."""
        self.two.check(self.one)

    @classmethod
    def among(cls, callbacks: Sequence[Any]) -> Stages:
        """Find the stages among the callbacks of a trainer.

        Raises:
            EditError: one of them is missing, is there twice, or stage two acts first.
        """
        found: list[Any] = [part for part in callbacks if isinstance(part, (StageOne, StageTwo))]
        if [isinstance(part, StageOne) for part in found] != [True, False]:
            names = ", ".join(type(part).__name__ for part in found) or "neither"
            raise EditError(f"a trainer needs one stage one and, behind it, one stage two; it has {names}")
        return cls(*found)

    def prepare(self, model: LanguageModel, requests: Sequence[EditRequest]) -> None:
        """Do what comes before the first batch: check the requests, sample contexts, read statistics.

        Raises:
            EditError: a request cannot be encoded, or there are no statistics.
        """
        self.one.prepare(model, requests)
        self.two.prepare(model, requests, self.one.contexts, self.one.expansion)

    def edit(self, model: LanguageModel, batch: EditBatch, register: Register) -> EditStep:
        """Find the targets of a batch and write them into the weights; a run does the same in two hooks."""
        step = self.aim(model, batch)
        self.two.write(model, step, register, self.again)
        self.one.settle(step)
        return step

    def aim(self, model: LanguageModel, batch: EditBatch) -> EditStep:
        """Choose the layers of a batch, and find the targets of its first pass.

        Raises:
            EditError: a layer is chosen twice.
        """
        passes = self._passes(model, batch.requests)
        step = self._aim(model, batch, passes[0])
        places = [batch.requests.index(request) for request in step.requests]
        step.passes = [[placement[place] for place in places] for placement in passes]
        step.later = step.passes[1:]
        return step

    def again(self, model: LanguageModel, step: EditStep) -> bool:
        """Find the targets of a batch's next pass, on the model as it is; return whether there is one."""
        if not step.later and not self._begins_round(model, step):
            return False
        found = self._aim(model, EditBatch(step.requests), step.later.pop(0))
        if len(found) < len(step):
            rank_zero_warn("a batch stays as it is written so far: later targets of some of its edits cannot be used")
            step.later = []
            return False
        step.targets = found.targets.chosen([found.requests.index(request) for request in step.requests])
        step.memory = found.memory
        return True

    def _begins_round(self, model: LanguageModel, step: EditStep) -> bool:
        """Edit the whole batch once more, unless it has arrived or that was done often enough."""
        repeat = self.two.repeat
        if repeat is None or step.rounds >= repeat.rounds:
            return False
        one: Any = self.one  # `check` has seen that it has these
        if repeat.is_settled([nll for _, nll in step.targets.nlls or ()], one.present_nlls(model, step)):
            return False
        step.rounds, step.later = step.rounds + 1, list(step.passes)
        return True

    def _passes(self, model: LanguageModel, requests: Sequence[EditRequest]) -> list[Placement]:
        def dry_run(layer: int) -> list[float]:
            step = self.one.aim(model, EditBatch(requests), layer)
            two: Any = self.two  # one with such a policy has these
            changes = two.relative_changes(model, step, layer)
            found = {request.id: change for request, change in zip(step.requests, changes, strict=True)}
            return [found.get(request.id, math.inf) for request in requests]

        policy = self.two.placement
        passes = policy.choose(policy.among(model.layers), len(requests), dry_run)
        used = [layer for placement in passes for layers in set(placement) for layer in layers]
        if len(used) > len(set(used)):
            raise EditError(f"{type(policy).__name__} writes a layer twice in one batch: each may be in one pass only")
        return passes

    def _aim(self, model: LanguageModel, batch: EditBatch, placement: Placement) -> EditStep:
        """Find the targets of one pass, of requests with the same layers together."""
        parts = []
        for layers in sorted(set(placement)):
            members = [request for request, own in zip(batch.requests, placement, strict=True) if own == layers]
            is_whole = len(members) == len(batch)
            part = self.one.aim(model, batch if is_whole else EditBatch(members), layers[-1])
            part.targets = replace(part.targets, layers=[layers] * len(part))
            parts.append(part)
        if len(parts) == 1:
            return parts[0]
        none = replace(parts[0].chosen([]), left_out=[(request, SUPERSEDED) for request in batch.superseded])
        step = EditStep.joined(parts, none, [])
        step.memory = parts[-1].memory
        return step.chosen(sorted(range(len(step)), key=lambda i: batch.requests.index(step.requests[i])))

    def mark(self, model: LanguageModel, register: Register) -> tuple[dict[str, Any], Any]:
        """Mark the present state of both stages and of the weights, so that `roll_back` can return to it."""
        return self.one.state_dict(), self.two.mark(model, register)

    def roll_back(self, model: LanguageModel, register: Register, mark: tuple[dict[str, Any], Any]) -> None:
        """Return to a moment of the run: the model bit for bit, memory to rounding; later edits are forgotten."""
        one, two = mark
        self.two.roll_back(model, register, two)
        self.one.load_state_dict(one)
