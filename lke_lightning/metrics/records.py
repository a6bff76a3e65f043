"""Means as the field takes them: over the prompts of a record first, then over records; and how sure they are."""

from __future__ import annotations

import math

import torch
from torch import Tensor

RESAMPLES, LEVEL, SEED = 1000, 0.95, 0
"""Of the bootstrap: how often records are drawn anew, the share of draws between the bounds, the random seed."""

AT_ONCE = 2**22
"""Entries of the largest block of counts that a bootstrap holds."""


def record_means(values: Tensor, sizes: Tensor) -> Tensor:
    """Take the mean over the prompts of each record.

    Args:
        values: (prompts, measures), float, the prompts of one record after those of another.
        sizes: how many prompts each record has, (records,) int64.

    Returns:
        (records, measures) float64; NaN where a record has no prompt, or one whose value is NaN.

    Example:
        >>> record_means(torch.tensor([[1.0], [0.0], [1.0]]), torch.tensor([2, 1])).T
        tensor([[0.5000, 1.0000]], dtype=torch.float64)
    """
    record = torch.arange(len(sizes)).repeat_interleave(sizes.cpu())
    sums = torch.zeros(len(sizes), values.shape[1], dtype=torch.float64)
    return sums.index_add_(0, record, values.double().cpu()) / sizes.cpu().unsqueeze(1)


def resampled_means(values: Tensor, resamples: int = RESAMPLES, seed: int = SEED) -> Tensor:
    """Draw records with replacement, as many as there are, and take the means of what is defined.

    All measures of a record are drawn together, so that functions of several of them may be taken of every draw.

    Args:
        values: (records, measures), float; NaN where undefined.
        resamples: how many draws; more of them make bounds smoother, not narrower.
        seed: seed of the draws; the same for the same number of records.

    Returns:
        (resamples, measures) float64; NaN where a draw met nothing that is defined.

    Source: the bootstrap of Efron (1979), over records, because the prompts of one are not independent.
    """
    count = len(values)
    if not count:
        return values.new_full((resamples, values.shape[1]), torch.nan, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    known = (~values.isnan()).double()
    filled = values.double().nan_to_num(nan=0.0)
    parts = []
    for start in range(0, resamples, max(1, AT_ONCE // count)):
        draws = min(resamples - start, max(1, AT_ONCE // count))
        drawn = torch.randint(count, (draws, count), generator=generator)
        times = torch.zeros(draws, count, dtype=torch.float64).scatter_add_(
            1, drawn, torch.ones(draws, count, dtype=torch.float64)
        )
        parts.append((times @ filled) / (times @ known))
    return torch.cat(parts)


def interval(samples: Tensor, level: float = LEVEL) -> tuple[float, float] | None:
    """Return the bounds between which the middle share of `samples` (resamples,) lies; `None` if none is defined.

    The percentile method: no normality is assumed, bounds stay within the range of the measure.
    """
    samples = samples[~samples.isnan()]
    if not len(samples):
        return None
    tail = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=samples.dtype)
    low, high = samples.quantile(tail).tolist()
    return low, high


def harmonic_mean(values: list[float | None]) -> float | None:
    """Return the harmonic mean (the score S of efficacy, paraphrase, neighbourhood); `None` if a value is undefined.

    Example:
        >>> round(harmonic_mean([0.9404, 0.7991, 0.5790]), 4)
        0.7422
    """
    numbers = [value for value in values if value is not None and not math.isnan(value)]
    if not numbers or len(numbers) < len(values):
        return None
    return 0.0 if min(numbers) <= 0 else len(numbers) / sum(1 / value for value in numbers)
