"""Stage two: write the targets into the weights, layer by layer, by one least-squares solve each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lke_lightning.edits import EditRequest
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.model.targets import Targets
from lke_lightning.stage_two.keys import ContextMean, KeyPolicy
from lke_lightning.stage_two.preservation import BaseStatistics, NormPenalty, PastEdits
from lke_lightning.stage_two.reading import SlotReader
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
            The command `export` does not know it and writes the whole change.
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
        self.facts: list[list[str]] = []
        """Subject and relation of every edit in the memory, in its order."""

    def state_dict(self) -> dict[str, Any]:
        """Return the solver's memory."""
        memory = {str(layer): self.solver.saved(memory) for layer, memory in self.memory.items()}
        return {"memory": memory, "facts": self.facts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the memory of the interrupted run."""
        self.memory = {int(layer): dict(memory) for layer, memory in state_dict["memory"].items()}
        self.facts = [list(fact) for fact in state_dict["facts"]]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Tell how the change is to be read."""
        pl_module.readout = self.readout

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prepare each layer's solve, or complete what came from a checkpoint."""
        self.prepare(pl_module.language_model)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, _: torch.optim.Optimizer) -> None:
        """Write the batch into the weights."""
        with trainer.precision_plugin.forward_context(), pl_module.timed("stage_two"):
            self.apply(pl_module.language_model, pl_module.batch.requests, pl_module.contexts, pl_module.targets)
        # Here and not at the end of the batch: checkpoints are written by callbacks, before the module's own hooks.
        pl_module.edited += [request.id for request in pl_module.batch.requests]

    def prepare(self, model: LanguageModel) -> None:
        """Load or compute the statistics of the unedited model and start every layer's memory from them."""
        moments = self.statistics.second_moments(model)
        if self.memory:
            self.memory = {
                layer: self.solver.completed(self.memory[layer], moment) for layer, moment in moments.items()
            }
        else:
            self.memory = {layer: self.solver.init(moment, self.statistics.eigen) for layer, moment in moments.items()}

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
        """
        self._retire(model, requests)
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
            weight.add(update)
        if self.solver.past_edits is not None:
            self.facts += [list(request.fact) for request in requests]
        return systems

    def _retire(self, model: LanguageModel, requests: Sequence[EditRequest]) -> None:
        """Take older edits of the same facts out of memory and weights."""
        if self.solver.past_edits is None:
            return
        known = {tuple(fact): number for number, fact in enumerate(self.facts)}
        older = [known[request.fact] for request in requests if request.fact in known]
        if older:
            for layer in model.layers:
                weight = model.weight(layer)
                update, memory = self.solver.retire(self._fetch(layer, model), older, weight.delta)
                self._keep(layer, memory)
                weight.add(update)

    def _fetch(self, layer: int, model: LanguageModel) -> Memory:
        """Bring what the solver computes with to the device."""
        on_device = self.solver.on_device
        return {name: part.to(model.device) if name in on_device else part for name, part in self.memory[layer].items()}

    def _keep(self, layer: int, memory: Memory) -> None:
        self.memory[layer] = {name: part.cpu() for name, part in memory.items()} if self.keep_on_host else memory
