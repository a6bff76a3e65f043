"""Backward through the edited matrices: their inputs, and the gradients of what they return."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lke_lightning.model.activations import capture, change_output, in_rows
from lke_lightning.model.batching import within_memory
from lke_lightning.model.cache import Padded
from lke_lightning.model.draws import drawn
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.model.tokens import Row

SAMPLED = 1024
"""Tokens whose labels are drawn at once: each has a number for every word of the vocabulary."""


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


@dataclass(frozen=True)
class Curvature:
    """Sums over tokens for one edited matrix: factors of the Gauss-Newton matrix of the next-token loss (K-FAC)."""

    keys: Tensor
    """Of k k', (d_key, d_key) float64."""
    gradients: Tensor
    """Of g g', (d_out, d_out) float64, with g the gradient with respect to the output."""


def curvature(model: LanguageModel, texts: Sequence[Row]) -> tuple[dict[int, Curvature], int]:
    """Sum keys and gradients over texts, with labels that the model itself draws: the expectation is the curvature.

    The draws follow from each text alone.

    Args:
        model: the language model.
        texts: token rows; the slots do not matter.

    Returns:
        The sums of each edited layer, and over how many tokens they go.
    """
    shapes = {layer: model.weight(layer).delta.shape for layer in model.layers}
    sums = {
        layer: Curvature(*(torch.zeros(d, d, dtype=torch.float64, device=model.device) for d in reversed(shape)))
        for layer, shape in shapes.items()
    }

    def add(part: list[Row]) -> int:
        batch = model.text.pad(part, model.device)
        rows, positions = batch.mask.nonzero().T

        def loss(logits: Tensor) -> Tensor:
            shares = logits.detach().softmax(1).cumsum(1)
            at = [torch.rand(len(row.ids), 1, generator=drawn(row.ids), dtype=torch.float64) for row in part]
            labels = (shares < torch.cat(at).to(shares)).sum(1).clamp(max=logits.shape[1] - 1)
            return cross_entropy(logits, labels, reduction="sum")

        found = backward(model, batch, rows, positions, loss)
        with torch.autocast(model.device.type, enabled=False):
            for total, keys, gradients in zip(sums.values(), found.keys, found.gradients, strict=True):
                for whole, of in ((total.keys, keys), (total.gradients, gradients)):
                    flat = of[rows, positions].to(model.wide_dtype)  # products in the wide dtype, their sum in float64
                    whole += flat.T @ flat
        return len(rows)

    counts, _ = within_memory(add, texts, lambda row: len(row.ids), SAMPLED)
    return sums, sum(counts)
