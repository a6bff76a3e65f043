"""Stage one without optimisation: what each layer is asked follows from one forward and one backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from lke_lightning.distributed import Team
from lke_lightning.edits import SLOT, EditBatch, EditRequest, check_number
from lke_lightning.model.activations import capture, change_output, in_rows
from lke_lightning.model.batching import within_memory
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.model.row_targets import RowTargets
from lke_lightning.model.targets import Asked
from lke_lightning.model.tokens import Row
from lke_lightning.stage_one.moments import Memory, RunningMoments
from lke_lightning.stage_one.rows import check_requests
from lke_lightning.stage_one.stage import StageOne, warn_of_left_out
from lke_lightning.step import EditStep

Ids = tuple[int, ...]


class OutputGradients(StageOne):
    """Ask every edited matrix for one step down the gradient of its outputs, in normalised units.

    UltraEdit (arXiv 2505.14679). Rows are all positions that predict a token of a target, after the bare prompt. With h
    a row's key, g the gradient of the target's negative log-likelihood with respect to the matrix's output, and both
    normalised over all rows of the run so far (`RunningMoments`), the matrix is asked to change its output for h by

        r = -lr |h^|^2 g^,   lr = relative_step x / d_key

    with x the root mean square of the residual stream behind the layer, so that a row of ordinary length is asked to
    move by about `relative_step` of it. All layers see the model as it was before the batch: nothing is spread, and
    nothing read again. Solved with `NormPenalty` alone, this is the published D = R H' (H H' + I)^-1.

    The gradient is that of the sum over tokens, not of the mean over those that share a pass: a factor common to all
    rows is normalised away, and so an edit does not depend on which others are beside it in a pass.

    Args:
        relative_step: see above; x is that of the median row of the run's first batch. More edits and harms more.
        step: lr itself, as published (1e-6 for keys of 4,096 to 14,336 entries); it counts where it is given.
        whiten: normalise gradients by their whole covariance, once there are more rows than outputs, and not each
            coordinate alone (StableEdit, arXiv 2605.11836).
        warm_up: so many of the run's first requests pass through the statistics before the first batch, by the unedited
            model, and change nothing.
        max_tokens: how many tokens are run at once, at first; where memory runs out it is halved. Results do not
            depend on it.
    """

    several_rows: ClassVar[bool] = True

    def __init__(
        self,
        relative_step: float = 0.03,
        step: float | None = None,
        whiten: bool = False,
        warm_up: int = 0,
        max_tokens: int = 32768,
    ) -> None:
        check_number("stage_one.relative_step", relative_step, above=0, at_most=100)
        check_number("stage_one.step", 1 if step is None else step, above=0, at_most=1000)
        check_number("stage_one.warm_up", warm_up, at_least=0)
        check_number("stage_one.max_tokens", max_tokens, at_least=1)
        self.relative_step, self.step, self.whiten = relative_step, step, whiten
        self.warm_up, self.max_tokens = warm_up, max_tokens
        self.contexts, self.memory = [], {}

    def prepare(self, model: LanguageModel, requests: Sequence[EditRequest]) -> None:
        """Check that every request can be encoded; let the first ones pass through the statistics."""
        check_requests(requests, [SLOT], model.text)
        if not self.contexts:
            self.contexts = [SLOT]
            if self.warm_up:
                with model.unedited():
                    self.memory = self._remembered(model, self._passes(model, requests[: self.warm_up]))

    def aim(self, model: LanguageModel, batch: EditBatch) -> EditStep:
        """Take the rows of a batch into the statistics, and ask each layer by what they are then."""
        found = self._passes(model, batch.requests)
        memory = self._remembered(model, found)
        step = EditStep.of(batch, self._targets(model, found, memory), self.contexts)
        step.memory = memory
        return warn_of_left_out(step)

    def _targets(self, model: LanguageModel, found: _Passed, memory: dict[str, Tensor]) -> RowTargets:
        """Ask each layer by normalised rows."""
        asked, before = {}, {}
        for layer, (rows, _) in found.by_layer(model).items():
            shape = model.weight(layer).delta.shape
            scaled = self._moments(shape).normalised(_of_shape(memory, shape), rows)
            lengths = scaled[:, : shape[1]].square().sum(1, keepdim=True)
            rate = self.relative_step * memory[f"level.{layer}"] / shape[1] if self.step is None else self.step
            keys, residuals = rows[:, : shape[1]], -rate * lengths * scaled[:, shape[1] :]
            asked[layer] = Asked(keys, keys, residuals.to(keys), found.owners)
            before[layer] = keys @ model.weight(layer).held().T
        return RowTargets.of_rows(asked, before, found.losses, found.said)

    def _remembered(self, model: LanguageModel, found: _Passed) -> dict[str, Tensor]:
        """Return the memory with the rows of some requests, of all layers; not of requests with numbers not finite."""
        memory = dict(self.memory)
        bad = torch.isin(found.owners, found.owners[~found.rows.isfinite().all(1)])
        for layer, (rows, levels) in found.by_layer(model).items():
            shape = model.weight(layer).delta.shape
            updated = self._moments(shape).update(_of_shape(memory, shape), rows[~bad])
            memory |= {f"{_name(shape)}{part}": value for part, value in updated.items()}
            memory.setdefault(f"level.{layer}", levels[~bad].double().nanmedian())
        return memory

    def _moments(self, shape: torch.Size) -> RunningMoments:
        return RunningMoments(shape[0] if self.whiten else 0)

    def _passes(self, model: LanguageModel, requests: Sequence[EditRequest]) -> _Passed:
        """Run requests forward and backward under the present weights; processes divide them."""
        team = Team.of(model.network)
        pairs = model.text.continuations([(request.text, request.target) for request in requests])
        mine = team.share(range(len(pairs)))
        by_length = sorted(mine, key=lambda i: sum(map(len, pairs[i])))
        parts, self.max_tokens = within_memory(
            lambda part: _run(model, part),
            [pairs[i] for i in by_length],
            lambda pair: sum(map(len, pair)),
            self.max_tokens,
        )
        found = dict(zip(by_length, (one for part in parts for one in part), strict=True))
        ordered = [found[i] for i in mine]
        if team.size > 1:
            ordered = team.gather([(rows.cpu(), *rest) for rows, *rest in ordered])
        owners = [i for i, (rows, *_) in enumerate(ordered) for _ in rows]
        return _Passed(
            torch.cat([rows for rows, *_ in ordered]).to(model.device),
            torch.tensor(owners, device=model.device),
            [loss for _, loss, _ in ordered],
            [said for *_, said in ordered],
        )


@dataclass(frozen=True)
class _Passed:
    """What a forward and a backward pass found."""

    rows: Tensor
    """Of all layers side by side keys, gradients and the root mean squares of their blocks' outputs, (rows, columns)."""
    owners: Tensor
    """Which request each row is of, (rows,)."""
    losses: list[float]
    """Mean negative log-likelihood of each request's target, per token."""
    said: list[bool]
    """Whether each target was the model's first choice already."""

    def by_layer(self, model: LanguageModel) -> dict[int, tuple[Tensor, Tensor]]:
        """Return keys and gradients of each layer, (rows, d_key + d_out), and the root mean squares, (rows,)."""
        widths = [sum(model.weight(layer).delta.shape) + 1 for layer in model.layers]
        parts = self.rows.split(widths, 1)
        return {layer: (part[:, :-1], part[:, -1]) for layer, part in zip(model.layers, parts, strict=True)}


@torch.enable_grad()
def _run(
    model: LanguageModel, pairs: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]
) -> list[tuple[Tensor, float, bool]]:
    """Return, for each pair of a prompt's and its target's ids, its rows of `_Passed`, its loss and what was said."""
    batch = model.text.pad([Row(prompt + target[:-1], len(prompt) - 1) for prompt, target in pairs], model.device)
    reads = [
        (place, len(prompt) - 1 + j, label)
        for place, (prompt, target) in enumerate(pairs)
        for j, label in enumerate(target)
    ]
    places, positions, labels = torch.tensor(reads, device=model.device).T
    matrices = [model.architecture.matrix(layer) for layer in model.layers]
    blocks = [model.architecture.blocks[layer] for layer in model.layers]
    outputs: list[Tensor] = []

    def keep(output: Tensor) -> Tensor:
        """Let the gradients begin at the first of the matrices: nothing before it has any."""
        outputs.append(output if output.requires_grad else output.detach().requires_grad_())
        return outputs[-1]

    with ExitStack() as stack:
        taps = [stack.enter_context(capture(module)) for module in (*matrices, *blocks)]
        for matrix in matrices:
            stack.enter_context(change_output(matrix, keep, len(batch)))
        states = model.states(batch, places, positions)
    logits = model.head(states).to(model.wide_dtype)
    nll = nn.functional.cross_entropy(logits, labels, reduction="none")
    gradients = torch.autograd.grad(nll.sum(), outputs)
    behind = [in_rows(tap.output, len(batch)) for tap in taps[len(matrices) :]]
    sides = [
        side[places, positions].detach().to(model.wide_dtype)
        for tap, gradient, block in zip(taps, gradients, behind, strict=False)
        for side in (in_rows(tap.input, len(batch)), gradient, block.square().mean(2, keepdim=True).sqrt())
    ]
    counts = [len(target) for _, target in pairs]
    first = (logits.argmax(1) == labels).split(counts)
    rows, losses = torch.cat(sides, 1).split(counts), nll.detach().split(counts)
    return [(of, loss.mean().item(), said.all().item()) for of, loss, said in zip(rows, losses, first, strict=True)]


def _name(shape: torch.Size) -> str:
    """Begin the names of what is remembered for all matrices of a shape (d_out, d_key)."""
    return f"{shape[0]}x{shape[1]}."


def _of_shape(memory: dict[str, Tensor], shape: torch.Size) -> Memory:
    name = _name(shape)
    return {part.removeprefix(name): value for part, value in memory.items() if part.startswith(name)}
