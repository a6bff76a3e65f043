"""Loss terms of target activations; each returns one value per request, never a mean over them.

The loss is the sum of the configured terms, which read `StepView`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from lke_lightning.edits import check_number


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
    attention_change: Tensor | None = None
    """delta of the attention's output, (requests, hidden size), where it is optimised beside the target's."""
    attention_norm: Tensor | None = None
    """Norm of the unchanged output of the attention, (requests,)."""


class Objective(ABC):
    """A term of the loss."""

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
        if step.attention_change is None:
            return penalty
        return penalty + self.weight * step.attention_change.norm(dim=1) / step.attention_norm**2
