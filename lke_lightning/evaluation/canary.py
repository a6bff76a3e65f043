"""A quick health check of a model on a fixed text: likelihood, activation norms and top predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from lke_lightning.data.corpus import read_documents
from lke_lightning.edits import EditError
from lke_lightning.evaluation.perplexity import predict
from lke_lightning.evaluation.windows import windows
from lke_lightning.model.activations import capture
from lke_lightning.model.batching import by_length
from lke_lightning.model.language_model import LanguageModel


@dataclass(frozen=True)
class Health:
    """The measurements of a model on a text."""

    nll: float
    """Mean negative log-likelihood of its tokens."""
    activation_norm: float
    """Mean norm of the last block's output, before the final norm, over the predicted positions."""
    says: Tensor
    """The most probable token at each of them, (positions,) int64."""

    def plain(self) -> dict[str, Any]:
        """Return the fields, for a checkpoint."""
        return asdict(self)

    def compared_with(self, unedited: Health) -> dict[str, float]:
        """Return growth of perplexity and activations, and the fraction of positions with the same next token."""
        return {
            "perplexity_growth": torch.tensor(self.nll - unedited.nll, dtype=torch.float64).exp().item(),
            "activation_growth": self.activation_norm / unedited.activation_norm,
            "agreement": (self.says == unedited.says).double().mean().item(),
        }


class Canary:
    """A text on which a model is measured repeatedly.

    Args:
        model: the language model, for its tokenizer and its longest window.
        text: text files, one document per line.
        tokens: how many tokens are read.
        length: tokens of a window.
        max_tokens: how many tokens are run at once.

    Raises:
        EditError: the text has no token to predict.
    """

    def __init__(
        self, model: LanguageModel, text: Sequence[str], tokens: int = 2000, length: int = 128, max_tokens: int = 16384
    ) -> None:
        found = windows(model, read_documents(text, "guard.text"), tokens, length)
        self._windows = sorted((window for window in found if len(window) > 1), key=len)
        self._max_tokens = max_tokens
        if not self._windows:
            raise EditError("the canary text (guard.text) has no token to predict: give more text")

    @torch.no_grad()
    def examine(self, model: LanguageModel) -> Health:
        """Measure the present model on the text."""
        nll, norms, top = [], [], []
        for members in by_length([len(window) for window in self._windows], self._max_tokens, model.device):
            with capture(model.architecture.blocks[-1]) as residual:
                found = predict(model, [self._windows[i] for i in members])
            norms.append(residual.output[:, :-1][found.predicted].double().norm(dim=1))
            nll.append(found.nll)
            top.append(found.top)
        return Health(torch.cat(nll).mean().item(), torch.cat(norms).mean().item(), torch.cat(top))
