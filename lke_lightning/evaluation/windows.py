"""Unrelated text, cut into windows that fit into a model's context."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from lke_lightning.model.language_model import LanguageModel


def windows(model: LanguageModel, texts: Iterable[str], tokens: int, length: int) -> Iterator[tuple[int, ...]]:
    """Yield documents cut into windows, each after the tokenizer's leading special tokens.

    Args:
        model: the language model, for its tokenizer and its context length, which limits the windows.
        texts: documents.
        tokens: maximum number of tokens of text.
        length: tokens of a window, at most.
    """
    prefix = model.text.prefix
    size = max(1, min(length, model.context_length or length) - len(prefix))
    for text in texts:
        if tokens <= 0:
            return
        ids = model.text.encode([text.strip()])[0][len(prefix) :][:tokens]
        tokens -= len(ids)
        yield from (prefix + ids[i : i + size] for i in range(0, len(ids), size))
