"""Token and whole-answer accuracy of zsRE, as published and corrected; locality.

Teacher-forced: each token of the answer is predicted from the answer's tokens before it, whether or not the model
would have generated them. Published (`compute_rewrite_quality_zsre`; reliability, generality and locality of many
later papers): the share of tokens that are the most probable ones. It credits half of a two-token answer whose second
token follows from the first. Corrected: an answer counts if all of its tokens are correct.
"""

from __future__ import annotations

import torch
from torch import Tensor

TOKEN_MEASURES = ("token_accuracy", "whole_answer")


def token_accuracies(right: Tensor, tokens: Tensor) -> Tensor:
    """Score answers one by one.

    Args:
        right: how many tokens of each answer are the most probable ones, (prompts,).
        tokens: how many it has, at least 1, (prompts,).

    Returns:
        The share of correct tokens, and 1 where all are correct, (prompts, 2) float64.

    Example:
        >>> token_accuracies(torch.tensor([1, 3]), torch.tensor([2, 3]))
        tensor([[0.5000, 0.0000],
                [1.0000, 1.0000]], dtype=torch.float64)
    """
    return torch.stack([right.double() / tokens, (right == tokens).double()], 1)


def agreement(top: Tensor, top_before: Tensor, tokens: Tensor) -> Tensor:
    """Compare a model's top predictions with those of the unedited model: locality.

    Args:
        top: the most probable token at every position of the answers, one answer after another, (all tokens,) int.
        top_before: the same of the unedited model.
        tokens: how many tokens each answer has, at least 1, (prompts,) int.

    Returns:
        The share of positions with the same token, and 1 where all are the same, (prompts, 2) float64.

    Example:
        >>> agreement(torch.tensor([5, 6, 7]), torch.tensor([5, 6, 8]), torch.tensor([1, 2]))
        tensor([[1.0000, 1.0000],
                [0.5000, 0.0000]], dtype=torch.float64)
    """
    answer = torch.arange(len(tokens)).repeat_interleave(tokens.long())
    same = torch.zeros(len(tokens), dtype=torch.long).index_add_(0, answer, (top == top_before).long())
    return token_accuracies(same, tokens)
