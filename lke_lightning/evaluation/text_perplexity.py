"""Perplexity as a sign of collapse: a text each, then the mean, which one ruined text moves."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch.nn import functional

from lke_lightning.data.records import records
from lke_lightning.edits import EditError
from lke_lightning.evaluation.downstream import PART, Result, Task
from lke_lightning.model.batching import by_length, within_memory
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.model.tokens import Row


class MEPPL(Task):
    """ME-PPL (*The Butterfly Effect of Model Editing*, arXiv 2402.09656): the mean of the perplexities of short texts.

    A text is read behind the tokenizer's own leading special tokens; the published code has none, and does not predict
    a text's first token. Where the tokenizer has none, neither is it predicted here. Texts with nothing to predict are
    left out; what is beyond the model's window is cut off.

    Args:
        path: `ME-PPL_50.json`, `ME-PPL_1k.json` or `ME-PPL_10k.json`: records with a field `Text`.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._texts: list[str] = []

    def check(self) -> None:
        """Look for the file.

        Raises:
            EditError: it is not there.
        """
        if not Path(self.path).is_file():
            raise EditError(f"no file {self.path!r} (downstream.tasks, MEPPL)")

    def about(self) -> dict[str, Any]:
        """Say which texts."""
        return {"source": self.path}

    def measure(self, model: LanguageModel, max_tokens: int = 16384) -> Result:
        """Read all texts.

        Returns:
            `perplexity` (mean over texts; `None`: beyond what a float holds), `median`, `items` (texts).
        """
        if not self._texts:
            self._texts = [record["Text"] for record in records(self.path)]
        window = getattr(model.network.config.get_text_config(), "max_position_embeddings", None)
        rows = sorted((ids[:window] for ids in model.text.encode(self._texts)), key=len)
        rows = [ids for ids in rows if len(ids) > 1]
        found: list[float] = []
        for start in track(range(0, len(rows), PART), self.name, transient=True):
            parts, max_tokens = within_memory(
                functools.partial(_mean_nll, model), rows[start : start + PART], len, max_tokens
            )
            found += [value for part in parts for value in part]
        if not found:
            raise EditError(f"{self.path} has no text to predict")
        perplexities = sorted(math.exp(nll) if nll < 700 else math.inf for nll in found)
        mean = math.fsum(perplexities) / len(perplexities)
        middle = perplexities[len(perplexities) // 2]
        return {
            "perplexity": round(mean, 4) if math.isfinite(mean) else None,
            "median": round(middle, 4) if math.isfinite(middle) else None,
            "items": len(found),
        }


@torch.no_grad()
def _mean_nll(model: LanguageModel, rows: list[tuple[int, ...]]) -> list[float]:
    """Return the mean negative log-likelihood of each row's tokens but the first."""
    found: list[float] = [0.0] * len(rows)
    for members in by_length([len(row) for row in rows], sum(map(len, rows)), model.device):
        batch = model.text.pad([Row(rows[i], len(rows[i]) - 1) for i in members], model.device)
        predicted = batch.mask[:, 1:].bool()
        number, position = predicted.nonzero(as_tuple=True)
        logits = model.head(model.states(batch, number, position)).to(model.wide_dtype)
        nll = functional.cross_entropy(logits, batch.ids[:, 1:][predicted], reduction="none").double()
        sums = torch.zeros(len(members), dtype=torch.float64, device=model.device).index_add_(0, number, nll)
        for i, value in zip(members, (sums / predicted.sum(1)).tolist(), strict=True):
            found[i] = value
    return found
