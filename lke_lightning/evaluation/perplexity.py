"""How well a model still predicts text that no edit is about: the perplexity of untouched documents."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from lke_lightning.edits import EditError
from lke_lightning.model.batching import by_length, within_memory
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.model.tokens import Row

LOGITS_AT_ONCE = 2**26
"""Entries of the largest block of logits: with large vocabularies they, and not the network, would fill the memory."""


def read_documents(files: Sequence[str]) -> Iterator[str]:
    """Yield the documents of text files, one per line; blank lines are skipped."""
    for name in files:
        with Path(name).open(encoding="utf-8") as lines:
            yield from (line.strip() for line in lines if line.strip())


@torch.no_grad()
def perplexity(
    model: LanguageModel, texts: Iterable[str], tokens: int = 20000, length: int = 512, max_tokens: int = 16384
) -> float:
    """Return exp of the mean negative log-likelihood per token.

    Documents are cut into windows that are read one by one, each behind the tokenizer's own leading special tokens;
    without such tokens, the first token of a window is read but not predicted.

    Args:
        model: the language model, as it is.
        texts: documents; reading stops when there are enough tokens.
        tokens: how many tokens of text to read; more of them make the figure surer.
        length: tokens of a window, at most; longer windows give more context and a lower perplexity. Models with
            fewer positions get windows as long as those.
        max_tokens: how many tokens are run at once. The result does not depend on it.

    Raises:
        EditError: the text has no token that could be predicted.
    """
    pieces = sorted(windows(model, texts, tokens, length), key=len)
    count = sum(len(piece) - 1 for piece in pieces)
    if not count:
        raise EditError("the text for perplexity (scorecard.text) has no token to predict: give more text")

    def run(rows: list[tuple[int, ...]]) -> Tensor:
        groups = by_length([len(row) for row in rows], max_tokens, model.device)
        return torch.stack([_summed_nll(model, [rows[i] for i in members]) for members in groups]).sum()

    sums, _ = within_memory(run, pieces, len, max_tokens)
    mean = torch.stack(sums).sum().item() / count
    return math.exp(mean) if mean < 700 else math.inf  # beyond that a float overflows


def windows(model: LanguageModel, texts: Iterable[str], tokens: int, length: int) -> Iterator[tuple[int, ...]]:
    """Yield documents cut into pieces of at most `length` ids, each behind the tokenizer's leading special tokens."""
    prefix = model.text.prefix
    positions = getattr(model.network.config.get_text_config(), "max_position_embeddings", None) or length
    size = max(1, min(length, positions) - len(prefix))
    for text in texts:
        if tokens <= 0:
            return
        ids = model.text.encode([text])[0][len(prefix) :][:tokens]
        tokens -= len(ids)
        yield from (prefix + ids[i : i + size] for i in range(0, len(ids), size))


def _summed_nll(model: LanguageModel, rows: Sequence[tuple[int, ...]]) -> Tensor:
    """Return the negative log-likelihood of all tokens but the first of each row, summed, float64."""
    batch = model.text.pad([Row(row, len(row) - 1) for row in rows], model.device)
    predicted = batch.mask[:, 1:].bool()
    labels = batch.ids[:, 1:][predicted]
    states = model.states(batch, *predicted.nonzero(as_tuple=True))
    total = torch.zeros((), dtype=torch.float64, device=model.device)
    reads = max(1, LOGITS_AT_ONCE // model.network.get_output_embeddings().weight.shape[0])
    for part, label in zip(states.split(reads), labels.split(reads), strict=True):
        logits = model.head(part).to(model.wide_dtype)
        total += functional.cross_entropy(logits, label, reduction="none").double().sum()
    return total
