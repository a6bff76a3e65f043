"""Negative log-likelihoods and perplexity on text unrelated to the edits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lke_lightning.edits import EditError
from lke_lightning.evaluation.likelihood import likelihoods
from lke_lightning.evaluation.windows import windows
from lke_lightning.model.batching import by_length, within_memory
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.model.tokens import Row
from lke_lightning.progress import track

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Prediction:
    """Next-token predictions on token sequences, at all positions but the last of each."""

    predicted: Tensor
    """Which positions of the padded batch these are, (rows, longest - 1), bool."""
    nll: Tensor
    """Negative log-likelihood of the token that follows, row after row, (positions,) float64, on the host."""
    top: Tensor
    """The most probable token there, (positions,) int64, on the host."""


@torch.no_grad()
def predict(model: LanguageModel, rows: Sequence[Ids]) -> Prediction:
    """Read token sequences in one pass, each from its beginning."""
    batch = model.text.pad([Row(row, len(row) - 1) for row in rows], model.device)
    predicted = batch.mask[:, 1:].bool()
    row, position = predicted.nonzero(as_tuple=True)
    states = model.states(batch, row, position)
    return Prediction(predicted, *likelihoods(model, states, batch.ids[:, 1:][predicted]))


def summed_nll(model: LanguageModel, rows: Sequence[Ids], max_tokens: int = 16384) -> Tensor:
    """Return the negative log-likelihood of each sequence's tokens but the first, summed, (rows,) float64, on the host.

    Args:
        model: the language model, as it is.
        rows: token ids, at least two each; fastest if neighbors have similar lengths.
        max_tokens: how many tokens are run at once. The result does not depend on it.
    """

    def run(part: list[Ids]) -> Tensor:
        sums = torch.zeros(len(part), dtype=torch.float64)
        for members in track(by_length([len(row) for row in part], max_tokens, model.device), "reading text", "passes"):
            found = predict(model, [part[i] for i in members])
            row = torch.tensor(members, device=model.device)[found.predicted.nonzero()[:, 0]]
            sums.index_add_(0, row.cpu(), found.nll)
        return sums

    return torch.cat(within_memory(run, rows, len, max_tokens)[0])


def perplexity(
    model: LanguageModel, texts: Iterable[str], tokens: int = 20000, length: int = 512, max_tokens: int = 16384
) -> float:
    """Return exp of the mean negative log-likelihood per token.

    Documents are cut into windows, each after the tokenizer's own leading special tokens;
    without such tokens, the first token of a window is read but not predicted.

    Args:
        model: the language model, as it is.
        texts: documents; reading stops when there are enough tokens.
        tokens: how many tokens of text to read; more make the figure more precise.
        length: tokens of a window, at most; longer windows give more context and a lower perplexity. Models with
            fewer positions get windows as long as those.
        max_tokens: how many tokens are run at once. The result does not depend on it.

    Raises:
        EditError: the text has no token that could be predicted.
    """
    rows = sorted((row for row in windows(model, texts, tokens, length) if len(row) > 1), key=len)
    if not rows:
        raise EditError("the text for perplexity (scorecard.text) has no token to predict: give more text")
    return exponential(summed_nll(model, rows, max_tokens).sum().item() / sum(len(row) - 1 for row in rows))


def exponential(mean: float) -> float:
    """Return exp of a mean; infinity if it exceeds the range of a float."""
    return math.exp(mean) if mean < 700 else math.inf
