"""Stop rules: they decide at each step which requests are done.

Rules are checked before the step's update, so the vector that satisfied the rule is kept.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from lke_lightning.edits import check_number
from lke_lightning.stage_one.objectives import EssenceKL, StepView


class StopRule(ABC):
    """Decides which requests are done."""

    @abstractmethod
    def __call__(self, step: StepView, loss: Tensor) -> Tensor:
        """Return (requests,) bool; `loss` is (requests,), the sum of all terms."""


class MostProbable(StopRule):
    """MPES, most-probable early stopping: stop once the target is the model's top prediction in every context.

    Published as "+N": `extra_steps` further steps after the first success, counted over all successful steps, even if
    unsuccessful ones lie in between. The published code checks only the prefixed contexts (`reference_quirks`); here
    the bare prompt counts too.

    Args:
        extra_steps: N; more steps make the edit stronger and the weights grow faster.
    """

    def __init__(self, extra_steps: int = 0) -> None:
        check_number("MostProbable.extra_steps", extra_steps, at_least=0)
        self.extra_steps = extra_steps

    def __call__(self, step: StepView, loss: Tensor) -> Tensor:
        """Count the successful steps so far."""
        first = 1 if step.reference_quirks and step.most_probable.shape[2] > 1 else 0
        return step.most_probable[:, :, first:].all(2).sum(0) > self.extra_steps


class LossBelow(StopRule):
    """Stop once the total loss is below a threshold (ROME, MEMIT: 0.05, a target probability of about 0.95).

    Args:
        threshold: the loss in nats; lower runs longer.
    """

    def __init__(self, threshold: float = 0.05) -> None:
        check_number("LossBelow.threshold", threshold, at_least=0)
        self.threshold = threshold

    def __call__(self, step: StepView, loss: Tensor) -> Tensor:
        """Compare the loss."""
        return loss < self.threshold


class EssenceKept(StopRule):
    """Stop once the target is the top prediction in every context and the essence prompt's prediction is kept (PMET).

    Args:
        divergence: KL(now || before) after "{subject} is a" at most, in nats, before any weight; lower runs longer.
            Published: 0.01 / the weight of `EssenceKL`, which is 0.16 at 0.0625.
    """

    def __init__(self, divergence: float = 0.16) -> None:
        check_number("EssenceKept.divergence", divergence, at_least=0)
        self.divergence = divergence

    def __call__(self, step: StepView, loss: Tensor) -> Tensor:
        """Look at the present step alone."""
        return step.most_probable[-1].all(1) & (EssenceKL(1.0)(step) <= self.divergence)


class ProbabilityAbove(StopRule):
    """Stop once the target's probability, averaged over the contexts, exceeds a threshold.

    Args:
        threshold: probability per token (geometric mean over the target's tokens), 0 to 1.
    """

    def __init__(self, threshold: float = 0.5) -> None:
        check_number("ProbabilityAbove.threshold", threshold, above=0, below=1)
        self.threshold = threshold

    def __call__(self, step: StepView, loss: Tensor) -> Tensor:
        """Compare the probability."""
        return (-step.nll).exp().mean(1) > self.threshold
