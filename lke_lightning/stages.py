"""The two stages of a method, and what they do to one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Callback

from lke_lightning.edits import EditBatch, EditError, EditRequest
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.stage_one.gradients import OutputGradients  # noqa: F401 - its name is known where this is imported
from lke_lightning.stage_one.optimization import TargetOptimization
from lke_lightning.stage_one.stage import StageOne
from lke_lightning.stage_two.register import Register
from lke_lightning.stage_two.update import Mark, WeightUpdate
from lke_lightning.step import EditStep

SLOTS: dict[str, tuple[type[Callback], type[Callback]]] = {"stage_one": (StageOne, TargetOptimization)}
"""The sections of a configuration whose class can be chosen: what it derives from, and which it is where none is named;
the options of the latter may stand in the section itself."""


@dataclass(frozen=True)
class Stages:
    """The two stages of a method.

    Raises:
        EditError: they do not go together.
    """

    one: StageOne
    two: WeightUpdate

    def __post_init__(self) -> None:
        """Check that stage two has what it needs of stage one."""
        if self.two.rest_weight is not None and not self.one.reads_texts:
            raise EditError(
                f"stage_two.rest_weight needs the texts of a batch read, and {type(self.one).__name__} has read them "
                "before: leave it out"
            )

    @classmethod
    def among(cls, callbacks: Sequence[Any]) -> Stages:
        """Find the stages among the callbacks of a trainer.

        Raises:
            EditError: one of them is missing, is there twice, or stage two acts first.
        """
        found = [part for part in callbacks if isinstance(part, (StageOne, WeightUpdate))]
        if [isinstance(part, StageOne) for part in found] != [True, False]:
            names = ", ".join(type(part).__name__ for part in found) or "neither"
            raise EditError(f"a trainer needs one stage one and, behind it, one WeightUpdate; it has {names}")
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
        step = self.one.aim(model, batch)
        self.two.write(model, step, register)
        self.one.settle(step)
        return step

    def mark(self, model: LanguageModel, register: Register) -> tuple[dict[str, Any], Mark]:
        """Mark the present state of both stages and of the weights, so that `roll_back` can return to it."""
        return self.one.state_dict(), self.two.mark(model, register)

    def roll_back(self, model: LanguageModel, register: Register, mark: tuple[dict[str, Any], Mark]) -> None:
        """Return to a moment of the run: weights bit for bit, memory to rounding; later edits are forgotten."""
        one, two = mark
        self.two.roll_back(model, register, two)
        self.one.load_state_dict(one)
