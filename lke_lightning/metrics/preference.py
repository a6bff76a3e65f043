"""Does the model prefer one continuation of a prompt to another? CounterFact's success, magnitude and accuracy.

Definitions of ROME and MEMIT (`compute_rewrite_quality_counterfact`), teacher-forced: with the mean negative
log-likelihood per target token, success is a strict inequality, magnitude the difference of exp(-nll), accuracy that
every token of the wanted continuation is the most probable one. Means are taken in a record first, then over records.
"""

from __future__ import annotations

import torch
from torch import Tensor

MEASURES = ("success", "magnitude", "accuracy")


def preferences(wanted: Tensor, other: Tensor, correct: Tensor) -> Tensor:
    """Score prompts one by one.

    Args:
        wanted: nll of the continuation that should win, (prompts,).
        other: nll of the one that should lose, (prompts,); NaN where there is none.
        correct: all tokens of the wanted one are the most probable, (prompts,) bool.

    Returns:
        success, magnitude, accuracy, (prompts, 3); NaN where undefined.
    """
    undefined = torch.where(other.isnan(), torch.nan, 0.0)
    success = (wanted < other).to(wanted.dtype) + undefined
    magnitude = (-wanted).exp() - (-other).exp()
    return torch.stack([success, magnitude, correct.to(wanted.dtype)], 1)
