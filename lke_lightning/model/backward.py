"""Backward through the edited matrices: their inputs, and the gradients of what they return."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from lke_lightning.model.activations import capture, change_output, in_rows
from lke_lightning.model.cache import Padded
from lke_lightning.model.language_model import LanguageModel


@dataclass(frozen=True)
class Passed:
    """What a forward and a backward pass found; lists have an entry for each edited layer."""

    logits: Tensor
    """(reads, vocabulary), in the wide dtype."""
    keys: list[Tensor]
    """Inputs of the matrices, (rows, length, d_key), in the network's dtype."""
    gradients: list[Tensor]
    """Of the loss with respect to the outputs, (rows, length, d_out), in the network's dtype."""

    def by_weights(self, dtype: torch.dtype) -> list[Tensor]:
        """Return the gradients with respect to the matrices, (d_out, d_key)."""
        pairs = zip(self.gradients, self.keys, strict=True)
        return [of.flatten(0, 1).to(dtype).T @ keys.flatten(0, 1).to(dtype) for of, keys in pairs]


@torch.enable_grad()
def backward(
    model: LanguageModel, batch: Padded, rows: Tensor, positions: Tensor, loss: Callable[[Tensor], Tensor]
) -> Passed:
    """Run rows forward, and backward down to the first edited matrix; what is before it is not differentiated.

    Args:
        model: the language model, under its present weights.
        batch: the rows.
        rows: (reads,) int64, which row a prediction is read in.
        positions: (reads,) int64, at which position.
        loss: turns logits (reads, vocabulary) in the wide dtype into a number.
    """
    matrices = [model.architecture.matrix(layer) for layer in model.layers]
    outputs: list[Tensor] = []

    def keep(output: Tensor) -> Tensor:
        """Let the gradients begin at the first of the matrices: nothing before it has any."""
        outputs.append(output if output.requires_grad else output.detach().requires_grad_())
        return outputs[-1]

    with ExitStack() as stack:
        taps = [stack.enter_context(capture(matrix)) for matrix in matrices]
        for matrix in matrices:
            stack.enter_context(change_output(matrix, keep, len(batch)))
        states = model.states(batch, rows, positions)
    logits = model.head(states).to(model.wide_dtype)
    gradients = torch.autograd.grad(loss(logits), outputs)
    keys = [in_rows(tap.input, len(batch)).detach() for tap in taps]
    return Passed(logits.detach(), keys, list(gradients))
