"""What every stage two is: a callback that puts a batch into the model, and can take it out again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, ClassVar, Protocol

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from lke_lightning.edits import EditError, EditRequest
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.model.units import Expansion
from lke_lightning.progress import work
from lke_lightning.stage_two.arrival import Watch
from lke_lightning.stage_two.placement import AllLayers, LayerPolicy
from lke_lightning.stage_two.register import REPLACED, UNDONE, Register
from lke_lightning.stage_two.repeat import Repeat
from lke_lightning.stage_two.room import Space
from lke_lightning.stage_two.solvers import EditSystem
from lke_lightning.stage_two.statistics import Statistics
from lke_lightning.stage_two.transforms import ReadoutTransform
from lke_lightning.step import EditStep

Again = Callable[[LanguageModel, EditStep], bool]
"""Finds the targets that a batch is written with next, once it was written; returns whether there are any."""


class Finds(Protocol):
    """What a stage two may ask about a stage one."""

    @property
    def at_all_layers(self) -> bool:
        """See `StageOne`."""

    @property
    def has_targets(self) -> bool:
        """See `StageOne`."""

    @property
    def reads_texts(self) -> bool:
        """See `StageOne`."""


class StageTwo(Callback, ABC):
    """Puts what a batch asks into the model: into its weights, or into a module that stands beside them.

    What it changes is the change of the edited weights (`LanguageModel.weight`), in place, or modules beside the
    network (`LanguageModel.attach`); both are saved with the model. What else it has to remember of the edits is in
    `state_dict`. Nothing that it does may depend on the process: each of them carries out the same.
    """

    needs_targets: ClassVar[bool] = True
    """Whether it works for targets, and not from the texts alone."""
    USE: ClassVar[str] = "works for targets"
    """What it does with targets, said where stage one does not go with it."""
    memory: dict[int, dict[str, Tensor]]
    """What it remembers of the edits, by layer; nothing before `prepare`."""
    placement: LayerPolicy = AllLayers()
    """Which layers a batch is written into."""
    repeat: Repeat | None = None
    """When a batch is edited once more."""
    readout: ReadoutTransform | None = None
    """Applied to the total change of the weights when the model is scored or exported."""
    statistics: Statistics | None = None
    """Second moments of keys on ordinary text, where it uses any."""

    @property
    def state_key(self) -> str:
        """The name of its state in checkpoints: for any class that of the first there was."""
        return "WeightUpdate"

    @cached_property
    def watch(self) -> Watch:
        """What looks at each batch of a run after it was written."""
        return Watch()

    @property
    def strengths(self) -> dict[int, dict[str, float]]:
        """By layer, how strongly it holds to what the model was, in its own terms; for the scorecard."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return what it remembers."""
        memory = {str(layer): dict(memory) for layer, memory in self.memory.items()}
        return {"memory": memory, "statistics": {}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what the interrupted run remembered."""
        self.memory = {int(layer): dict(memory) for layer, memory in state_dict["memory"].items()}

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Set the editor's readout."""
        pl_module.readout = self.readout

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Make ready for the requests of the run."""
        one = pl_module.stages.one
        with work("Preparing stage two"):
            self.prepare(pl_module.language_model, trainer.datamodule.requests, one.contexts, one.expansion)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, _: torch.optim.Optimizer) -> None:
        """Put the batch into the model."""
        pl_module.carry_out(pl_module.stages)

    def check(self, one: Finds) -> None:
        """Raise `EditError` unless it can do with what this stage one finds."""
        own, other = f"{type(self).__name__} {self.USE}", type(one).__name__
        if self.needs_targets and not one.has_targets:
            raise EditError(f"{own}, and {other} finds none: take TargetOptimization")
        if one.has_targets and not self.needs_targets:
            raise EditError(f"{own} of {other}: set stage_one to TextsAlone")

    def spaces(self, shapes: Sequence[tuple[int, int]], edits: int, wide: int, on_gpu: bool) -> list[Space]:
        """Return what it will hold, beside the edited matrices and their change.

        Args:
            shapes: (d_out, d_key) of each edited matrix.
            edits: how many edits the run will make.
            wide: bytes of a number of the change.
            on_gpu: whether the model is on another device than the host.
        """
        return []

    @abstractmethod
    def prepare(
        self,
        model: LanguageModel,
        requests: Sequence[EditRequest] = (),
        contexts: Sequence[str] = ("{}",),
        expansion: Expansion | None = None,
    ) -> None:
        """Make ready for requests; once is enough, also on a run that continues, whose state was loaded before.

        Args:
            model: the language model.
            requests: the edits to come.
            contexts: templates, `"{}"` first.
            expansion: which units each request has; default: one.

        Raises:
            EditError: it cannot edit this model, or not go on with what was loaded.
        """

    def carry_out(self, model: LanguageModel, step: EditStep, register: Register, again: Again | None = None) -> None:
        """Write a batch of a run, and look at what became of it; see `write` and `Watch`.

        Raises:
            EditError: as `write`, or too little of several batches in a row was written.
        """
        systems = self.write(model, step, register, again)
        self.watch.look(model, step, register, systems)

    @abstractmethod
    def write(
        self, model: LanguageModel, step: EditStep, register: Register, again: Again | None = None
    ) -> dict[int, EditSystem]:
        """Put a batch into the model, and enter its edits into the register; or take all of it back, and say so in it.

        Args:
            model: the language model.
            step: the edits and what stage one found.
            register: the edits made so far.
            again: see `Again`; `None`: the batch is written once.

        Returns:
            What was solved for in each layer, if anything was.

        Raises:
            EditError: numbers are not finite; nothing is changed then.
        """

    @abstractmethod
    def mark(self, model: LanguageModel, register: Register) -> Any:
        """Mark the present state, so that `roll_back` can return to it."""

    @abstractmethod
    def roll_back(self, model: LanguageModel, register: Register, mark: Any) -> None:
        """Return to a moment of the run: what the model does bit for bit; later edits are forgotten."""

    @abstractmethod
    def revert(self, model: LanguageModel, register: Register) -> None:
        """Undo all edits, by any method: the model is the unedited one, bit for bit."""

    def why_not_exact(self) -> str | None:
        """Return why this method has no exact undo; `None`: it has, by `move`."""
        return f"{type(self).__name__} does not keep apart what each edit has changed"

    def move(self, model: LanguageModel, register: Register, out: Sequence[int], back: Sequence[int]) -> None:
        """Take edits out of the model, as if they had never been made, and put others back; by their numbers."""
        self.check_exact_undo()

    def check_exact_undo(self) -> None:
        """Raise `EditError`, with the reason, unless edits can be undone exactly."""
        reason = self.why_not_exact()
        if reason:
            raise EditError(f"with this method an edit cannot be undone exactly: {reason}")

    @torch.no_grad()
    def undo(self, model: LanguageModel, register: Register, ids: Sequence[str]) -> dict[str, str | None]:
        """Undo edits, as if they had never been made: the others keep what they are.

        When no edit is left, the model is the unedited one, bit for bit.

        Returns:
            For each, the edit of the same fact that it had replaced and that is in the weights again, or `None`.

        Raises:
            EditError: one of them is not in the weights, or the method does not allow it; nothing is changed then.
        """
        self.check_exact_undo()
        numbers = register.to_undo(ids)
        older = [register.replaced_by(number) for number in numbers]
        back = [number for number in older if number is not None]
        self.move(model, register, numbers, back)
        register.deactivate(numbers, UNDONE)
        register.activate(back)
        return {name: None if n is None else register.ids[n] for name, n in zip(ids, older, strict=True)}

    @torch.no_grad()
    def redo(self, model: LanguageModel, register: Register, ids: Sequence[str]) -> dict[str, str | None]:
        """Write edits again that were undone or replaced.

        Returns:
            For each, the edit of the same fact that it replaces, or `None`.

        Raises:
            EditError: one of them is in the weights, or the method does not allow it; nothing is changed then.
        """
        self.check_exact_undo()
        numbers = register.to_redo(ids)
        rivals = [register.number_of(register.facts[number]) for number in numbers]
        out = [number for number in rivals if number is not None]
        self.move(model, register, out, numbers)
        register.deactivate(out, REPLACED)
        register.activate(numbers)
        for number, rival in zip(numbers, rivals, strict=True):
            register.replaces[number] = rival
        return {name: None if n is None else register.ids[n] for name, n in zip(ids, rivals, strict=True)}
