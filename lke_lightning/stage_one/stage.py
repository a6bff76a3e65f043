"""What every stage one is: a callback that says, before a batch is written, what the edited layers are asked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, ClassVar

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lke_lightning.edits import EditBatch, EditRequest
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.model.units import Expansion
from lke_lightning.progress import work
from lke_lightning.step import EditStep


class StageOne(Callback, ABC):
    """Finds what a batch asks of the edited layers; stage two writes it.

    A stage one keeps two things over a run, both in its checkpoints: `contexts` and `memory`. `aim` puts the memory as
    it is after a batch into the step, and `settle` takes it from there, unless the batch was taken back.
    """

    contexts: list[str]
    """Contexts of this run, `"{}"` first; none before `prepare`."""
    memory: dict[str, Tensor]
    """What parts remember of the batches that were kept; never changed in place."""
    expansion: Expansion
    """Which units each request has."""
    has_targets: ClassVar[bool] = True
    """Whether it says what layers are asked, and not only which texts are to be learnt."""
    reads_texts: ClassVar[bool] = True
    """Whether stage two reads the requests' texts anew, layer by layer, as they are written."""

    @property
    def at_all_layers(self) -> bool:
        """Whether what it finds is for all edited layers together, and cannot be asked of some of them."""
        return False

    @property
    def pilot(self) -> int:
        """How many of the run's first requests it looks at before the first batch, at the cost of editing them."""
        return 0

    @property
    def state_key(self) -> str:
        """The name of its state in checkpoints: for any class that of the first there was."""
        return "TargetOptimization"

    def state_dict(self) -> dict[str, Any]:
        """Return the contexts and the parts' memory."""
        memory = {"memory": self.memory} if self.memory else {}  # checkpoints of earlier versions have none
        return {"contexts": self.contexts, **memory}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the contexts and the memory of the interrupted run."""
        self.contexts, self.memory = list(state_dict["contexts"]), dict(state_dict.get("memory", {}))

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Prepare for the requests of the run."""
        with work("Preparing stage one"), pl_module.working("preparation") if self.pilot else nullcontext():
            self.prepare(pl_module.language_model, trainer.datamodule.requests)

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: EditBatch, _: int) -> None:
        """Begin the step: find what the batch asks."""
        with pl_module.working("stage_one"):
            pl_module.step = pl_module.stages.aim(pl_module.language_model, batch)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        """Remember the batch, before the guard may roll it back."""
        self.settle(pl_module.step)

    @abstractmethod
    def prepare(self, model: LanguageModel, requests: Sequence[EditRequest]) -> None:
        """Check that every request can be edited, and make ready for them; on a run that continues, again.

        Raises:
            EditError: a request that cannot be, with its id; nothing has been edited yet.
        """

    @abstractmethod
    def aim(self, model: LanguageModel, batch: EditBatch, layer: int | None = None) -> EditStep:
        """Find what a batch asks, under the present weights; requests without finite numbers are left out of it.

        Args:
            model: the language model, possibly edited before.
            batch: the edits.
            layer: where targets live, if they live at one; `None`: the last edited layer.
        """

    def settle(self, step: EditStep) -> None:
        """Remember a batch, unless stage two took it back."""
        if step.taken_back is None:
            self.memory = step.memory


def warn_of_left_out(step: EditStep) -> EditStep:
    """Say which requests of a batch are left out, and return it."""
    for request, reason in step.left_out:
        rank_zero_warn(f"edit {request.id} is left out: {reason}")
    return step
