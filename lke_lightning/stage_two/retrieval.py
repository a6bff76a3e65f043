"""Which texts bear on a question."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lke_lightning.edits import EditError

Score = Callable[[str], Tensor]
"""Takes a question, returns how well each of some texts fits it, (texts,) float32; 0 or less: not at all."""


class Retriever(ABC):
    """Compares questions with texts; it learns nothing, and depends on the texts alone."""

    settings: dict[str, Any]
    """The plain values it was made with, by argument."""

    @abstractmethod
    def index(self, texts: Sequence[str]) -> Score:
        """Make ready for questions about some texts, at least one."""


class BM25(Retriever):
    """Words in common, rare ones above all: Lucene's BM25 with k1 = 1.5 and b = 0.75, by the package bm25s.

    Words are runs of letters and digits in lower case. For any language that puts blanks between words; no model is
    needed.

    Raises:
        EditError: the package is missing.
    """

    def __init__(self) -> None:
        try:
            import bm25s  # noqa: F401 - only whether it is there
        except ImportError as error:
            raise EditError("BM25 needs the package bm25s: pip install 'lke-lightning[retrieval]'") from error
        self.settings = {}

    def index(self, texts: Sequence[str]) -> Score:
        """Count the words of the texts."""
        import bm25s

        found, all_words = bm25s.BM25(), [_words(text) for text in texts]
        if not any(all_words):  # nothing to index
            return lambda question: torch.zeros(len(texts))
        found.index(all_words, show_progress=False)

        def score(question: str) -> Tensor:
            words = _words(question)
            return torch.from_numpy(found.get_scores(words)).float() if words else torch.zeros(len(texts))

        return score


class Embeddings(Retriever):
    """Cosine of sentence embeddings, as `MeaningSimilarity` makes them.

    Args:
        pretrained: a folder or a hub name of an encoder whose last hidden states are averaged over tokens, such as
            `sentence-transformers/all-MiniLM-L6-v2`.

    Raises:
        EditError: it cannot be loaded.
    """

    def __init__(self, pretrained: str) -> None:
        from lke_lightning.metrics import MeaningSimilarity

        encoder = MeaningSimilarity(pretrained)
        # one by one, so that what else is encoded changes nothing
        self._unit = cache(lambda text: torch.nn.functional.normalize(encoder.embed([text])[0], dim=0).float())
        self.settings = {"pretrained": pretrained}

    def index(self, texts: Sequence[str]) -> Score:
        """Encode the texts."""
        whole = torch.stack([self._unit(text) for text in texts])
        return lambda question: whole @ self._unit(question)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
