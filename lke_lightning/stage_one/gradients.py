"""Stage one without optimisation: what each layer is asked follows from one forward and one backward pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lke_lightning.distributed import Team
from lke_lightning.edits import SLOT, EditBatch, EditRequest, check_number
from lke_lightning.model.activations import capture, in_rows
from lke_lightning.model.backward import backward
from lke_lightning.model.batching import within_memory
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.model.row_targets import RowTargets
from lke_lightning.model.targets import Asked
from lke_lightning.model.tokens import Row
from lke_lightning.model.units import Expansion, Text, Unit, texts
from lke_lightning.stage_one.moments import Memory, RunningMoments
from lke_lightning.stage_one.rows import check_requests
from lke_lightning.stage_one.stage import StageOne, warn_of_left_out
from lke_lightning.step import EditStep

TYPICAL = 0.6745
"""The median magnitude of standard normal numbers. Magnitudes of a model's activations are measured by their median in
units of it, because a few entries that are a hundred times as large as all others would rule their mean square."""


class AnswerTokens(Expansion):
    """A unit for each token of the answer, at the token before it, whose prediction it is."""

    in_contexts: ClassVar[bool] = False

    def units(self, prompt: Row, answer: int) -> list[Unit]:
        """Begin at the prompt's last token."""
        return [Unit(len(prompt.ids) - 1 + j, j, j + 1) for j in range(answer)]


class OutputGradients(StageOne):
    """Ask every edited matrix for one step down the gradient of its outputs, in normalised units.

    UltraEdit (arXiv 2505.14679). Rows are all positions that predict a token of a target, after the bare prompt. With h
    a row's key, g the gradient of the target's negative log-likelihood with respect to the matrix's output, and both
    normalised over all rows of the run so far (`RunningMoments`), the matrix is asked to change its output for h by

        r = -lr |h^|^2 g^,   lr = relative_step x / d_key

    with x the size of an ordinary entry of the residual stream behind the layer (`TYPICAL`), so that a row of ordinary
    length is asked to move by about `relative_step` of it. All layers see the model as it was before the batch: nothing
    is spread, and nothing read again. Solved with `NormPenalty` alone, this is the published D = R H' (H H' + I)^-1.

    The gradient is that of the sum over tokens, not of the mean over those that share a pass: a factor common to all
    rows is normalised away, and so an edit does not depend on which others are beside it in a pass.

    Args:
        relative_step: see above; x is that of the median row of the run's first requests. More edits and harms more.
        step: lr itself, as published (1e-6 for keys of 4,096 to 14,336 entries); it counts where it is given.
        whiten: normalise gradients by their whole covariance, once there are more rows than outputs, and not each
            coordinate alone (StableEdit, arXiv 2605.11836).
        warm_up: so many of the run's first requests pass through the statistics before the first batch, by the unedited
            model, and change nothing.
        max_tokens: how many tokens are run at once, at first; where memory runs out it is halved. Results do not
            depend on it.
    """

    expansion = AnswerTokens()
    reads_texts = False

    def __init__(
        self,
        relative_step: float = 0.7,
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

    @property
    def at_all_layers(self) -> bool:
        """Every layer is asked by one pass."""
        return True

    @property
    def pilot(self) -> int:
        """How many pass through the statistics."""
        return self.warm_up

    def prepare(self, model: LanguageModel, requests: Sequence[EditRequest]) -> None:
        """Check that every request can be encoded; let the first ones pass through the statistics."""
        check_requests(requests, [SLOT], model.text)
        if not self.contexts:
            self.contexts = [SLOT]
            if self.warm_up:
                with model.unedited():
                    self.memory = self._remembered(model, self._passes(model, requests[: self.warm_up]))

    def aim(self, model: LanguageModel, batch: EditBatch, layer: int | None = None) -> EditStep:
        """Take the rows of a batch into the statistics, and ask every layer by what they are then."""
        found = self._passes(model, batch.requests)
        memory = self._remembered(model, found)
        step = EditStep.of(batch, self._targets(model, found, memory), self.contexts)
        step.memory, step.expansion = memory, self.expansion
        return warn_of_left_out(step)

    def _targets(self, model: LanguageModel, found: _Passed, memory: dict[str, Tensor]) -> RowTargets:
        """Ask each layer by normalised rows."""
        asked, before = {}, {}
        for layer, (rows, _) in found.by_layer(model).items():
            shape = model.weight(layer).delta.shape
            scaled = self._moments(shape).normalised(_of_shape(memory, shape), rows)
            lengths = scaled[:, : shape[1]].square().sum(1, keepdim=True)
            level = memory.get(f"level.{layer}", math.nan)  # there is none while no request had finite numbers
            rate = self.relative_step * level / shape[1] if self.step is None else self.step
            keys, residuals = rows[:, : shape[1]], -rate * lengths * scaled[:, shape[1] :]
            asked[layer] = Asked(keys, keys, residuals.to(keys))
            before[layer] = keys @ model.weight(layer).held().T
        return RowTargets.of_rows(asked, before, found.units, found.losses, found.said)

    def _remembered(self, model: LanguageModel, found: _Passed) -> dict[str, Tensor]:
        """Return the memory with the rows of some requests, of all layers; not of requests with numbers not finite."""
        memory = dict(self.memory)
        good = torch.cat([own.isfinite().all().expand(len(own)) for own in found.rows.split(found.units)])
        for layer, (rows, levels) in found.by_layer(model).items():
            shape = model.weight(layer).delta.shape
            updated = self._moments(shape).update(_of_shape(memory, shape), rows[good])
            memory |= {f"{_name(shape)}{part}": value for part, value in updated.items()}
            if good.any():
                memory.setdefault(f"level.{layer}", levels[good].double().median())
        return memory

    def _moments(self, shape: torch.Size) -> RunningMoments:
        return RunningMoments(shape[0] if self.whiten else 0)

    def _passes(self, model: LanguageModel, requests: Sequence[EditRequest]) -> _Passed:
        """Run requests forward and backward under the present weights; processes divide them."""
        team = Team.of(model.network)
        mine = team.share(range(len(requests)))
        asked = texts(model.text, [requests[i] for i in mine], [SLOT], self.expansion)
        by_length = sorted(range(len(asked)), key=lambda place: len(asked[place].ids))
        parts, self.max_tokens = within_memory(
            lambda part: _run(model, part),
            [asked[place] for place in by_length],
            lambda text: len(text.ids),
            self.max_tokens,
        )
        found = dict(zip(by_length, (one for part in parts for one in part), strict=True))
        ordered = [found[place] for place in range(len(asked))]
        if team.size > 1:
            ordered = team.gather([(rows.cpu(), loss, reached) for rows, loss, reached in ordered])
        rows, losses, said = zip(*ordered, strict=True)
        return _Passed(torch.cat(rows).to(model.device), [len(own) for own in rows], [*losses], [*said])


@dataclass(frozen=True)
class _Passed:
    """What a forward and a backward pass found."""

    rows: Tensor
    """Keys, gradients and the size of the block's output, of all layers side by side, (rows, columns)."""
    units: list[int]
    """How many rows each request has; requests are in order."""
    losses: list[float]
    """Mean negative log-likelihood of each request's target, per token."""
    said: list[bool]
    """Whether each target was the model's first choice already."""

    def by_layer(self, model: LanguageModel) -> dict[int, tuple[Tensor, Tensor]]:
        """Return keys and gradients of each layer, (rows, d_key + d_out), and the sizes, (rows,)."""
        widths = [sum(model.weight(layer).delta.shape) + 1 for layer in model.layers]
        parts = self.rows.split(widths, 1)
        return {layer: (part[:, :-1], part[:, -1]) for layer, part in zip(model.layers, parts, strict=True)}


def _run(model: LanguageModel, asked: Sequence[Text]) -> list[tuple[Tensor, float, bool]]:
    """Return for each request its rows of `_Passed`, its loss and whether it was said."""
    batch = model.text.pad([Row(text.ids[:-1], text.slots[0]) for text in asked], model.device)
    reads = [(place, *read) for place, text in enumerate(asked) for read in zip(text.slots, text.answer, strict=True)]
    places, positions, labels = torch.tensor(reads, device=model.device).T
    with ExitStack() as stack:
        blocks = [stack.enter_context(capture(model.architecture.blocks[layer])) for layer in model.layers]
        found = backward(model, batch, places, positions, lambda logits: cross_entropy(logits, labels, reduction="sum"))
    nll = cross_entropy(found.logits, labels, reduction="none")
    sides = [
        side[places, positions].detach().to(model.wide_dtype)
        for keys, gradient, tap in zip(found.keys, found.gradients, blocks, strict=True)
        for side in (keys, gradient, in_rows(tap.output, len(batch)).abs().median(2, keepdim=True).values / TYPICAL)
    ]
    counts = [len(text.answer) for text in asked]
    first = (found.logits.argmax(1) == labels).split(counts)
    rows, losses = torch.cat(sides, 1).split(counts), nll.split(counts)
    return [(of, loss.mean().item(), said.all().item()) for of, loss, said in zip(rows, losses, first, strict=True)]


def _name(shape: torch.Size) -> str:
    """Begin the names of what is remembered for all matrices of a shape (d_out, d_key)."""
    return f"{shape[0]}x{shape[1]}."


def _of_shape(memory: dict[str, Tensor], shape: torch.Size) -> Memory:
    name = _name(shape)
    return {part.removeprefix(name): value for part, value in memory.items() if part.startswith(name)}
