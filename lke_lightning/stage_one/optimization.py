"""Stage one: for every request of a batch, the activation that makes the model say the target.

All requests descend together in one batch, each with its own loss, stop rule and result; which others share the
batch does not matter, because Adam works element by element and losses are never averaged over requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lke_lightning.edits import SLOT, EditBatch, EditError, EditRequest
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.model.targets import Site, Targets
from lke_lightning.stage_one.contexts import ContextTemplates
from lke_lightning.stage_one.objectives import Descent, EssenceKL, NegativeLogLikelihood, Objective, TargetNorm
from lke_lightning.stage_one.packed import PackedRows, parts
from lke_lightning.stage_one.rows import RequestRows, build_rows
from lke_lightning.stage_one.stopping import LossBelow, MostProbable, StopRule
from lke_lightning.stage_one.target_space import NormBall, TargetSpace


class TargetOptimization(Callback):
    """Optimise target activations by gradient descent, many requests at a time.

    Implements stage one of ENCORE and of ROME, MEMIT, EMMET and AlphaEdit (arXiv 2502.01636; specification in the
    published `compute_z`): Adam on delta, added at the slot in every row, with a norm ball after each step.

    Args:
        objectives: terms of the loss; their sum is minimised. Default: ENCORE's three.
        stopping: rules; the first that fires ends a request. Default: `MostProbable`, then `LossBelow`.
        space: what delta is projected onto after every step. Default: `NormBall(0.75)`.
        contexts: texts in front of the prompt. Default: five sampled ones.
        lr: learning rate of Adam; higher reaches targets in fewer steps and overshoots more.
        max_steps: forward passes at most, so one update fewer.
        site: `block`: the target is the target block's output (MEMIT family); `matrix`: its MLP matrix's (ROME).
        max_tokens: how many tokens are run at once; lower it when memory is short. Results do not depend on it.
        reference_quirks: do as the published code where it differs from the paper (`MostProbable`, `EssenceKL`).
    """

    def __init__(
        self,
        objectives: list[Objective] | None = None,
        stopping: list[StopRule] | None = None,
        space: TargetSpace | None = None,
        contexts: ContextTemplates | None = None,
        lr: float = 0.5,
        max_steps: int = 20,
        site: Site = "block",
        max_tokens: int = 32768,
        reference_quirks: bool = False,
    ) -> None:
        if max_steps < 1:
            raise EditError(f"stage_one.max_steps is {max_steps}: at least one step is needed")
        self.objectives = objectives or [NegativeLogLikelihood(), EssenceKL(), TargetNorm()]
        self.stopping = [MostProbable(), LossBelow()] if stopping is None else stopping
        self.space = space or NormBall()
        self.context_templates = contexts or ContextTemplates()
        self.lr, self.max_steps, self.site = lr, max_steps, site
        self.max_tokens, self.reference_quirks = max_tokens, reference_quirks
        self.contexts: list[str] = []
        """Contexts of this run, `"{}"` first; sampled once by the unedited model, kept in checkpoints."""

    def state_dict(self) -> dict[str, Any]:
        """Return the sampled contexts."""
        return {"contexts": self.contexts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the contexts of the interrupted run."""
        self.contexts = list(state_dict["contexts"])

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that every request can be encoded; sample the contexts, unless they came from a checkpoint.

        Raises:
            EditError: a request that cannot be, with its id; nothing has been optimised yet.
        """
        for request in trainer.datamodule.requests:
            try:
                build_rows([request], [SLOT], pl_module.language_model.text)
            except EditError as error:
                raise EditError(f"edit {request.id}: {error}") from error
        if not self.contexts:
            self.contexts = self.context_templates.sample(pl_module.language_model)
        pl_module.contexts = self.contexts

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: EditBatch, _: int) -> None:
        """Find the targets of the batch."""
        with trainer.precision_plugin.forward_context(), pl_module.timed("stage_one"):
            pl_module.targets = self.optimize(pl_module.language_model, batch.requests, self.contexts)

    def optimize(self, model: LanguageModel, requests: Sequence[EditRequest], contexts: Sequence[str]) -> Targets:
        """Find the targets of some requests under the model's present weights.

        Args:
            model: the language model, possibly edited before.
            requests: the edits.
            contexts: templates, `"{}"` first.
        """
        built = build_rows(requests, contexts, model.text, self.reference_quirks)
        found = [self._descend(model, part) for part in parts(built, self.max_tokens)]
        return Targets(
            torch.cat([targets.vectors for targets in found]),
            [steps for targets in found for steps in targets.steps],
            [loss for targets in found for loss in targets.losses],
            [reason for targets in found for reason in targets.reasons],
            self.site,
        )

    @torch.enable_grad()
    def _descend(self, model: LanguageModel, built: Sequence[RequestRows]) -> Targets:
        rows = PackedRows.build(model, built, self.site)
        initial = rows.initial
        initial_norm = initial.norm(dim=1)
        targets = Targets.unset(initial, self.site)
        change = torch.zeros_like(initial, requires_grad=True)
        optimizer = torch.optim.Adam([change], lr=self.lr)
        active = torch.arange(len(built), device=change.device)
        history = torch.zeros((0, len(built), rows.contexts), dtype=torch.bool, device=change.device)
        essence_before: Tensor | None = None

        for step in range(1, self.max_steps + 1):
            nll, most_probable, essence = rows.predict(change[active])
            essence_before = essence.detach() if essence_before is None else essence_before
            history = torch.cat([history, most_probable.unsqueeze(0)])
            descent = Descent(
                nll, history, change[active], initial_norm[active], essence, essence_before, self.reference_quirks
            )
            loss = torch.stack([objective(descent) for objective in self.objectives]).sum(0)
            reason = self._reasons(descent, loss, is_last=step == self.max_steps)
            stopped = reason >= 0
            if stopped.any():
                self._record(targets, active[stopped], change, step, loss[stopped], reason[stopped])
                if stopped.all():
                    break
            optimizer.zero_grad()
            loss[~stopped].sum().backward()
            optimizer.step()
            with torch.no_grad():
                change.copy_(self.space.project(change, initial_norm))
            if stopped.any():  # finished requests cost nothing from here on
                going = ~stopped
                active, history, essence_before = active[going], history[:, going], essence_before[going]
                rows = rows.keep(going)
        return targets

    def _reasons(self, descent: Descent, loss: Tensor, is_last: bool) -> Tensor:
        """Return the index of the first rule that fires for each request, -1 for none."""
        reason = torch.full_like(loss, len(self.stopping) if is_last else -1, dtype=torch.long)
        for i, rule in reversed(list(enumerate(self.stopping))):
            reason = torch.where(rule(descent, loss), i, reason)
        return reason

    def _record(self, targets: Targets, done: Tensor, change: Tensor, step: int, loss: Tensor, reason: Tensor) -> None:
        """Freeze finished requests at the vector that passed."""
        targets.vectors[done] += change[done].detach()
        names = [type(rule).__name__ for rule in self.stopping] + ["MaxSteps"]
        for i, value, rule in zip(done.tolist(), loss.tolist(), reason.tolist(), strict=True):
            targets.steps[i], targets.losses[i], targets.reasons[i] = step, value, names[rule]
