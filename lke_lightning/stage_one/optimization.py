"""Stage one: for every request of a batch, the activation that makes the model say the target.

All requests descend together in one batch, each with its own loss, stop rule and result; which others share the
batch does not matter, because Adam works element by element and losses are never averaged over requests.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lke_lightning.distributed import Team
from lke_lightning.edits import EditBatch, EditError, EditRequest, check_number
from lke_lightning.model.batching import within_memory
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.model.targets import Site, Targets
from lke_lightning.stage_one.contexts import ContextTemplates
from lke_lightning.stage_one.objectives import EssenceKL, NegativeLogLikelihood, Objective, StepView, TargetNorm
from lke_lightning.stage_one.packed import PackedRows
from lke_lightning.stage_one.rows import RequestRows, build_rows, check_requests, grouped
from lke_lightning.stage_one.stage import StageOne, warn_of_left_out
from lke_lightning.stage_one.stopping import LossBelow, MostProbable, StopRule
from lke_lightning.stage_one.target_space import NormBall, TargetSpace
from lke_lightning.step import EditStep


class TargetOptimization(StageOne):
    """Optimise target activations by gradient descent, many requests at a time.

    Implements stage one of ENCORE and of ROME, MEMIT, EMMET and AlphaEdit (arXiv 2502.01636; specification in the
    published `compute_z`): Adam on delta, added at the slot in every row, with a norm ball after each step.

    Args:
        objectives: terms of the loss; their sum is minimised. Default: ENCORE's three.
        stopping: rules; the first that fires ends a request. Default: `MostProbable`, then `LossBelow`.
        space: what delta is projected onto after every step. Default: `NormBall(0.75)`.
        contexts: texts in front of the prompt. Default: five sampled ones.
        relative_lr: learning rate of Adam as a share of the initial norm: a step in which every coordinate moves
            alike is this long. Higher reaches targets in fewer steps and overshoots more.
        lr: learning rate in the units of the activations, as published; it counts where it is given.
        max_steps: forward passes at most, so one update fewer.
        site: `block`: the target is the target block's output (MEMIT family); `matrix`: its MLP matrix's (ROME).
            `None`: at the matrix where a norm stands behind it, as in Gemma 2 and 3 and OLMo 2, else at the block.
        max_tokens: how many tokens are run at once, at first; where memory runs out it is halved. Results do not
            depend on it.
        check_every: after how many steps finished requests are looked for and dropped. Results do not depend on it.
            `None`: every step on a CPU, every fourth on a GPU, which has to wait for the answer.
        share_targets: which requests of a batch share one change, found for the mean of their losses, that stops when
            all of them may. `key`: those alike up to the subject's end, which have one key and so can have but one
            value. `subject`: those of one subject (MEMIT-Merge, arXiv 2502.07322), whose keys are like each other
            where the words before it differ. `None`: none, as in the other published codes; the solve then writes
            the mean of what a key is asked for.
        reference_quirks: do as the published code where it differs from the paper (`MostProbable`, `EssenceKL`), and
            share no targets, whatever `share_targets` says.
    """

    def __init__(
        self,
        objectives: list[Objective] | None = None,
        stopping: list[StopRule] | None = None,
        space: TargetSpace | None = None,
        contexts: ContextTemplates | None = None,
        lr: float | None = None,
        relative_lr: float = 0.15,
        max_steps: int = 30,
        site: Site | None = None,
        max_tokens: int = 32768,
        check_every: int | None = None,
        share_targets: Literal["key", "subject"] | None = "key",
        reference_quirks: bool = False,
    ) -> None:
        if objectives is not None and not objectives:
            raise EditError(
                "stage_one.objectives is empty: name at least NegativeLogLikelihood, or leave the option out"
            )
        check_number("stage_one.lr", 1 if lr is None else lr, above=0, at_most=1000)
        check_number("stage_one.relative_lr", relative_lr, above=0, at_most=10)
        check_number("stage_one.max_steps", max_steps, at_least=1)
        check_number("stage_one.max_tokens", max_tokens, at_least=1)
        check_number("stage_one.check_every", 1 if check_every is None else check_every, at_least=1)
        if share_targets not in ("key", "subject", None):
            raise EditError(f"stage_one.share_targets is {share_targets!r}: choose key, subject or null")
        self.objectives = objectives or [NegativeLogLikelihood(), EssenceKL(), TargetNorm()]
        self.stopping = [MostProbable(), LossBelow()] if stopping is None else stopping
        self.space = space or NormBall()
        self.context_templates = contexts or ContextTemplates()
        self.lr, self.relative_lr, self.max_steps, self.site = lr, relative_lr, max_steps, site
        self.max_tokens, self.check_every = max_tokens, check_every
        self.share_targets, self.reference_quirks = None if reference_quirks else share_targets, reference_quirks
        self.contexts, self.memory = [], {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prepare for the requests of the run, and say so where the model's structure puts targets at the matrix."""
        if self.site is None and pl_module.language_model.site == "matrix":
            rank_zero_info(
                f"Targets live at the output of {pl_module.language_model.architecture.matrix_name} (stage_one.site "
                "matrix), because a norm stands between it and the residual stream"
            )
        super().on_fit_start(trainer, pl_module)

    def prepare(self, model: LanguageModel, requests: Sequence[EditRequest]) -> None:
        """Sample the contexts, unless they came from a checkpoint; check that every request can be encoded in them.

        Raises:
            EditError: a request that cannot be, with its id; nothing has been optimised yet.
        """
        if not self.contexts:
            self.contexts = Team.of(model.network).first(self.context_templates.sample(model))
        check_requests(requests, self.contexts, model.text)

    def aim(self, model: LanguageModel, batch: EditBatch) -> EditStep:
        """Find the targets of a batch in this run's contexts; a request without finite numbers is left out of it."""
        step = EditStep.of(batch, self.optimize(model, batch.requests, self.contexts), self.contexts)
        step.memory = self.memory
        return warn_of_left_out(step)

    def optimize(self, model: LanguageModel, requests: Sequence[EditRequest], contexts: Sequence[str]) -> Targets:
        """Find the targets of some requests under the model's present weights; processes divide them.

        Args:
            model: the language model, possibly edited before.
            requests: the edits.
            contexts: templates, `"{}"` first.
        """
        built = build_rows(requests, contexts, model.text, self.reference_quirks)
        groups = self._groups(requests, built)
        team = Team.of(model.network)
        found = [
            self.descend(model, [RequestRows.together([built[place] for place in group]) for group in groups_of_a_size])
            for _, groups_of_a_size in itertools.groupby(team.share(groups), key=len)
        ]
        if team.size > 1:
            found = team.gather([replace(part, vectors=part.vectors.cpu()) for part in found])
        targets = Targets.joined(found)
        places = [place for group in groups for place in group]
        chosen = targets.chosen(sorted(range(len(places)), key=places.__getitem__))
        return replace(chosen, vectors=chosen.vectors.to(model.device))

    def _groups(self, requests: Sequence[EditRequest], built: Sequence[RequestRows]) -> list[list[int]]:
        if self.share_targets is None:
            return grouped(range(len(built)))
        keys = [rows.key for rows in built]
        if self.share_targets == "key":
            return grouped(keys)
        return grouped([request.subject or key for request, key in zip(requests, keys, strict=True)])

    def descend(self, model: LanguageModel, built: Sequence[RequestRows]) -> Targets:
        """Find the targets of requests that are already rows, as many of each."""
        found, self.max_tokens = within_memory(
            lambda part: self._descend_together(model, part), built, RequestRows.count_tokens, self.max_tokens
        )
        return Targets.joined(found)

    @torch.enable_grad()
    def _descend_together(self, model: LanguageModel, built: Sequence[RequestRows]) -> Targets:
        site = self.site or model.site
        rows = PackedRows.build(model, built, site, self.max_tokens)
        bare = rows.bare
        starts = rows.initial
        initial = starts[:, 0]
        initial_norm = initial.norm(dim=1)
        device = initial.device
        unit = torch.ones_like(initial_norm) if self.lr is not None else initial_norm / initial.shape[1] ** 0.5
        unit = unit.clamp_min(torch.finfo(unit.dtype).tiny).unsqueeze(1)  # Adam's steps are measured in it
        scaled = torch.zeros_like(initial, requires_grad=True)
        optimizer = torch.optim.Adam([scaled], lr=self.relative_lr if self.lr is None else self.lr)
        outcome = _Outcome(
            torch.zeros_like(initial),
            torch.zeros((len(built), len(bare)), dtype=torch.bool, device=device),
            *(torch.zeros(len(built), dtype=t, device=device) for t in _Outcome.DTYPES),
        )
        active = torch.arange(len(built), device=device)  # the requests that still have rows
        going = torch.ones_like(active, dtype=torch.bool)  # those of them that have not stopped
        history = torch.zeros((0, len(built), rows.contexts), dtype=torch.bool, device=device)
        essence_before: Tensor | None = None
        check_every = self.check_every or (1 if device.type == "cpu" else 4)
        team = Team.of(model.network)

        for step in range(1, self.max_steps + 1):
            change = scaled * unit
            nll, most_probable, essence = rows.predict(change[active])
            essence_before = essence.detach() if essence_before is None else essence_before
            history = torch.cat([history, most_probable.unsqueeze(0)])
            view = StepView(
                nll, history, change[active], initial_norm[active], essence, essence_before, self.reference_quirks
            )
            loss = torch.stack([objective(view) for objective in self.objectives]).sum(0)
            # a request that stopped on one process only would leave the others waiting in a sharded network
            reason = team.alike(self._reasons(view, loss, is_last=step == self.max_steps))
            stopped = going & (reason >= 0)
            outcome.record(active, stopped, change[active], most_probable[:, bare], step, loss, reason)
            going = going & ~stopped
            if step == self.max_steps:
                break
            is_check = step % check_every == 0
            left = int(going.sum()) if is_check else len(active)
            if not left:
                break
            optimizer.zero_grad()
            torch.where(going, loss, 0).sum().backward()
            optimizer.step()
            with torch.no_grad():
                scaled.copy_(self.space.project(scaled * unit, initial_norm) / unit)
            if left < len(active):  # finished requests cost nothing from here on
                active, history, essence_before = active[going], history[:, going], essence_before[going]
                rows, going = rows.keep(going), going[going]
        return outcome.targets(starts, [type(rule).__name__ for rule in self.stopping] + ["MaxSteps"], site)

    def _reasons(self, view: StepView, loss: Tensor, is_last: bool) -> Tensor:
        """Return the index of the first rule that fires for each request, -1 for none."""
        reason = torch.full_like(loss, len(self.stopping) if is_last else -1, dtype=torch.long)
        for i, rule in reversed(list(enumerate(self.stopping))):
            reason = torch.where(rule(view, loss), i, reason)
        return reason


@dataclass
class _Outcome:
    """What was found so far, on the device: nothing waits for it until the descent is over."""

    changes: Tensor
    reached: Tensor
    """On the bare prompts, (groups, members) bool."""
    steps: Tensor
    reasons: Tensor
    losses: Tensor
    first_losses: Tensor

    DTYPES: ClassVar = (torch.long, torch.long, torch.float64, torch.float64)

    @torch.no_grad()
    def record(
        self, active: Tensor, stopped: Tensor, change: Tensor, said: Tensor, step: int, loss: Tensor, reason: Tensor
    ) -> None:
        """Freeze requests that just stopped at the vector that passed; all tensors are (active requests, ...)."""
        if step == 1:
            self.first_losses.copy_(loss)
        self.changes[active] = torch.where(stopped.unsqueeze(1), change, self.changes[active])
        self.reached[active] = torch.where(stopped.unsqueeze(1), said, self.reached[active])
        self.steps[active] = torch.where(stopped, step, self.steps[active])
        self.losses[active] = torch.where(stopped, loss.to(self.losses), self.losses[active])
        self.reasons[active] = torch.where(stopped, reason, self.reasons[active])

    def targets(self, starts: Tensor, names: Sequence[str], site: Site) -> Targets:
        """Return the result for each member of each group, with the rules' names.

        Args:
            starts: the unchanged activations, (groups, members, hidden size).
            names: of the rules.
            site: where the targets live.
        """
        members = starts.shape[1]
        groups = range(len(starts))
        lists = (self.steps, self.losses, self.first_losses, self.reasons, self.changes.norm(dim=1))
        steps, losses, first_losses, reasons, distances = (part.repeat_interleave(members).tolist() for part in lists)
        return Targets(
            (starts + self.changes.unsqueeze(1)).flatten(0, 1),
            steps,
            losses,
            first_losses,
            [names[i] for i in reasons],
            site,
            [group for group in groups for _ in range(members)],
            distances,
            self.reached.flatten().tolist(),
        )
