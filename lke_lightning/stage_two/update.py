"""Stage two: write the targets into the weights, layer by layer, by one least-squares solve each."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lke_lightning.checkpoints import understood
from lke_lightning.distributed import Team
from lke_lightning.edits import EditError, EditRequest, check_number
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.model.reading import SlotReader, Spread
from lke_lightning.model.targets import Asked
from lke_lightning.model.units import Expansion
from lke_lightning.progress import track
from lke_lightning.stage_two.key_filter import SharedDirections, own_part
from lke_lightning.stage_two.keys import ContextMean, KeyPolicy
from lke_lightning.stage_two.placement import AllLayers, LayerPolicy
from lke_lightning.stage_two.preservation import MOST, BaseStatistics, NormPenalty, PastEdits
from lke_lightning.stage_two.register import UNDONE, Register
from lke_lightning.stage_two.repeat import Repeat
from lke_lightning.stage_two.room import Space, solver_bytes, transform_bytes
from lke_lightning.stage_two.solvers import Downdatable, EditSystem, LeastSquares, Memory, Solver
from lke_lightning.stage_two.solvers.growing import ROOM
from lke_lightning.stage_two.stage import Again, Finds, StageTwo
from lke_lightning.stage_two.statistics import KeyStatistics, Statistics
from lke_lightning.stage_two.strength import first_keys, tell, warn_of_weights
from lke_lightning.stage_two.transforms import ReadoutTransform, UpdateTransform
from lke_lightning.stage_two.writing import Writing
from lke_lightning.step import EditStep

SPREAD = {"even": lambda left: 1 / left, "root": lambda left: 1 / math.sqrt(left), "direct": lambda _: 1.0}
"""The share of the residual that a layer takes, by the number of remaining layers including it."""

INVERTING = 6
"""How many float64 matrices of d_key^2 entries the first inverse of a layer holds at its peak, about."""


@dataclass(frozen=True)
class Mark:
    """A moment of a run that it can return to."""

    deltas: dict[int, Tensor]
    """By layer, the total change (d_out, d_key)."""
    memory: dict[int, Any]
    """By layer, the solver's mark of its memory."""
    edits: int
    """How many edits had been made."""
    writing: Any
    """What transforms had kept, of all layers."""


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


class WeightUpdate(StageTwo):
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
        compensate: make up, in later updates, for what the transform leaves out (OTE-SE, `Writing`).
        readout: applied to the total change when the model is scored or exported; editing never sees it (PRUNE).
        norm_limit: how many times larger a batch may make the Frobenius norm of an edited matrix. One that would make
            it larger is taken back and left out; a run whose first batch is, or several in a row, stops. `None`: no
            limit, as in the published codes.
        keep_on_host: keep the solver's memory in host memory and move one layer at a time to the device.
        reference_quirks: follow the published code where it differs from the paper (`ContextMean`).
        key_filter: what is taken out of keys before anything is solved for them (SUIT).
        rest_weight: how much the outputs at all other tokens of a batch's own prompts and answers count while it is
            solved, beside ordinary text (AnyEdit: 1). `None`: they count as ordinary text only.
    """

    needs_targets, USE = True, "solves for targets"

    def __init__(
        self,
        solver: Solver | None = None,
        keys: KeyPolicy | None = None,
        statistics: Statistics | None = None,
        placement: LayerPolicy | None = None,
        spread: Literal["even", "root", "direct"] = "even",
        repeat: Repeat | None = None,
        transform: UpdateTransform | None = None,
        compensate: bool = False,
        readout: ReadoutTransform | None = None,
        norm_limit: float | None = 30.0,
        keep_on_host: bool = False,
        reference_quirks: bool = False,
        key_filter: SharedDirections | None = None,
        rest_weight: float | None = None,
    ) -> None:
        if norm_limit is not None:
            check_number("stage_two.norm_limit", norm_limit, above=1)
        check_number("stage_two.rest_weight", 1 if rest_weight is None else rest_weight, above=0, at_most=MOST)
        self.solver = solver or LeastSquares(
            [BaseStatistics(fulfilment=0.85), NormPenalty(proportion=0.05)], PastEdits()
        )
        if rest_weight is not None and not self.solver.keeps_rest:
            raise EditError(
                f"{type(self.solver).__name__} does not solve beside the rest of a batch's texts: leave "
                "stage_two.rest_weight out, or take LeastSquares"
            )
        self.keys = keys or ContextMean()
        self.statistics: Statistics = statistics or KeyStatistics()
        if compensate and transform is None:
            raise EditError(
                "stage_two.compensate makes up for what a transform leaves out, and there is none: give "
                "stage_two.transform one, or leave compensate out"
            )
        self.placement, self.repeat = placement or AllLayers(), repeat
        self.spread, self.readout = spread, readout
        self.writing = Writing(transform, compensate)
        """What is written of the solver's updates."""
        self.norm_limit, self.keep_on_host, self.reference_quirks = norm_limit, keep_on_host, reference_quirks
        self.rest_weight = rest_weight
        self.memory: dict[int, Memory] = {}
        """The solver's memory of earlier batches, by layer; rows are the numbers of the run's register."""
        self.key_filter = key_filter
        self.shared: dict[int, Tensor] = {}
        """By layer, the directions that the filter takes out of keys, (d_key, directions); of this run."""
        self._fingerprints: dict[str, str] = {}
        self._is_ready = False
        reason = self.why_not_exact()
        if compensate and reason:
            raise EditError(
                f"stage_two.compensate holds the weights against one solve over all edits, and there is none here: "
                f"{reason}; change that, or leave compensate out"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return what solver, transform and key filter keep, and the fingerprints of the statistics."""
        memory = {str(layer): self.solver.saved(memory) for layer, memory in self.memory.items()}
        shared = {"shared": {str(layer): basis for layer, basis in self.shared.items()}} if self.shared else {}
        return {"memory": memory, "statistics": self._fingerprints, **self.writing.saved(), **shared}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the memory of the interrupted run."""
        self.memory = {int(layer): dict(memory) for layer, memory in state_dict["memory"].items()}
        with understood("the directions of the key filter"):
            self.shared = {int(layer): basis for layer, basis in state_dict.get("shared", {}).items()}
        self._fingerprints, self._is_ready = dict(state_dict["statistics"]), False
        with understood("what transforms had kept"):
            self.writing.restore(state_dict)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prepare each layer's solve, or complete the memory of a checkpoint; say to which share edits are written."""
        super().on_fit_start(trainer, pl_module)
        tell(self.strengths)

    def check(self, one: Finds) -> None:
        """Raise `EditError` unless stage one finds what is asked for."""
        super().check(one)
        moved = not isinstance(self.placement, AllLayers) or (self.repeat and not one.reads_texts)
        if moved and one.at_all_layers:
            raise EditError(
                f"stage_two.{'repeat' if isinstance(self.placement, AllLayers) else 'placement'} needs targets at "
                "any layer, as often as asked, and this stage one knows those of the edited layers alone: leave it out"
            )
        if self.rest_weight is not None and not one.reads_texts:
            raise EditError(
                f"stage_two.rest_weight needs the texts of a batch read, and {type(one).__name__} has read them "
                "before: leave it out"
            )

    def spaces(self, shapes: Sequence[tuple[int, int]], edits: int, wide: int, on_gpu: bool) -> list[Space]:
        """Return what solver, transform and statistics hold."""
        entries, squares = sum(d_out * d_key for d_out, d_key in shapes), [d_key**2 for _, d_key in shapes]
        first = [solver_bytes(self.solver, *shape, 0) for shape in shapes]
        last = [solver_bytes(self.solver, *shape, edits) for shape in shapes]
        near, far, grown = sum(s[0] for s in first), sum(s[1] for s in first), sum(s[1] for s in last)
        at_once = max(s[0] for s in first) if self.keep_on_host and on_gpu else near
        left = sum(transform_bytes(self.writing, *shape, wide) for shape in shapes)
        copies = (self.norm_limit is not None) + (self.repeat is not None)
        is_computed = isinstance(self.statistics, KeyStatistics)
        return [
            Space("their change before a batch, to take it back", host=entries * wide * copies),
            Space(f"solver, {len(shapes)} layers", at_once, far + near - at_once, saved=sum(s[2] for s in last)),
            Space(f"solver, memory of {edits:,} edits", host=math.ceil(ROOM * (grown - far))),
            Space("first inverse, at its peak", 4 * sum(squares) + 8 * INVERTING * max(squares)),
            *([Space("what the transform keeps", left, saved=left)] if left else []),
            *([Space("key statistics, unless cached", disk=4 * sum(squares))] if is_computed else []),
        ]

    def prepare(
        self,
        model: LanguageModel,
        requests: Sequence[EditRequest] = (),
        contexts: Sequence[str] = ("{}",),
        expansion: Expansion | None = None,
    ) -> None:
        """Load or compute the statistics of the unedited model and start every layer's memory from them.

        Args:
            model: the language model.
            requests: the edits to come; a wanted fulfilment is that of the first of them (`strength`).
            contexts: templates, `"{}"` first.
            expansion: which units each request has; default: one.

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
            if self.key_filter is not None:
                with understood("the directions of the key filter"):
                    self.shared = {
                        layer: self.shared[layer].reshape(len(moment), -1) for layer, moment in moments.items()
                    }
        else:
            weights = self.keys.key_weights(len(contexts), self.reference_quirks)
            keys = first_keys(model, requests, contexts, weights, expansion)
            if self.key_filter is not None:
                self.shared = self.key_filter.find(model, keys, contexts, weights)
                keys = {layer: self._own(layer, part) for layer, part in keys.items()}
            self.memory = {
                layer: self._placed(self.solver.init(moment, keys.get(layer), self.statistics.eigen))
                for layer, moment in moments.items()
            }
            warn_of_weights(self.strengths)
        self._fingerprints, self._is_ready = fingerprints, True

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
        before = Mark({}, {}, len(register), self.writing.mark())
        limited = model.layers if self.norm_limit is not None else ()
        norms = {layer: model.weight(layer).norms()[1] for layer in limited}
        if self.why_not_exact() is None:
            out = register.numbers_of(step.requests)
            for layer in limited if out else ():
                self._note(model, layer, before)
            self.move(model, register, out, [])
        batch = _Batch(before, Mark({}, {}, len(register), self.writing.mark()), norms)
        while True:
            for layers, places in step.by_layers(model.layers):
                refused = self._write_into(model, step, layers, places, batch)
                if refused:
                    self.roll_back(model, register, before)
                    step.take_back(refused)
                    return {}
            if again is None or not again(model, step):
                break
        for layer in model.layers:
            if layer not in batch.systems:
                self._skip(model, step, layer)
        register.enter(step.requests, step.targets.groups, step.targets.units)
        return batch.systems

    def _write_into(
        self, model: LanguageModel, step: EditStep, layers: Sequence[int], places: Sequence[int], batch: _Batch
    ) -> str | None:
        """Write some requests, by their places, into some layers; return why the batch is to be taken back, if it is.

        A memory that edits can be taken out of has rows in each layer for each of them: those of the other requests
        ask nothing.
        """
        part, rows, exact = step.chosen(places), step.targets.places(places), self.why_not_exact() is None
        reader = self._reader(model, part)
        for i, layer in enumerate(track(layers, "writing", "layers")):
            weight = model.weight(layer)
            share = SPREAD[self.spread](len(layers) - i)
            keys, anchors, residuals = self._asked(reader, part, layer, layers[-1], share)
            if self.norm_limit is not None:
                self._note(model, layer, batch.before)
            if exact and layer in batch.systems:
                earlier = batch.systems[layer]
                asked = (earlier.changes + earlier.residuals)[rows] + residuals  # type: ignore[operator]  # `_system`'s
                weight.restore(batch.start.deltas[layer])
                self._keep(layer, self.solver.rolled_back(self._fetch(layer, model), batch.start.memory[layer]))
                self.writing.return_layer(layer, batch.start.writing)
                residuals = asked - keys @ weight.delta.T
            elif exact and self.repeat is not None:
                self._note(model, layer, batch.start)
            system = self._system(model, part, layer, keys, anchors, residuals, reader.rest)
            memory = self._fetch(layer, model)
            shares = part.targets.of_requests(self.solver.fulfilment(memory, system).cpu())
            step.fulfilment[layer] = torch.full((len(step),), math.nan, dtype=torch.float64)
            step.fulfilment[layer][places] = torch.stack([share.mean() for share in shares])
            batch.systems[layer] = system.among(rows, len(step.targets.vectors)) if exact else system
            update, memory = self.solver.compute(memory, batch.systems[layer])
            self._keep(layer, memory)
            update = self._written(model, layer, update)
            if self.norm_limit is not None:
                growth = (weight.live().add_(update).norm() / batch.norms[layer]).item()
                growth = Team.of(model.network).first(growth)
                if not growth <= self.norm_limit:
                    return _why_taken_back(model, step, layer, growth, self.norm_limit)
            weight.add(update)
        return None

    def _skip(self, model: LanguageModel, step: EditStep, layer: int) -> None:
        """Give the requests of a batch rows in the memory of a layer that none of them was written into."""
        step.fulfilment[layer] = torch.full((len(step),), math.nan, dtype=torch.float64)
        if self.why_not_exact() is None:
            count, delta = len(step.targets.vectors), model.weight(layer).delta
            keys, outputs = delta.new_zeros(count, delta.shape[1]), delta.new_zeros(count, delta.shape[0])
            _, memory = self.solver.compute(self._fetch(layer, model), EditSystem(keys, keys, outputs, outputs))
            self._keep(layer, memory)

    def _reader(self, model: LanguageModel, step: EditStep) -> SlotReader:
        return SlotReader(model, step.requests, step.contexts, step.expansion, self.rest_weight is not None)

    def _asked(self, reader: SlotReader, step: EditStep, layer: int, target_layer: int, share: float) -> Asked:
        """Return what a layer is asked, with the filtered keys."""
        anchor_weights = self.keys.anchor_weights(len(step.contexts))
        key_weights = self.keys.key_weights(len(step.contexts), self.reference_quirks)
        asked = step.targets.asked(layer, share, Spread(reader, key_weights, anchor_weights, target_layer))
        return asked._replace(keys=self._own(layer, asked.keys))

    def _system(
        self,
        model: LanguageModel,
        step: EditStep,
        layer: int,
        keys: Tensor,
        anchors: Tensor,
        residuals: Tensor,
        rest: Tensor | None,
    ) -> EditSystem:
        """Return what a layer is asked: to add residuals to the outputs for keys."""
        weight = model.weight(layer)
        total = self.writing.solved(layer, weight)
        if (error := self.writing.error(layer, weight)) is not None:  # ask as if nothing had been left out
            residuals = residuals + keys @ error.T
        weights = [r.weight for r, count in zip(step.requests, step.targets.units, strict=True) for _ in range(count)]
        counts = torch.tensor(weights, dtype=torch.float64, device=model.device)
        rest = None if rest is None or self.rest_weight is None else self._own(layer, rest) * self.rest_weight**0.5
        return EditSystem(keys, anchors, residuals, keys @ total.T, counts, total, rest)

    @torch.no_grad()
    def relative_changes(self, model: LanguageModel, step: EditStep, layer: int) -> list[float]:
        """Solve for the update of one layer that each edit would have alone, and write nothing.

        Args:
            model: the language model.
            step: the edits, with targets at this layer.
            layer: its number.

        Returns:
            |D|_F / |W|_F of each edit, infinite where D is not finite; the same on all processes.
        """
        memory, size, changes = self._fetch(layer, model), model.weight(layer).norms()[1], []
        for place in range(len(step)):
            part, mark = step.chosen([place]), self.writing.mark()
            reader = self._reader(model, part)
            system = self._system(model, part, layer, *self._asked(reader, part, layer, layer, 1.0), reader.rest)
            update = self.solver.preview(memory, system)
            is_finite = Team.of(model.network).first(bool(update.isfinite().all()))
            changes.append(self._written(model, layer, update).norm().item() / size if is_finite else math.inf)
            self.writing.return_to(mark)
        return Team.of(model.network).first(changes)

    def why_not_exact(self) -> str | None:
        """Return why this method has no exact undo; `None`: it has."""
        reason = self.solver.why_not_exact()
        if reason is None and not isinstance(self.solver, Downdatable):
            return f"its solver, {type(self.solver).__name__}, is not Downdatable"
        if reason is None and self.rest_weight is not None:
            return "its batches are solved beside other tokens of their own texts, which it forgets (rest_weight)"
        if reason is None and self.writing.transform is not None and not self.writing.compensate:
            name = type(self.writing.transform).__name__
            return f"its updates are changed after they are solved for ({name}), and compensate is off"
        return reason

    @torch.no_grad()
    def revert(self, model: LanguageModel, register: Register) -> None:
        """Undo all edits, by any method: the weights are the unedited ones, bit for bit."""
        for layer in model.layers:
            self._keep(layer, self.solver.cleared(self._fetch(layer, model)))
            model.weight(layer).revert()
            self.writing.forget(layer)
        register.deactivate(register.holding, UNDONE)

    def mark(self, model: LanguageModel, register: Register) -> Mark:
        """Mark the present state, so that `roll_back` can return to it."""
        deltas = {layer: model.weight(layer).delta.clone() for layer in model.layers}
        memory = {layer: self.solver.mark(memory) for layer, memory in self.memory.items()}
        return Mark(deltas, memory, len(register), self.writing.mark())

    @torch.no_grad()
    def roll_back(self, model: LanguageModel, register: Register, mark: Mark) -> None:
        """Return to a moment of the run: weights bit for bit, memory to rounding; later edits are forgotten."""
        if not mark.memory:  # of a moment before the memory was begun
            self.memory, self.shared, self._is_ready = {}, {}, False
        for layer, delta in mark.deltas.items():
            if layer in mark.memory:
                self._keep(layer, self.solver.rolled_back(self._fetch(layer, model), mark.memory[layer]))
            model.weight(layer).restore(delta)
        self.writing.return_to(mark.writing)
        register.shorten(mark.edits)

    def move(self, model: LanguageModel, register: Register, out: Sequence[int], back: Sequence[int]) -> None:
        """Remove rows of edits from memory and weights, and add others again."""
        for layer in model.layers if out or back else ():
            weight = model.weight(layer)
            solver: Any = self.solver  # it is `Downdatable` (`why_not_exact`)
            for numbers, move in ((out, solver.retire), (back, solver.restore)):
                if numbers:
                    rows, total = register.rows(numbers), self.writing.solved(layer, weight)
                    update, memory = move(self._fetch(layer, model), rows, total)
                    self._keep(layer, memory)
                    weight.add(self._written(model, layer, update))

    def _written(self, model: LanguageModel, layer: int, update: Tensor) -> Tensor:
        """Return what is written of an update that was solved for."""
        return self.writing.written(
            layer, model.weight(layer), update, lambda update: self._agreed(model, layer, update)
        )

    def _own(self, layer: int, keys: Tensor) -> Tensor:
        """Return what the filter leaves of a layer's keys."""
        return own_part(keys, self.shared[layer]) if self.key_filter is not None else keys

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
    return hashlib.sha256(moment.detach().cpu().contiguous().view(torch.uint8).numpy().data).hexdigest()[:16]
