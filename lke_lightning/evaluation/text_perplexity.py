"""Per-text perplexity as a sign of collapse; a single ruined text moves the mean."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from lke_lightning.data.records import records
from lke_lightning.edits import EditError
from lke_lightning.evaluation.downstream import Result, Task
from lke_lightning.evaluation.perplexity import exponential, summed_nll
from lke_lightning.model.language_model import LanguageModel


class MEPPL(Task):
    """ME-PPL (*The Butterfly Effect of Model Editing*, arXiv 2402.09656): the mean of the perplexities of short texts.

    A text is read after the tokenizer's own leading special tokens; the published code has none, and does not predict
    a text's first token. If the tokenizer has none, it is not predicted here either. Texts with nothing to predict are
    left out; text beyond the model's context is cut off.

    Args:
        path: `ME-PPL_50.json`, `ME-PPL_1k.json` or `ME-PPL_10k.json`: records with a field `Text`.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._texts: list[str] = []

    def check(self) -> None:
        """Read the file.

        Raises:
            EditError: it is missing, or has other contents.
        """
        if not Path(self.path).is_file():
            raise EditError(f"no file {self.path!r} (downstream.tasks, MEPPL)")
        self.read()

    def read(self) -> list[str]:
        """Return the texts; read once.

        Raises:
            EditError: a record has no text, or the file cannot be read.
        """
        if not self._texts:
            texts: list[Any] = [record.get("Text") for record in records(self.path)]
            wrong = [index for index, text in enumerate(texts) if not isinstance(text, str)]
            if wrong:
                raise EditError(f"{self.path}, record {wrong[0]} has no field Text (downstream.tasks, MEPPL)")
            self._texts = texts
        return self._texts

    def about(self) -> dict[str, Any]:
        """Name the source of the texts."""
        return {"source": self.path}

    def measure(self, model: LanguageModel, max_tokens: int = 16384) -> Result:
        """Measure the perplexity of all texts.

        Returns:
            `perplexity` (mean over texts; `None`: beyond the range of a float), `median`, `items` (texts).
        """
        rows = [ids[: model.context_length] for ids in model.text.encode(self.read())]
        rows = sorted((ids for ids in rows if len(ids) > 1), key=len)
        if not rows:
            raise EditError(f"{self.path} has no text to predict")
        means = (summed_nll(model, rows, max_tokens) / torch.tensor([len(ids) - 1 for ids in rows])).tolist()
        perplexities = sorted(map(exponential, means))
        mean = math.fsum(perplexities) / len(perplexities)
        middle = perplexities[len(perplexities) // 2]
        return {
            "perplexity": round(mean, 4) if math.isfinite(mean) else None,
            "median": round(middle, 4) if math.isfinite(middle) else None,
            "items": len(rows),
        }
