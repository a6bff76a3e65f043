"""Stage two: write the targets into the weights, layer by layer, by one least-squares solve each."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lke_lightning.distributed import Team
from lke_lightning.edits import EditError, EditRequest
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.model.targets import Targets
from lke_lightning.stage_two.keys import ContextMean, KeyPolicy
from lke_lightning.stage_two.preservation import BaseStatistics, NormPenalty, PastEdits
from lke_lightning.stage_two.reading import SlotReader
from lke_lightning.stage_two.register import Register
from lke_lightning.stage_two.solvers import EditSystem, LeastSquares, Memory, Solver
from lke_lightning.stage_two.statistics import KeyStatistics, Statistics
from lke_lightning.stage_two.transforms import ReadoutTransform, UpdateTransform

SPREAD = {"even": lambda left: 1 / left, "root": lambda left: 1 / math.sqrt(left)}
"""Which share of what the target lacks a layer takes on, by how many layers are left with it."""


class WeightUpdate(Callback):
    """Spread what the targets lack over the edited layers and solve for each layer's update.

    Implements stage two of ENCORE and of the MEMIT family (arXiv 2502.01636): for layer i of m, keys are read under
    the weights as they now are, the residual is (target - present output) / (m - i), so that the last layer takes
    all that is left, and the update is added to the weight.

    An edit of a fact that was edited before (same subject and relation) first retires the older one from the solver's
    memory and from the weights.

    Args:
        solver: turns keys and residuals into an update. Default: ENCORE's least squares with strengths of 1; real
            models need theirs, see configs/experiment.
        keys: how keys are averaged over contexts. Default: `ContextMean`.
        statistics: second moments of keys on ordinary text. Default: computed on the demo text.
        spread: `even`: share 1 / (m - i) (MEMIT); `root`: 1 / sqrt(m - i) (PMET), which asks more of early layers.
        transform: what is done to each update before it is written (RECT).
        readout: what is done to the total change when the model is scored; editing never sees it (PRUNE).
        keep_on_host: hold the solver's memory in the host's memory and bring one layer at a time to the device.
        reference_quirks: do as the published code where it differs from the paper (`ContextMean`).
    """

    def __init__(
        self,
        solver: Solver | None = None,
        keys: KeyPolicy | None = None,
        statistics: Statistics | None = None,
        spread: Literal["even", "root"] = "even",
        transform: UpdateTransform | None = None,
        readout: ReadoutTransform | None = None,
        keep_on_host: bool = False,
        reference_quirks: bool = False,
    ) -> None:
        self.solver = solver or LeastSquares([BaseStatistics(1.0), NormPenalty(1.0)], PastEdits())
        self.keys = keys or ContextMean()
        self.statistics = statistics or KeyStatistics()
        self.spread, self.transform, self.readout = spread, transform, readout
        self.keep_on_host, self.reference_quirks = keep_on_host, reference_quirks
        self.memory: dict[int, Memory] = {}
        """What the solver remembers of earlier batches, by layer."""
        self.register = Register()
        """The edits in the memory, in its order."""
        self._fingerprints: dict[str, str] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the solver's memory, and from which statistics it started."""
        memory = {str(layer): self.solver.saved(memory) for layer, memory in self.memory.items()}
        return {"memory": memory, "register": self.register.state_dict(), "statistics": self._fingerprints}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the memory of the interrupted run."""
        self.memory = {int(layer): dict(memory) for layer, memory in state_dict["memory"].items()}
        self.register.load_state_dict(state_dict["register"])
        self._fingerprints = dict(state_dict["statistics"])

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Tell how the change is to be read."""
        pl_module.readout = self.readout

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prepare each layer's solve, or complete what came from a checkpoint."""
        self.prepare(pl_module.language_model)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, _: torch.optim.Optimizer) -> None:
        """Write the batch into the weights."""
        if not pl_module.batch.requests:  # stage one left all of them out
            return
        with trainer.precision_plugin.forward_context(), pl_module.timed("stage_two"):
            self.apply(pl_module.language_model, pl_module.batch.requests, pl_module.contexts, pl_module.targets)
        # Here and not at the end of the batch: checkpoints are written by callbacks, before the module's own hooks.
        pl_module.mark_edited(pl_module.batch.requests)

    def prepare(self, model: LanguageModel) -> None:
        """Load or compute the statistics of the unedited model and start every layer's memory from them.

        Raises:
            EditError: they are not those that a memory from a checkpoint was started from.
        """
        with model.unedited():  # a run that continues has its changes by now
            moments = self.statistics.second_moments(model)
        fingerprints = {str(layer): _fingerprint(moment) for layer, moment in moments.items()}
        if self.memory:
            if fingerprints != self._fingerprints:
                raise EditError(
                    "the key statistics are not those that this run began with: give stage_two.statistics the same "
                    "text and number of tokens, or the file of that run"
                )
            self.memory = {
                layer: self.solver.completed(self.memory[layer], moment) for layer, moment in moments.items()
            }
        else:
            self.memory = {layer: self.solver.init(moment, self.statistics.eigen) for layer, moment in moments.items()}
        self._fingerprints = fingerprints

    @torch.no_grad()
    def apply(
        self, model: LanguageModel, requests: Sequence[EditRequest], contexts: Sequence[str], targets: Targets
    ) -> dict[int, EditSystem]:
        """Edit the weights so that the targets are produced.

        Args:
            model: the language model; its edited weights change.
            requests: the edits, as stage one saw them.
            contexts: templates, `"{}"` first.
            targets: what stage one found.

        Returns:
            What each layer was asked.

        Raises:
            EditError: an update is not finite; it is not written then.
        """
        remembers = self.solver.past_edits is not None
        older = [self.register.standing(request.fact) for request in requests] if remembers else []
        self._move(model, out=[number for number in older if number is not None])
        reader = SlotReader(model, requests, contexts)
        key_weights = self.keys.keys(len(contexts), self.reference_quirks)
        anchor_weights = self.keys.anchors(len(contexts))
        counts = torch.tensor([request.weight for request in requests], dtype=torch.float64, device=model.device)
        systems = {}
        for i, layer in enumerate(model.layers):
            keys, anchors = reader.keys(layer, [key_weights, anchor_weights])
            missing = targets.vectors - reader.outputs(targets.site, anchor_weights)
            residuals = missing * SPREAD[self.spread](len(model.layers) - i)
            weight = model.weight(layer)
            systems[layer] = EditSystem(keys, anchors, residuals, keys @ weight.delta.T, counts)
            update, memory = self.solver.compute(self._fetch(layer, model), systems[layer])
            self._keep(layer, memory)
            if self.transform is not None:
                update = self.transform(weight.live(), update)
            self._write(model, layer, update)
        if remembers:
            self.register.enter(requests)
        return systems

    def check_exact_undo(self) -> None:
        """Raise `EditError`, with the reason, where this method's weights are no solution that an edit can leave."""
        reason = None
        if self.solver.past_edits is None:
            reason = "its solver keeps no memory of past edits (past_edits)"
        elif self.solver.past_edits.weight != 1:
            reason = "past edits count differently from new ones (past_edits.weight)"
        elif self.transform is not None:
            reason = f"its updates are changed after they are solved for ({type(self.transform).__name__})"
        if reason:
            raise EditError(f"with this method an edit cannot be taken back exactly: {reason}")

    @torch.no_grad()
    def undo(self, model: LanguageModel, ids: Sequence[str]) -> dict[str, str | None]:
        """Take edits back, as if they had never been made: the others keep their keys and targets.

        Returns:
            For each, the edit of the same fact that it had replaced and that is in the weights again, or `None`.

        Raises:
            EditError: one of them is not in the weights, or the method does not allow it; nothing is changed then.
        """
        self.check_exact_undo()
        numbers = self.register.to_undo(ids)
        older = [self.register.replaces[number] for number in numbers]
        back = [number for number in older if number is not None]
        self._move(model, out=numbers, back=back)
        self.register.lay_down(numbers)
        self.register.raise_up(back)
        return {name: None if n is None else self.register.ids[n] for name, n in zip(ids, older, strict=True)}

    @torch.no_grad()
    def redo(self, model: LanguageModel, ids: Sequence[str]) -> dict[str, str | None]:
        """Write edits again that were undone or replaced.

        Returns:
            For each, the edit of the same fact that it takes the place of, or `None`.

        Raises:
            EditError: one of them is in the weights, or the method does not allow it; nothing is changed then.
        """
        self.check_exact_undo()
        numbers = self.register.to_redo(ids)
        if len({self.register.facts[number] for number in numbers}) < len(numbers):
            raise EditError("two of these edits state the same fact: redo one of them")
        rivals = [self.register.standing(self.register.facts[number]) for number in numbers]
        out = [number for number in rivals if number is not None]
        self._move(model, out=out, back=numbers)
        self.register.lay_down(out)
        self.register.raise_up(numbers)
        for number, rival in zip(numbers, rivals, strict=True):
            self.register.replaces[number] = rival
        return {name: None if n is None else self.register.ids[n] for name, n in zip(ids, rivals, strict=True)}

    @torch.no_grad()
    def roll_back(self, model: LanguageModel, deltas: Mapping[int, Tensor], count: int) -> None:
        """Return to an earlier moment of the run.

        Args:
            model: the language model.
            deltas: by layer, the total change (d_out, d_key) at that moment; taken over bit for bit.
            count: how many edits were in the register; those after them are forgotten for good.
        """
        if self.solver.past_edits is not None:
            new = range(count, len(self.register))
            older = [self.register.replaces[number] for number in new]
            self._move(model, out=new, back=[number for number in older if number is not None])
            self.memory = {layer: self.solver.shorten(memory, count) for layer, memory in self.memory.items()}
            self.register.shorten(count)
        for layer, delta in deltas.items():
            model.weight(layer).restore(delta)

    def _move(self, model: LanguageModel, out: Sequence[int] = (), back: Sequence[int] = ()) -> None:
        """Take edits out of memory and weights, and others in again."""
        for layer in model.layers if out or back else ():
            weight = model.weight(layer)
            for numbers, move in ((out, self.solver.retire), (back, self.solver.restore)):
                if numbers:
                    update, memory = move(self._fetch(layer, model), numbers, weight.delta)
                    self._keep(layer, memory)
                    self._write(model, layer, update)

    @staticmethod
    def _write(model: LanguageModel, layer: int, update: Tensor) -> None:
        """Add an update; every process has solved for it, and all take the first one's, so that they stay alike."""
        weight = model.weight(layer)
        update = Team.of(model.network).first_tensor(update.to(weight.delta))
        if not update.isfinite().all():
            raise EditError(f"the update of layer {layer} is not finite: the statistics or strengths do not suit it")
        weight.add(update)

    def _fetch(self, layer: int, model: LanguageModel) -> Memory:
        """Bring what the solver computes with to the device."""
        on_device = self.solver.on_device
        return {name: part.to(model.device) if name in on_device else part for name, part in self.memory[layer].items()}

    def _keep(self, layer: int, memory: Memory) -> None:
        self.memory[layer] = {name: part.cpu() for name, part in memory.items()} if self.keep_on_host else memory


def _fingerprint(moment: Tensor) -> str:
    return hashlib.sha256(moment.detach().cpu().contiguous().view(torch.uint8).numpy()).hexdigest()[:16]
