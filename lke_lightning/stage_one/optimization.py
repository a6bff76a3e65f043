"""Stage one: for every request of a batch, the activation that makes the model say the target.

All requests descend together in one batch, each with its own loss, stop rule and result; which others share the
batch does not matter, because Adam works element by element and losses are never averaged over requests.
"""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lke_lightning.distributed import Team
from lke_lightning.edits import SLOT, EditBatch, EditError, EditRequest, check_number
from lke_lightning.model.batching import within_memory
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.model.reading import SlotReader
from lke_lightning.model.targets import Site, Targets
from lke_lightning.model.units import Expansion, Whole
from lke_lightning.progress import track
from lke_lightning.stage_one.contexts import ContextTemplates
from lke_lightning.stage_one.expansion import cut, in_turn
from lke_lightning.stage_one.history import UpdateHistory
from lke_lightning.stage_one.objectives import EssenceKL, NegativeLogLikelihood, Objective, StepView, TargetNorm
from lke_lightning.stage_one.packed import PackedRows
from lke_lightning.stage_one.rows import RequestRows, build_rows, check_requests, grouped
from lke_lightning.stage_one.stage import StageOne, warn_of_left_out
from lke_lightning.stage_one.stopping import LossBelow, MostProbable, StopRule
from lke_lightning.stage_one.target_space import Move, NormBall, State, TargetSpace
from lke_lightning.stage_one.transforms import Found, TargetTransform
from lke_lightning.step import EditStep

PILOT = 50
"""After so many targets found before the first batch, one line says how far it is."""


class TargetOptimization(StageOne):
    """Optimise target activations by gradient descent, many requests at a time.

    Implements stage one of ENCORE and of ROME, MEMIT, EMMET and AlphaEdit (arXiv 2502.01636; specification in the
    published `compute_z`): Adam on delta, added at the slot in every row, with a norm ball after each step.

    Args:
        objectives: terms of the loss; their sum is minimised. Default: ENCORE's three.
        stopping: rules; the first that fires ends a request. Default: `MostProbable`, then `LossBelow`.
        space: what delta is projected onto after every step. Default: `NormBall(0.75)`.
        transform: changes what was found before it is written, or drops edits (NAS). Default: none.
        contexts: texts in front of the prompt. Default: five sampled ones.
        relative_lr: learning rate of Adam as a share of the initial norm: a step in which every coordinate moves
            alike is this long. Higher reaches targets in fewer steps and overshoots more.
        lr: learning rate in the units of the activations, as published; it counts where it is given.
        max_steps: forward passes at most, so one update fewer.
        site: `block`: the target is the target block's output (MEMIT family); `matrix`: its MLP matrix's (ROME).
            `None`: at the matrix where a norm stands behind it, as in Gemma 2 and 3 and OLMo 2, else at the block.
        beside: `attention`: at the site `matrix`, find a second change, of the output of the target layer's attention,
            in the same descent, with a penalty and a ball of its own, and drop it: only the target is written (PMET,
            arXiv 2308.08742). `None`: there is none.
        max_tokens: how many tokens are run at once, at first; where memory runs out it is halved. Results do not
            depend on it.
        check_every: after how many steps finished requests are looked for and dropped. Results do not depend on it.
            `None`: every step on a CPU, every fourth on a GPU, which has to wait for the answer.
        expansion: how a request becomes units, each with a change of its own. Default: `Whole`, one.
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
        expansion: Expansion | None = None,
        transform: TargetTransform | None = None,
        beside: Literal["attention"] | None = None,
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
        if beside not in ("attention", None):
            raise EditError(f"stage_one.beside is {beside!r}: choose attention or null")
        if beside and site != "matrix":
            raise EditError("stage_one.beside changes the attention beside the MLP: set stage_one.site to matrix")
        if beside and not isinstance(space, NormBall | None):
            raise EditError(
                f"stage_one.beside needs the space NormBall for both of its changes, not {type(space).__name__}"
            )
        if (beside or transform) and expansion is not None and not expansion.in_contexts:
            given = "beside" if beside else "transform"
            raise EditError(
                f"stage_one.{given} is for one change at the subject, and {type(expansion).__name__} finds several "
                "along the answer: leave one of them out"
            )
        self.objectives = objectives or [NegativeLogLikelihood(), EssenceKL(), TargetNorm()]
        self.stopping = [MostProbable(), LossBelow()] if stopping is None else stopping
        self.space, self.transform = space or NormBall(), transform
        _check_together(self.space, self.objectives, max_steps)
        self.context_templates = contexts or ContextTemplates()
        self.lr, self.relative_lr, self.max_steps, self.site = lr, relative_lr, max_steps, site
        self.max_tokens, self.check_every, self.beside = max_tokens, check_every, beside
        self.expansion = expansion or Whole()
        self.share_targets, self.reference_quirks = None if reference_quirks else share_targets, reference_quirks
        self.contexts, self.memory = [], {}

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Prepare for the requests of the run, and say so where the model's structure puts targets at the matrix."""
        if self.site is None and pl_module.language_model.site == "matrix":
            rank_zero_info(
                f"Targets live at the output of {pl_module.language_model.architecture.matrix_name} (stage_one.site "
                "matrix), because a norm stands between it and the residual stream"
            )
        super().on_fit_start(trainer, pl_module)

    @property
    def at_all_layers(self) -> bool:
        """A transform knows the unedited targets of the last layer alone, and a space may compare with earlier ones."""
        return self.transform is not None or self.space.remembers

    @property
    def pilot(self) -> int:
        """How many targets the transform wants to see."""
        return 0 if self.transform is None else self.transform.sample

    def prepare(self, model: LanguageModel, requests: Sequence[EditRequest]) -> None:
        """Sample the contexts, unless they came from a checkpoint; check that every request can be encoded in them.

        Then the transform learns what it has to know of the unedited model, unless a checkpoint knows it.

        Raises:
            EditError: a request that cannot be, with its id, before anything is optimised; or the transform cannot be
                used with this model.
        """
        if not self.contexts:
            self.contexts = Team.of(model.network).first(self.context_templates.sample(model))
        self.expansion.check(requests, self.contexts)
        check_requests(requests, self.contexts, model.text)
        if self.beside:
            model.architecture.attention_matrix(model.target_layer)
        if self.transform is not None:
            pilot = partial(self._pilot, model, requests)
            self.memory = self.transform.prepared(self.memory, model, self.site or model.site, pilot)

    def aim(self, model: LanguageModel, batch: EditBatch, layer: int | None = None) -> EditStep:
        """Find the targets of a batch in this run's contexts.

        A request without finite numbers is left out of it, and so is what the transform drops.

        Args:
            model: the language model, possibly edited before.
            batch: the edits.
            layer: where targets live; `None`: the last edited layer.
        """
        layer = model.target_layer if layer is None else layer
        history = UpdateHistory(model.weight(layer).delta)
        seen, memory = self.space.look(history, partial(_bare_keys, model, batch.requests, layer), self.memory)
        step = EditStep.of(batch, self.optimize(model, batch.requests, self.contexts, layer, seen), self.contexts)
        step.memory, step.expansion = memory, self.expansion
        if self.transform is not None and step.requests:
            found = Found.of(model, step.requests, step.targets)
            change, dropped = self.transform(found, step.memory)
            vectors, distances = found.initial + change, change.norm(dim=1).tolist()
            step.targets = replace(step.targets, vectors=vectors, distances=distances)
            for before, place in enumerate(sorted(dropped)):  # so many are left out already
                step.leave_out([place - before], dropped[place])
        return warn_of_left_out(step)

    def _pilot(self, model: LanguageModel, requests: Sequence[EditRequest], sample: int) -> Found:
        """Find the targets of the first `sample` requests under the unedited weights."""
        requests, start, parts = requests[:sample], time.perf_counter(), []
        rank_zero_info(f"Before the first batch: the targets of {len(requests)} edits on the unedited model")
        with model.unedited():
            for first in range(0, len(requests), PILOT):
                some = requests[first : first + PILOT]
                parts.append(Found.of(model, some, self.optimize(model, some, self.contexts)))
                rank_zero_info(f"  {first + len(some)} of {len(requests)} in {time.perf_counter() - start:.1f} s")
        return Found.joined(parts)

    def optimize(
        self,
        model: LanguageModel,
        requests: Sequence[EditRequest],
        contexts: Sequence[str],
        layer: int | None = None,
        seen: State | None = None,
    ) -> Targets:
        """Find the targets of some requests under the model's present weights; processes divide them.

        Args:
            model: the language model, possibly edited before.
            requests: the edits.
            contexts: templates, `"{}"` first.
            layer: where targets live; `None`: the last edited layer.
            seen: what the target space has seen of the requests (`TargetSpace.look`).
        """
        built = build_rows(requests, contexts, model.text, self.reference_quirks)
        for name, parts in (seen or {}).items():
            built = [replace(rows, seen={**rows.seen, name: part}) for rows, part in zip(built, parts, strict=True)]
        others = self.expansion.others(model, requests, contexts)
        units = [cut(rows, self.expansion, about) for rows, about in zip(built, others, strict=True)]
        return in_turn(units, lambda rows, places: self._find(model, [requests[i] for i in places], rows, layer))

    def _find(
        self, model: LanguageModel, requests: Sequence[EditRequest], built: Sequence[RequestRows], layer: int | None
    ) -> Targets:
        """Find the targets of one unit of each of some requests."""
        groups = sorted(self._groups(requests, built), key=lambda group: (len(group), len(built[group[0]].others)))
        team = Team.of(model.network)
        mine = [RequestRows.together([built[place] for place in group]) for group in team.share(groups)]
        found = [self.descend(model, list(alike), layer) for _, alike in itertools.groupby(mine, key=RequestRows.shape)]
        if team.size > 1:
            found = team.gather([replace(part, vectors=part.vectors.cpu()) for part in found])
        targets = Targets.joined(found)
        places = [place for group in groups for place in group]
        chosen = targets.chosen(sorted(range(len(places)), key=places.__getitem__))
        return replace(chosen, vectors=chosen.vectors.to(model.device))

    def _groups(self, requests: Sequence[EditRequest], built: Sequence[RequestRows]) -> list[list[int]]:
        keys = [rows.key for rows in built]
        if self.share_targets == "key" or not self.expansion.in_contexts:
            return grouped(keys)
        if self.share_targets is None:
            return grouped(range(len(built)))
        return grouped([request.subject or key for request, key in zip(requests, keys, strict=True)])

    def present_nlls(self, model: LanguageModel, step: EditStep) -> list[float]:
        """Return the mean negative log-likelihood of each request's target before any step, as `Targets.nlls`."""
        at_start = copy.copy(self)
        at_start.max_steps = 1
        return [nll for nll, _ in at_start.optimize(model, step.requests, step.contexts).nlls or ()]

    def descend(self, model: LanguageModel, built: Sequence[RequestRows], layer: int | None = None) -> Targets:
        """Find the targets of requests that are already rows, as many of each."""
        found, self.max_tokens = within_memory(
            lambda part: self._descend_together(model, part, layer), built, RequestRows.count_tokens, self.max_tokens
        )
        return Targets.joined(found)

    @torch.enable_grad()
    def _descend_together(self, model: LanguageModel, built: Sequence[RequestRows], layer: int | None) -> Targets:
        site = self.site or model.site
        layer = model.target_layer if layer is None else layer
        rows = PackedRows.build(model, built, layer, site, self.max_tokens, bool(self.beside))
        bare, size = rows.bare, model.architecture.hidden_size
        starts = rows.initial
        initial = starts[:, 0]
        norms = rows.norms(size)  # of the target's site, and of the attention's output
        device = initial.device
        unit = torch.ones_like(norms) if self.lr is not None else norms / size**0.5
        unit = unit.clamp_min(torch.finfo(unit.dtype).tiny).repeat_interleave(size, dim=1)  # Adam's steps in it
        scaled = torch.zeros_like(initial, requires_grad=True)
        optimizer = torch.optim.Adam([scaled], lr=self.relative_lr if self.lr is None else self.lr)
        outcome = _Outcome(
            torch.zeros_like(initial[:, :size]),
            torch.zeros((len(built), len(bare)), dtype=torch.bool, device=device),
            *(torch.zeros(len(built), dtype=t, device=device) for t in _Outcome.DTYPES),
        )
        active = torch.arange(len(built), device=device)  # the requests that still have rows
        going = torch.ones_like(active, dtype=torch.bool)  # those of them that have not stopped
        history = torch.zeros((0, len(built), rows.contexts), dtype=torch.bool, device=device)
        essence_before: Tensor | None = None
        check_every = self.check_every or (1 if device.type == "cpu" else 4)
        team = Team.of(model.network)
        updates = UpdateHistory(model.weight(layer).delta)
        seen = {name: torch.stack([request.seen[name] for request in built]) for name in built[0].seen}
        state = self.space.start(initial[:, :size], seen, updates)

        for step in track(range(1, self.max_steps + 1), f"targets of {len(built)} edits", "steps"):
            change = scaled * unit
            nll, most_probable, essence = rows.predict(change[active])
            essence_before = essence.detach() if essence_before is None else essence_before
            history = torch.cat([history, most_probable.unsqueeze(0)])
            aimed, *beside = change[active].split(size, dim=1)
            norm, *beside_norm = norms[active].unbind(1)
            view = StepView(
                nll, history, aimed, norm, essence, essence_before, self.reference_quirks, active, state, updates,
                *beside, *beside_norm,
            )  # fmt: skip
            loss = torch.stack([_term(objective, view) for objective in self.objectives]).sum(0)
            # a request that stopped on one process only would leave the others waiting in a sharded network
            reason = team.alike(self._reasons(view, loss, is_last=step == self.max_steps))
            stopped = going & (reason >= 0) & (step > self.space.first_pass or step == self.max_steps)
            own = nll[:, : rows.contexts - rows.others].mean(1)
            outcome.record(active, stopped, aimed, most_probable[:, bare], step, loss, own, reason)
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
                reached = torch.zeros(len(built), dtype=torch.bool, device=device).index_copy(0, active, reason >= 0)
                aimed, *beside = (scaled * unit).split(size, dim=1)
                norm, *beside_norm = norms.unbind(1)
                gradient: Any = scaled.grad  # not `None` any more
                move = Move(step, change.detach()[:, :size], aimed, (gradient / unit)[:, :size], reached, norm)
                aimed, state = self.space.step(state, move)
                space: Any = self.space  # where something is beside, one that only projects
                beside = [space.project(*part) for part in zip(beside, beside_norm, strict=True)]
                scaled.copy_(torch.cat([aimed, *beside], dim=1) / unit)
            if step == self.space.first_pass:
                optimizer.state.clear()
                history = history[:0]
            if left < len(active):  # finished requests cost nothing from here on
                active, history, essence_before = active[going], history[:, going], essence_before[going]
                rows, going = rows.keep(going), going[going]
        return outcome.targets(starts[..., :size], [type(rule).__name__ for rule in self.stopping] + ["MaxSteps"], site)

    def _reasons(self, view: StepView, loss: Tensor, is_last: bool) -> Tensor:
        """Return the index of the first rule that fires for each request, -1 for none."""
        reason = torch.full_like(loss, len(self.stopping) if is_last else -1, dtype=torch.long)
        for i, rule in reversed(list(enumerate(self.stopping))):
            reason = torch.where(rule(view, loss), i, reason)
        return reason


@torch.no_grad()
def _bare_keys(model: LanguageModel, requests: Sequence[EditRequest], layer: int) -> Tensor:
    """Return the keys of a layer at the slots of bare prompts, (requests, d_key)."""
    return SlotReader(model, requests, [SLOT]).keys(layer, [torch.ones(1)])[0]


def _term(objective: Objective, view: StepView) -> Tensor:
    """Return a term of the loss; raise `EditError` unless it has a value for each request."""
    value = objective(view)
    if value.shape != view.initial_norm.shape:
        raise EditError(
            f"{type(objective).__name__} returned {tuple(value.shape)}: an objective returns a value for each request, "
            f"here ({len(view.initial_norm)},)"
        )
    return value


def _check_together(space: TargetSpace, objectives: Sequence[Objective], max_steps: int) -> None:
    """Raise `EditError` unless the steps suffice for the space, and the space keeps what the objectives read."""
    name = type(space).__name__
    if space.first_pass and max_steps < space.first_pass + 2:
        raise EditError(
            f"stage_one.max_steps is {max_steps}: {name} begins anew after {space.first_pass} updates, so give it "
            f"{space.first_pass + 2} or more"
        )
    for objective in objectives:
        if not {*objective.reads} <= {*space.keeps}:
            raise EditError(
                f"{type(objective).__name__} reads what {name} does not keep ({', '.join(objective.reads)}): change "
                "stage_one.space, or leave the term out"
            )


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
    nlls: Tensor
    first_nlls: Tensor

    DTYPES: ClassVar = (torch.long, torch.long, *[torch.float64] * 4)

    @torch.no_grad()
    def record(
        self,
        active: Tensor,
        stopped: Tensor,
        change: Tensor,
        said: Tensor,
        step: int,
        loss: Tensor,
        nll: Tensor,
        reason: Tensor,
    ) -> None:
        """Freeze requests that just stopped at the vector that passed; all tensors are (active requests, ...)."""
        if step == 1:
            self.first_losses.copy_(loss)
            self.first_nlls.copy_(nll)
        self.changes[active] = torch.where(stopped.unsqueeze(1), change, self.changes[active])
        self.reached[active] = torch.where(stopped.unsqueeze(1), said, self.reached[active])
        self.steps[active] = torch.where(stopped, step, self.steps[active])
        self.losses[active] = torch.where(stopped, loss.to(self.losses), self.losses[active])
        self.nlls[active] = torch.where(stopped, nll.to(self.nlls), self.nlls[active])
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
        norms, both = self.changes.norm(dim=1), torch.stack([self.first_nlls, self.nlls], dim=1)
        lists = (self.steps, self.losses, self.first_losses, self.reasons, norms, both)
        steps, losses, first_losses, reasons, distances, nlls = (
            part.repeat_interleave(members, dim=0).tolist() for part in lists
        )
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
            nlls=[(first, last) for first, last in nlls],
        )
