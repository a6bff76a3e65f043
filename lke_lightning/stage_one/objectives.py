"""Loss terms of target activations; each returns one value per request, never a mean over them.

The loss is the sum of the configured terms, which read `StepView`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from lke_lightning.edits import check_number
from lke_lightning.stage_one.history import UpdateHistory


@dataclass(frozen=True)
class StepView:
    """The state of one optimization step, for the requests that are still being optimized."""

    nll: Tensor
    """Mean negative log-likelihood of the target's tokens, (requests, contexts), the bare prompt first."""
    most_probable: Tensor
    """History of "all target tokens are the most probable ones", (steps so far, requests, contexts), bool."""
    change: Tensor
    """delta, (requests, hidden size)."""
    initial_norm: Tensor
    """Norm of the unchanged activation on the bare prompt, (requests,)."""
    essence: Tensor
    """Log-probabilities of the essence prompt's next token, (requests, vocabulary)."""
    essence_before: Tensor
    """The same before any change; equal to `essence` where a request has no subject."""
    reference_quirks: bool = False
    requests: Tensor | None = None
    """Which requests of the descent these are, (requests,) int64."""
    state: Mapping[str, Tensor] = field(default_factory=dict)
    """What the target space keeps of the descent, of all its requests (`TargetSpace`)."""
    history: UpdateHistory | None = None
    """What earlier edits have done to the target layer's matrix."""
    attention_change: Tensor | None = None
    """delta of the attention's output, (requests, hidden size), where it is optimised beside the target's."""
    attention_norm: Tensor | None = None
    """Norm of the unchanged output of the attention, (requests,)."""


class Objective(ABC):
    """A term of the loss."""

    reads: ClassVar[tuple[str, ...]] = ()
    """Parts of the target space's state that the term needs."""

    @abstractmethod
    def __call__(self, step: StepView) -> Tensor:
        """Return the term's value for each request, (requests,)."""


class NegativeLogLikelihood(Objective):
    """The target's negative log-likelihood after the prompt, averaged over contexts.

    Args:
        weight: factor; 1 in every published method.
        after_success: further factor of a step before which all target tokens were the most probable ones in all
            contexts, so that the other terms count for more (PMET: 0.1). `None`: 1.
    """

    def __init__(self, weight: float = 1.0, after_success: float | None = None) -> None:
        check_number("NegativeLogLikelihood.weight", weight, above=0)
        check_number("NegativeLogLikelihood.after_success", 1 if after_success is None else after_success, at_least=0)
        self.weight, self.after_success = weight, after_success

    def __call__(self, step: StepView) -> Tensor:
        """Average over contexts."""
        loss = self.weight * step.nll.mean(1)
        if self.after_success is None or len(step.most_probable) == 1:
            return loss
        return torch.where(step.most_probable[-2].all(1), self.after_success * loss, loss)


class EssenceKL(Objective):
    """Keeps the prediction after "{subject} is a": KL(now || before), before = at step 0 of this batch.

    Args:
        weight: factor, kappa of the papers; a larger one protects other facts of the subject and slows the edit.
    """

    def __init__(self, weight: float = 0.0625) -> None:
        check_number("EssenceKL.weight", weight, at_least=0)
        self.weight = weight

    def __call__(self, step: StepView) -> Tensor:
        """Return the divergence, in the direction of the published `F.kl_div(before, now, log_target=True)`."""
        return self.weight * (step.essence.exp() * (step.essence - step.essence_before)).sum(1)


class TargetNorm(Objective):
    """Keeps the change small: |delta| / |initial|^2, the numerator not squared, as published since ROME.

    Where the attention's output is changed too, that change is a second term of the same form (PMET).

    Args:
        weight: factor, `v_weight_decay` of the published code.
    """

    def __init__(self, weight: float = 0.5) -> None:
        check_number("TargetNorm.weight", weight, at_least=0)
        self.weight = weight

    def __call__(self, step: StepView) -> Tensor:
        """Return the penalty; its gradient at delta = 0 is 0."""
        penalty = self.weight * step.change.norm(dim=1) / step.initial_norm**2
        if step.attention_change is None or step.attention_norm is None:
            return penalty
        return penalty + self.weight * step.attention_change.norm(dim=1) / step.attention_norm**2


class ScoredL1(Objective):
    """Keeps coordinates small that matter little: sum over those chosen of |delta_j| / (score_j + 1e-6).

    EAC's weighted L1 term (arXiv 2503.00035, as in the authors' code for MEMIT; their code for ROME computes it and
    does not add it). It needs the scores of `ScoredCoordinates`, and is 0 before they are known.

    Args:
        weight: factor, published 5e-7.
    """

    reads = ("score", "support")

    def __init__(self, weight: float = 5e-7) -> None:
        check_number("ScoredL1.weight", weight, at_least=0)
        self.weight = weight

    def __call__(self, step: StepView) -> Tensor:
        """Return the penalty."""
        score, support = (step.state[name][step.requests] for name in self.reads)
        return self.weight * (support * step.change.abs() / (score + 1e-6)).sum(1)


class Overlap(Objective):
    """Turns the change away from what earlier edits write: the mean of |cos(delta, b)| over a basis of it.

    O-Edit's term for the history (arXiv 2410.11469): the b are the left singular vectors of the sum of all updates of
    the target layer, those of the largest singular values first, as many as there are or `rank`. The paper leaves the
    similarity open. Its second basis, of gradients on ordinary text, is left out. 0 before the first edit.

    Args:
        weight: factor, 50 in the only implementation that we know of; a larger one keeps edits farther apart.
        rank: vectors at most.
    """

    def __init__(self, weight: float = 50.0, rank: int = 100) -> None:
        check_number("Overlap.weight", weight, at_least=0)
        check_number("Overlap.rank", rank, at_least=1)
        self.weight, self.rank = weight, rank

    def __call__(self, step: StepView) -> Tensor:
        """Return the penalty; its gradient at delta = 0 is 0."""
        basis = step.history.directions(self.rank).to(step.change)  # type: ignore[union-attr]  # descents have one
        if not basis.shape[1]:
            return torch.zeros_like(step.initial_norm)
        length = step.change.norm(dim=1)
        length = torch.where(length > 0, length, 1)  # not a tiny one: its inverse, times a weight, is infinite
        return self.weight * (step.change @ basis).abs().mean(1) / length
