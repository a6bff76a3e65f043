"""How probable tokens are, from what the head sees: few logits exist at any time."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from lke_lightning.model.language_model import LanguageModel

LOGITS_AT_ONCE = {"cpu": 2**22, "cuda": 2**24}
"""Entries of the largest block of logits by device: a vocabulary times all that is read would fill the memory. The
head is hardly faster with larger blocks, which a CPU has to fetch from memory once more for every operation."""


@torch.no_grad()
def likelihoods(model: LanguageModel, states: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Compare tokens with what the model predicts.

    Args:
        model: the language model.
        states: what the head sees, (reads, hidden size).
        labels: the tokens that should follow, (reads,) int64.

    Returns:
        The negative log-likelihood of each, in nats, computed in the wide dtype, (reads,) float64, and the most
        probable token, (reads,) int64; on the host.
    """
    vocabulary = model.network.get_output_embeddings().weight.shape[0]
    size = max(1, LOGITS_AT_ONCE.get(states.device.type, 2**24) // vocabulary)
    nll, top = [], []
    for part, label in zip(states.split(size), labels.split(size), strict=True):
        logits = model.head(part).to(model.wide_dtype)
        nll.append(functional.cross_entropy(logits, label, reduction="none").double())
        top.append(logits.argmax(1))
    return torch.cat(nll).cpu(), torch.cat(top).cpu()
