"""The two stages of a method, and what they do to one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lke_lightning.edits import EditBatch, EditError, EditRequest
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.model.targets import Targets
from lke_lightning.stage_one.optimization import TargetOptimization
from lke_lightning.stage_one.rows import grouped
from lke_lightning.stage_two.register import Register
from lke_lightning.stage_two.update import WeightUpdate
from lke_lightning.step import EditStep, Placement


@dataclass(frozen=True)
class Stages:
    """The two stages of a method."""

    one: TargetOptimization
    two: WeightUpdate

    @classmethod
    def among(cls, callbacks: Sequence[Any]) -> Stages:
        """Find the stages among the callbacks of a trainer.

        Raises:
            EditError: one of them is missing, is there twice, or stage two acts first.
        """
        found = [part for part in callbacks if isinstance(part, (TargetOptimization, WeightUpdate))]
        if [type(part) for part in found] != [TargetOptimization, WeightUpdate]:
            names = ", ".join(type(part).__name__ for part in found) or "neither"
            raise EditError(f"a trainer needs one TargetOptimization and, behind it, one WeightUpdate; it has {names}")
        return cls(*found)

    def prepare(self, model: LanguageModel, requests: Sequence[EditRequest]) -> None:
        """Do what comes before the first batch: check the requests, sample contexts, read statistics.

        Raises:
            EditError: a request cannot be encoded, or there are no statistics.
        """
        self.one.prepare(model, requests)
        self.two.prepare(model, requests, self.one.contexts)

    def edit(self, model: LanguageModel, batch: EditBatch, register: Register) -> EditStep:
        """Find the targets of a batch and write them into the weights; a run does the same in two hooks."""
        step = self.aim(model, batch)
        self.two.write(model, step, register, self.again)
        return step

    def aim(self, model: LanguageModel, batch: EditBatch) -> EditStep:
        """Choose the layers of a batch and find its first targets; a request without finite numbers is left out."""
        first, *later = self._placements(model, batch.requests)
        targets = self._targets(model, batch.requests, first)
        step = EditStep.of(batch, targets, self.one.contexts)
        kept = [place for place, is_finite in enumerate(targets.are_finite()) if is_finite]
        step.later = [placement.chosen(kept) for placement in later]
        for request, reason in step.left_out:
            rank_zero_warn(f"edit {request.id} is left out: {reason}")
        return step

    def again(self, model: LanguageModel, step: EditStep) -> bool:
        """Find the targets of a batch's next pass, on the model as it is; return whether there is one."""
        if not step.later and not self._begins_round(model, step):
            return False
        targets = self._targets(model, step.requests, step.later.pop(0))
        if not all(targets.are_finite()):
            rank_zero_warn("a batch stays as it was written first: further targets of it are not finite")
            step.later = []
            return False
        step.targets = targets
        return True

    def _begins_round(self, model: LanguageModel, step: EditStep) -> bool:
        """Edit the whole batch once more, unless that was done often enough."""
        repeat = self.two.repeat
        if repeat is None or step.rounds >= repeat.rounds:
            return False
        if repeat.is_settled([nll for _, nll in step.targets.nlls], self.one.present_nlls(model, step)):
            return False
        step.rounds, step.later = step.rounds + 1, self._placements(model, step.requests)
        return True

    def _placements(self, model: LanguageModel, requests: Sequence[EditRequest]) -> list[Placement]:
        def dry_run(layer: int) -> tuple[Targets, Tensor]:
            targets = self.one.optimize(model, requests, self.one.contexts, layer)
            return targets, self.two.relative_changes(model, requests, self.one.contexts, targets, layer)

        policy = self.two.placement
        found = policy.choose(policy.among(model.layers), len(requests), dry_run)
        used = [layer for placement in found for layers in set(placement.layers) for layer in layers]
        if len(used) > len(set(used)):
            raise EditError(f"{type(policy).__name__} writes a layer twice in one batch: each may be in one pass only")
        return found

    def _targets(self, model: LanguageModel, requests: Sequence[EditRequest], placement: Placement) -> Targets:
        """Find the targets of a pass, at the last of each request's layers, unless they are known."""
        targets = placement.targets
        if targets is None:
            groups = grouped([layers[-1] for layers in placement.layers])
            found = [
                self.one.optimize(
                    model, [requests[i] for i in group], self.one.contexts, placement.layers[group[0]][-1]
                )
                for group in groups
            ]
            order = [place for group in groups for place in group]
            targets = Targets.joined(found).chosen(sorted(range(len(order)), key=order.__getitem__))
        return replace(targets, layers=placement.layers)
