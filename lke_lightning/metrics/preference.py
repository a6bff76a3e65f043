"""Does the model prefer one continuation of a prompt to another? CounterFact's success, magnitude and accuracy.

Definitions of ROME and MEMIT (`compute_rewrite_quality_counterfact`), teacher-forced: with the mean negative
log-likelihood per target token, success is a strict inequality, magnitude the difference of exp(-nll), accuracy that
every token of the wanted continuation is the most probable one. Means are taken in a record first, then over records.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

MEASURES = ("success", "magnitude", "accuracy")


def preference(wanted: Tensor, other: Tensor, correct: Tensor) -> Tensor:
    """Score the prompts of one record.

    Args:
        wanted: nll of the continuation that should win, (prompts,).
        other: nll of the one that should lose, (prompts,); NaN where there is none.
        correct: all tokens of the wanted one are the most probable, (prompts,) bool.

    Returns:
        success, magnitude, accuracy, each the mean over prompts, (3,); NaN where undefined.

    Example:
        >>> preference(torch.tensor([0.1, 3.0]), torch.tensor([2.0, 1.0]), torch.tensor([True, False]))
        tensor([0.5000, 0.2257, 0.5000])
    """
    undefined = torch.where(other.isnan(), torch.nan, 0.0)
    success = (wanted < other).to(wanted.dtype) + undefined
    magnitude = (-wanted).exp() - (-other).exp()
    return torch.stack([success.mean(), magnitude.mean(), correct.to(wanted.dtype).mean()])


def harmonic_mean(values: list[float | None]) -> float | None:
    """Return the harmonic mean (the score S of efficacy, paraphrase, neighbourhood); `None` if a value is undefined.

    Example:
        >>> round(harmonic_mean([0.9404, 0.7991, 0.5790]), 4)
        0.7422
    """
    if not values or any(value is None for value in values):
        return None
    numbers = [value for value in values if value is not None]
    return 0.0 if min(numbers) <= 0 else len(numbers) / sum(1 / value for value in numbers)


class Preference(Metric):
    """Mean of `preference` over records.

    As input to `update`: the three tensors of `preference` for one record. As output of `compute`: a dict of success,
    magnitude and accuracy, NaN where no record defines it.

    Example:
        >>> metric = Preference()
        >>> metric.update(torch.tensor([0.1]), torch.tensor([2.0]), torch.tensor([True]))
        >>> metric.update(torch.tensor([3.0]), torch.tensor([1.0]), torch.tensor([False]))
        >>> metric.compute()["success"]
        tensor(0.5000)
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(len(MEASURES), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(len(MEASURES), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, wanted: Tensor, other: Tensor, correct: Tensor) -> None:
        """Add one record; one without prompts counts for nothing."""
        if not len(wanted):
            return
        scores = preference(wanted.double(), other.double(), correct)
        self.total += scores.nan_to_num(nan=0.0)
        self.count += (~scores.isnan()).to(self.count)

    def compute(self) -> dict[str, Tensor]:
        """Return the means."""
        means = (self.total / self.count).float()
        return dict(zip(MEASURES, means, strict=True))
