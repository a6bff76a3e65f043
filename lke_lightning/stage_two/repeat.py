"""When a batch is edited once more."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lke_lightning.edits import check_number


class Repeat:
    """UnderEdit (arXiv 2503.11895): a batch is edited again, on the model that it has edited, until it has arrived.

    That is: until the mean perplexity of the targets in the edited model is at most `tolerance` from what the
    optimisation had reached before they were written, |ppl_start(k + 1) - ppl_end(k)| <= tolerance.

    Args:
        rounds: how often a batch is edited at most; 5 in the published code, which has no such rule.
        tolerance: a smaller one writes more, at more cost and with more change of the weights.
    """

    def __init__(self, rounds: int = 5, tolerance: float = 1.0) -> None:
        check_number("Repeat.rounds", rounds, at_least=1)
        check_number("Repeat.tolerance", tolerance, at_least=0)
        self.rounds, self.tolerance = rounds, tolerance

    def is_settled(self, reached: Sequence[float], present: Sequence[float]) -> bool:
        """Tell whether a batch has arrived, from the negative log-likelihoods of its targets, one for each request.

        Args:
            reached: at the end of the optimisation.
            present: in the model as it is.
        """
        wanted, now = (torch.tensor(nlls, dtype=torch.float64).exp().mean() for nlls in (reached, present))
        return bool((now - wanted).abs() <= self.tolerance)
