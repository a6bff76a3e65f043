"""How probable are answers? The distribution that tells an edited fact from one that a model has learned.

Editing until the target is nearly certain makes it more probable than facts that the model knows by itself; the ENCORE
paper calls this over-optimisation. *Per token* is exp(-nll), the geometric mean over the tokens of an answer; *joint*
is the probability of the whole answer, exp(-nll x tokens).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

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


def distribution(nll: Tensor, tokens: Tensor) -> dict[str, Any]:
    """Describe how probable some answers are.

    Args:
        nll: mean negative log-likelihood per token, (answers,).
        tokens: how many tokens each answer has, (answers,).

    Returns:
        How many `facts` there are, and for `per_token` and `joint` the mean (NaN where there are none) and the counts
        of `BINS` bins.

    Example:
        >>> distribution(torch.tensor([0.0, 0.6931]), torch.tensor([1, 2]))["joint"]["mean"]
        0.625...
    """
    columns = dict(zip(("per_token", "joint"), probabilities(nll, tokens).cpu().T, strict=True))
    parts = {
        name: {"mean": part.mean().item(), "histogram": histogram(part).tolist()} for name, part in columns.items()
    }
    return {"facts": len(nll), **parts}
