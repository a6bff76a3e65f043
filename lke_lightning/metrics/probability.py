"""How probable are answers? The distribution that tells an edited fact from one that a model has learned.

Editing until the target is nearly certain makes it more probable than facts that the model knows by itself; the ENCORE
paper calls this over-optimisation. *Per token* is exp(-nll), the geometric mean over the tokens of an answer; *joint*
is the probability of the whole answer, exp(-nll x tokens).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

BINS = 20


def probabilities(nll: Tensor, tokens: Tensor) -> Tensor:
    """Return the probability per token and the joint one, (answers, 2) float64, from 0 to 1.

    Args:
        nll: mean negative log-likelihood per token, (answers,).
        tokens: how many tokens each answer has, (answers,).
    """
    return torch.stack([(-nll.double()).exp(), (-nll.double() * tokens).exp()], 1)


def histogram(values: Tensor, bins: int = BINS) -> Tensor:
    """Count values (values,) between 0 and 1 in bins of equal width, (bins,) int64; 1 is in the last bin."""
    place = (values.clamp(0, 1) * bins).long().clamp(max=bins - 1)
    return torch.zeros(bins, dtype=torch.long).index_add_(0, place, torch.ones_like(place))


class AnswerProbability(Metric):
    """The distribution of answers' probabilities.

    As input to `update`: `nll` and `tokens` of some answers. As output of `compute`: for `per_token` and `joint` the
    mean and the counts of `BINS` bins, and how many `facts` there were.

    Example:
        >>> metric = AnswerProbability()
        >>> metric.update(torch.tensor([0.0, 0.6931]), torch.tensor([1, 2]))
        >>> metric.compute()["joint"]["mean"]
        0.625...
    """

    is_differentiable = False
    full_state_update = False
    total: Tensor
    counts: Tensor
    facts: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(2, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(2, BINS, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("facts", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, nll: Tensor, tokens: Tensor) -> None:
        """Add answers."""
        found = probabilities(nll, tokens).cpu()
        self.total += found.sum(0).to(self.total)
        self.counts += torch.stack([histogram(part) for part in found.T]).to(self.counts)
        self.facts += len(found)

    def compute(self) -> dict[str, Any]:
        """Return means and histograms."""
        means = (self.total / self.facts).tolist()
        parts = {
            name: {"mean": None if mean != mean else mean, "histogram": counts}
            for name, mean, counts in zip(("per_token", "joint"), means, self.counts.tolist(), strict=True)
        }
        return {"facts": int(self.facts), **parts}
