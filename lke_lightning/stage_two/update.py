"""Stage two: write the targets into the weights, layer by layer, by one least-squares solve each."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lke_lightning.checkpoints import understood
from lke_lightning.distributed import Team
from lke_lightning.edits import EditError, EditRequest, check_number
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.stage_two.arrival import Watch
from lke_lightning.stage_two.keys import ContextMean, KeyPolicy
from lke_lightning.stage_two.placement import AllLayers, LayerPolicy
from lke_lightning.stage_two.preservation import BaseStatistics, NormPenalty, PastEdits
from lke_lightning.stage_two.reading import SlotReader
from lke_lightning.stage_two.register import REPLACED, UNDONE, Register
from lke_lightning.stage_two.repeat import Repeat
from lke_lightning.stage_two.solvers import EditSystem, LeastSquares, Memory, Solver
from lke_lightning.stage_two.statistics import KeyStatistics, Statistics
from lke_lightning.stage_two.strength import first_keys, tell, warn_of_weights
from lke_lightning.stage_two.transforms import ReadoutTransform, UpdateTransform
from lke_lightning.step import EditStep

SPREAD = {"even": lambda left: 1 / left, "root": lambda left: 1 / math.sqrt(left), "direct": lambda _: 1.0}
"""The share of the residual that a layer takes, by the number of remaining layers including it."""

Again = Callable[[LanguageModel, EditStep], bool]
"""Finds the targets that a batch is written with next, once it was written; returns whether there are any."""


@dataclass(frozen=True)
class Mark:
    """A moment of a run that it can return to."""

    deltas: dict[int, Tensor]
    """By layer, the total change (d_out, d_key)."""
    memory: dict[int, Any]
    """By layer, the solver's mark of its memory."""
    edits: int
    """How many edits had been made."""


@dataclass(frozen=True)
class _Batch:
    """A batch that is being written."""

    before: Mark
    """Where it returns to if it exceeds the limit of norms."""
    start: Mark
    """Each layer before it was written first; later rounds begin there."""
    norms: dict[int, float]
    """By layer, the norm of the weight before the batch."""
    systems: dict[int, EditSystem] = field(default_factory=dict)
    """By layer, what was solved last."""


class WeightUpdate(Callback):
    """Spread the residuals of the targets over the edited layers and solve for each layer's update.

    Implements stage two of ENCORE and of the MEMIT family (arXiv 2502.01636): for layer i of m, keys are read with
    the current weights, the residual is (target - current output) / (m - i), so that the last layer takes all that is
    left, and the update is added to the weight.

    An edit of a fact that was edited before (same subject and relation) first retires the older one from the solver's
    memory and from the weights, where the method allows that exactly (`why_not_exact`).

    Args:
        solver: turns keys and residuals into an update. Default: ENCORE's least squares.
        keys: how keys are averaged over contexts. Default: `ContextMean`.
        statistics: second moments of keys on ordinary text. Default: `KeyStatistics`.
        placement: which layers a batch is written into. Default: all (`AllLayers`).
        spread: `even`: share 1 / (m - i) (MEMIT); `root`: 1 / sqrt(m - i) (PMET), which puts more on early layers;
            `direct`: each layer is asked for all that is missing still.
        repeat: when a batch is edited once more (UnderEdit). Default: never.
        transform: applied to each update before it is written (RECT).
        readout: applied to the total change when the model is scored or exported; editing never sees it (PRUNE).
        norm_limit: how many times larger a batch may make the Frobenius norm of an edited matrix. One that would make
            it larger is taken back and left out; a run whose first batch is, or several in a row, stops. `None`: no
            limit, as in the published codes.
        keep_on_host: keep the solver's memory in host memory and move one layer at a time to the device.
        reference_quirks: follow the published code where it differs from the paper (`ContextMean`).
    """

    def __init__(
        self,
        solver: Solver | None = None,
        keys: KeyPolicy | None = None,
        statistics: Statistics | None = None,
        placement: LayerPolicy | None = None,
        spread: Literal["even", "root", "direct"] = "even",
        repeat: Repeat | None = None,
        transform: UpdateTransform | None = None,
        readout: ReadoutTransform | None = None,
        norm_limit: float | None = 30.0,
        keep_on_host: bool = False,
        reference_quirks: bool = False,
    ) -> None:
        if norm_limit is not None:
            check_number("stage_two.norm_limit", norm_limit, above=1)
        self.solver = solver or LeastSquares(
            [BaseStatistics(fulfilment=0.85), NormPenalty(proportion=0.05)], PastEdits()
        )
        self.keys = keys or ContextMean()
        self.statistics = statistics or KeyStatistics()
        self.placement, self.repeat = placement or AllLayers(), repeat
        self.spread, self.transform, self.readout = spread, transform, readout
        self.norm_limit, self.keep_on_host, self.reference_quirks = norm_limit, keep_on_host, reference_quirks
        self.memory: dict[int, Memory] = {}
        """The solver's memory of earlier batches, by layer; rows are the numbers of the run's register."""
        self._fingerprints: dict[str, str] = {}
        self._is_ready = False
        self._watch = Watch()

    def state_dict(self) -> dict[str, Any]:
        """Return the solver's memory, and the fingerprints of the statistics it started from."""
        memory = {str(layer): self.solver.saved(memory) for layer, memory in self.memory.items()}
        return {"memory": memory, "statistics": self._fingerprints}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the memory of the interrupted run."""
        self.memory = {int(layer): dict(memory) for layer, memory in state_dict["memory"].items()}
        self._fingerprints, self._is_ready = dict(state_dict["statistics"]), False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Set the editor's readout."""
        pl_module.readout = self.readout

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prepare each layer's solve, or complete the memory of a checkpoint; say to which share edits are written."""
        self.prepare(pl_module.language_model, trainer.datamodule.requests, pl_module.stages.one.contexts)
        tell(self.strengths)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, _: torch.optim.Optimizer) -> None:
        """Write the batch into the weights."""
        pl_module.carry_out(pl_module.stages)

    def prepare(
        self, model: LanguageModel, requests: Sequence[EditRequest] = (), contexts: Sequence[str] = ("{}",)
    ) -> None:
        """Load or compute the statistics of the unedited model and start every layer's memory from them.

        Args:
            model: the language model.
            requests: the edits to come; a wanted fulfilment is that of the first of them (`strength`).
            contexts: templates, `"{}"` first.

        Raises:
            EditError: the statistics differ from those of the checkpoint's memory.
        """
        if self._is_ready:
            return
        with model.unedited():  # a run that continues has its changes by now
            moments = self.statistics.second_moments(model)
        fingerprints = {str(layer): _fingerprint(moment) for layer, moment in moments.items()}
        if self.memory:
            if fingerprints != self._fingerprints:
                raise EditError(
                    "the key statistics are not those that this run began with: give stage_two.statistics the same "
                    "text and number of tokens, or the file of that run"
                )
            with understood("the memory of past edits"):
                self.memory = {
                    layer: self.solver.completed(self.memory[layer], moment) for layer, moment in moments.items()
                }
        else:
            weights = self.keys.key_weights(len(contexts), self.reference_quirks)
            keys = first_keys(model, requests, contexts, weights)
            self.memory = {
                layer: self._placed(self.solver.init(moment, keys.get(layer), self.statistics.eigen))
                for layer, moment in moments.items()
            }
            warn_of_weights(self.strengths)
        self._fingerprints, self._is_ready = fingerprints, True

    def carry_out(self, model: LanguageModel, step: EditStep, register: Register, again: Again | None = None) -> None:
        """Write a batch of a run, and look at what became of it; see `write` and `Watch`.

        Raises:
            EditError: an update is not finite, or exceeds the limit of norms in the first batch or several in a row.
        """
        systems = self.write(model, step, register, again)
        self._watch.look(model, step, register, systems)

    @property
    def strengths(self) -> dict[int, dict[str, float]]:
        """By layer, the `factor` of the preservation terms and the `fulfilment` of the run's first edits."""
        names = ("factor", "fulfilment")  # the second is unknown where equality is demanded
        found = {layer: memory["strength"].tolist() for layer, memory in self.memory.items() if "strength" in memory}
        return {layer: dict(zip(names, values, strict=False)) for layer, values in found.items()}

    @torch.no_grad()
    def write(
        self, model: LanguageModel, step: EditStep, register: Register, again: Again | None = None
    ) -> dict[int, EditSystem]:
        """Edit the weights so that the targets are produced, and enter the edits into the register.

        A batch that exceeds the limit of norms is taken back, bit for bit in the weights, and left out of the step.
        Where it is written in several rounds and edits can be undone exactly, a later round takes the place of the
        earlier one in a layer: it asks for all that was asked before and for what is missing still. Elsewhere its
        update is added, as in the published code.

        Args:
            model: the language model; its edited weights change.
            step: the edits and their targets.
            register: the edits made so far.
            again: see `Again`; `None`: the batch is written once.

        Returns:
            The system of each layer, as it was solved last; of none where nothing was written.

        Raises:
            EditError: an update is not finite; it is not written then.
        """
        if not step.requests:
            return {}
        limited = model.layers if self.norm_limit is not None else ()
        norms = {layer: model.weight(layer).norms()[1] for layer in limited}
        batch = _Batch(Mark({}, {}, len(register)), Mark({}, {}, len(register)), norms)
        if self.why_not_exact() is None:
            older = [register.number_of(request.fact) for request in step.requests]
            out = [number for number in older if number is not None]
            for layer in limited if out else ():
                self._note(model, layer, batch.before)
            self._move(model, out=out)
        while True:
            for layers, places in step.by_layers(model.layers):
                refused = self._spread(model, step, layers, places, batch)
                if refused:
                    self.roll_back(model, register, batch.before)
                    step.take_back(refused)
                    return {}
            if again is None or not again(model, step):
                break
        for layer in model.layers:
            if layer not in batch.systems:
                self._skip(model, step, layer)
        register.enter(step.requests, step.targets.groups)
        return batch.systems

    def _spread(
        self, model: LanguageModel, step: EditStep, layers: Sequence[int], places: Sequence[int], batch: _Batch
    ) -> str | None:
        """Write some requests, by their places, into some layers; return why the batch is to be taken back, if it is.

        A solver's memory has a row in each layer for each edit: those of the other requests ask nothing.
        """
        part = step.chosen(places)
        reader = SlotReader(model, part.requests, part.contexts)
        exact = self.why_not_exact() is None
        for i, layer in enumerate(layers):
            weight, share = model.weight(layer), SPREAD[self.spread](len(layers) - i)
            system = self._system(model, reader, part, layer, layers[-1], share)
            if self.norm_limit is not None:
                self._note(model, layer, batch.before)
            earlier = batch.systems.get(layer) if exact else None
            if earlier is not None:
                weight.restore(batch.start.deltas[layer])
                self._keep(layer, self.solver.rolled_back(self._fetch(layer, model), batch.start.memory[layer]))
                system = system.after(earlier.chosen(places), weight.delta)
            elif self.repeat is not None and exact:
                self._note(model, layer, batch.start)
            memory = self._fetch(layer, model)
            shares = torch.full((len(step),), math.nan, dtype=torch.float64)
            shares[places] = self.solver.fulfilment(memory, system).cpu()
            step.fulfilment[layer] = shares
            batch.systems[layer] = system = system.among(places, len(step))
            update, memory = self.solver.compute(memory, system)
            self._keep(layer, memory)
            if self.transform is not None:
                update = self.transform(weight.live(), update)
            update = self._agreed(model, layer, update)
            if self.norm_limit is not None:
                growth = weight.live().add_(update).norm() / batch.norms[layer]
                growth = Team.of(model.network).first(growth.item())
                if not growth <= self.norm_limit:
                    return _why_taken_back(model, step, layer, growth, self.norm_limit)
            weight.add(update)
        return None

    def _skip(self, model: LanguageModel, step: EditStep, layer: int) -> None:
        """Give the requests of a batch rows in the memory of a layer that none of them was written into."""
        step.fulfilment[layer] = torch.full((len(step),), math.nan, dtype=torch.float64)
        if self.solver.past_edits is not None:
            d_out, d_key = model.weight(layer).delta.shape
            keys, outputs = (model.weight(layer).delta.new_zeros(len(step), size) for size in (d_key, d_out))
            _, memory = self.solver.compute(self._fetch(layer, model), EditSystem(keys, keys, outputs, outputs))
            self._keep(layer, memory)

    def _system(
        self, model: LanguageModel, reader: SlotReader, step: EditStep, layer: int, target_layer: int, share: float
    ) -> EditSystem:
        """Read what a layer is asked: a share of what is missing at the target layer."""
        anchor_weights = self.keys.anchor_weights(len(step.contexts))
        key_weights = self.keys.key_weights(len(step.contexts), self.reference_quirks)
        keys, anchors = reader.keys(layer, [key_weights, anchor_weights])
        missing = step.targets.vectors - reader.outputs(step.targets.site, anchor_weights, target_layer)
        counts = torch.tensor([request.weight for request in step.requests], dtype=torch.float64, device=model.device)
        return EditSystem(keys, anchors, missing * share, keys @ model.weight(layer).delta.T, counts)

    @torch.no_grad()
    def relative_changes(self, model: LanguageModel, step: EditStep, layer: int) -> list[float]:
        """Solve for the update of one layer that each edit would have alone, and write nothing.

        Args:
            model: the language model.
            step: the edits, with targets at this layer.
            layer: its number.

        Returns:
            |D|_F / |W|_F of each edit, the same on all processes.
        """
        reader = SlotReader(model, step.requests, step.contexts)
        system = self._system(model, reader, step, layer, layer, share=1.0)
        memory, live, norms = self._fetch(layer, model), model.weight(layer).live(), []
        for place in range(len(step)):
            update = self.solver.preview(memory, system.chosen([place]))
            norms.append((update if self.transform is None else self.transform(live, update)).norm().item())
        return Team.of(model.network).first([norm / live.norm().item() for norm in norms])

    def why_not_exact(self) -> str | None:
        """Return why this method has no exact undo; `None`: it has."""
        if self.solver.past_edits is None:
            return "its solver keeps no memory of past edits (past_edits)"
        if self.solver.past_edits.weight != 1:
            return "past edits count differently from new ones (past_edits.weight)"
        if self.transform is not None:
            return f"its updates are changed after they are solved for ({type(self.transform).__name__})"
        return None

    def check_exact_undo(self) -> None:
        """Raise `EditError`, with the reason, unless edits can be undone exactly."""
        reason = self.why_not_exact()
        if reason:
            raise EditError(f"with this method an edit cannot be undone exactly: {reason}")

    @torch.no_grad()
    def undo(self, model: LanguageModel, register: Register, ids: Sequence[str]) -> dict[str, str | None]:
        """Undo edits, as if they had never been made: the others keep their keys and targets.

        When no edit is left, the weights are the unedited ones, bit for bit.

        Returns:
            For each, the edit of the same fact that it had replaced and that is in the weights again, or `None`.

        Raises:
            EditError: one of them is not in the weights, or the method does not allow it; nothing is changed then.
        """
        self.check_exact_undo()
        numbers = register.to_undo(ids)
        older = [register.replaced_by(number) for number in numbers]
        back = [number for number in older if number is not None]
        self._move(model, out=numbers, back=back)
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
        self._move(model, out=out, back=numbers)
        register.deactivate(out, REPLACED)
        register.activate(numbers)
        for number, rival in zip(numbers, rivals, strict=True):
            register.replaces[number] = rival
        return {name: None if n is None else register.ids[n] for name, n in zip(ids, rivals, strict=True)}

    @torch.no_grad()
    def revert(self, model: LanguageModel, register: Register) -> None:
        """Undo all edits, by any method: the weights are the unedited ones, bit for bit."""
        for layer in model.layers:
            self._keep(layer, self.solver.cleared(self._fetch(layer, model)))
            model.weight(layer).revert()
        register.deactivate(register.holding, UNDONE)

    def mark(self, model: LanguageModel, register: Register) -> Mark:
        """Mark the present state, so that `roll_back` can return to it."""
        deltas = {layer: model.weight(layer).delta.clone() for layer in model.layers}
        return Mark(deltas, {layer: self.solver.mark(memory) for layer, memory in self.memory.items()}, len(register))

    @torch.no_grad()
    def roll_back(self, model: LanguageModel, register: Register, mark: Mark) -> None:
        """Return to a moment of the run: weights bit for bit, memory to rounding; later edits are forgotten."""
        if not mark.memory:  # of a moment before the memory was begun
            self.memory, self._is_ready = {}, False
        for layer, delta in mark.deltas.items():
            if layer in mark.memory:
                self._keep(layer, self.solver.rolled_back(self._fetch(layer, model), mark.memory[layer]))
            model.weight(layer).restore(delta)
        register.shorten(mark.edits)

    def _move(self, model: LanguageModel, out: Sequence[int] = (), back: Sequence[int] = ()) -> None:
        """Remove edits from memory and weights, and add others again."""
        for layer in model.layers if out or back else ():
            weight = model.weight(layer)
            for numbers, move in ((out, self.solver.retire), (back, self.solver.restore)):
                if numbers:
                    update, memory = move(self._fetch(layer, model), numbers, weight.delta)
                    self._keep(layer, memory)
                    weight.add(self._agreed(model, layer, update))

    @staticmethod
    def _agreed(model: LanguageModel, layer: int, update: Tensor) -> Tensor:
        """Return an update that all processes have solved for: the first one's, so that they cannot diverge."""
        update = Team.of(model.network).first_tensor(update.to(model.weight(layer).delta))
        if not update.isfinite().all():
            raise EditError(f"the update of layer {layer} is not finite: check the statistics and hyperparameters")
        return update

    def _note(self, model: LanguageModel, layer: int, mark: Mark) -> None:
        """Keep what a layer is before a batch changes it, in host memory, so that the batch can be taken back."""
        if layer not in mark.deltas:
            mark.deltas[layer] = model.weight(layer).delta.to("cpu", copy=True)
            mark.memory[layer] = self.solver.mark(self.memory[layer])

    def _fetch(self, layer: int, model: LanguageModel) -> Memory:
        """Move the parts that the solver needs to the device."""
        on_device = self.solver.on_device
        return {name: part.to(model.device) if name in on_device else part for name, part in self.memory[layer].items()}

    def _keep(self, layer: int, memory: Memory) -> None:
        self.memory[layer] = self._placed(memory)

    def _placed(self, memory: Memory) -> Memory:
        return {name: part.cpu() for name, part in memory.items()} if self.keep_on_host else memory


def _why_taken_back(model: LanguageModel, step: EditStep, layer: int, growth: float, limit: float) -> str:
    misplaced = step.targets.site == "block" and model.site == "matrix"
    site = "set stage_one.site to matrix (a norm stands behind this model's MLP), or " if misplaced else ""
    return (
        f"its batch would multiply the norm of layer {layer}'s matrix by {growth:.3g}, and the limit is {limit:g}; "
        f"{site}give BaseStatistics more weight (a lower fulfilment) or lower stage_one.relative_lr (or "
        "lr, where it is given); --stage_two.norm_limit null lets it pass"
    )


def _fingerprint(moment: Tensor) -> str:
    return hashlib.sha256(moment.detach().cpu().contiguous().view(torch.uint8).numpy()).hexdigest()[:16]
