"""Stage two: write the targets into the weights, layer by layer, by one least-squares solve each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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


class WeightUpdate(Callback):
    """Spread what the targets lack over the edited layers and solve for each layer's update.

    Implements stage two of ENCORE and of the MEMIT family (arXiv 2502.01636): for layer i of m, keys are read under
    the weights as they now are, the residual is (target - present output) / (m - i), so that the last layer takes
    all that is left, and the update is added to the weight.

    Args:
        solver: turns keys and residuals into an update. Default: ENCORE's least squares with strengths of 1; real
            models need theirs, see configs/experiment.
        keys: how keys are averaged over contexts. Default: `ContextMean`.
        statistics: second moments of keys on ordinary text. Default: computed on the demo text.
        reference_quirks: do as the published code where it differs from the paper (`ContextMean`).
    """

    def __init__(
        self,
        solver: Solver | None = None,
        keys: KeyPolicy | None = None,
        statistics: Statistics | None = None,
        reference_quirks: bool = False,
    ) -> None:
        self.solver = solver or LeastSquares([BaseStatistics(1.0), NormPenalty(1.0)], PastEdits())
        self.keys = keys or ContextMean()
        self.statistics = statistics or KeyStatistics()
        self.reference_quirks = reference_quirks
        self.memory: dict[int, Memory] = {}
        """What the solver remembers of earlier batches, by layer."""

    def state_dict(self) -> dict[str, Any]:
        """Return the solver's memory."""
        return {"memory": {str(layer): memory for layer, memory in self.memory.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the memory of the interrupted run."""
        self.memory = {int(layer): dict(memory) for layer, memory in state_dict["memory"].items()}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prepare each layer's solve, unless its memory came from a checkpoint."""
        model = pl_module.language_model
        if not self.memory:
            self.prepare(model)
        self.memory = {
            layer: {name: tensor.to(model.device) for name, tensor in memory.items()}
            for layer, memory in self.memory.items()
        }

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, _: torch.optim.Optimizer) -> None:
        """Write the batch into the weights."""
        with trainer.precision_plugin.forward_context(), pl_module.timed("stage_two"):
            self.apply(pl_module.language_model, pl_module.batch.requests, pl_module.contexts, pl_module.targets)
        # Here and not at the end of the batch: checkpoints are written by callbacks, before the module's own hooks.
        pl_module.edited += [request.id for request in pl_module.batch.requests]

    def prepare(self, model: LanguageModel) -> None:
        """Load or compute the statistics of the unedited model and start every layer's memory from them."""
        moments = self.statistics.second_moments(model)
        self.memory = {layer: self.solver.init(moment) for layer, moment in moments.items()}

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
        reader = SlotReader(model, requests, contexts)
        key_weights = self.keys.keys(len(contexts), self.reference_quirks)
        anchor_weights = self.keys.anchors(len(contexts))
        systems = {}
        for i, layer in enumerate(model.layers):
            keys, anchors = reader.keys(layer, [key_weights, anchor_weights])
            missing = targets.vectors - reader.outputs(targets.site, anchor_weights)
            systems[layer] = EditSystem(keys, anchors, missing / (len(model.layers) - i))
            update, self.memory[layer] = self.solver.compute(self.memory[layer], systems[layer])
            model.weight(layer).add(update)
        return systems
