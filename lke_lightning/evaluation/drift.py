"""How far edits move a model: size and spectrum of the change, drift on ordinary keys, and the residual stream.

The measures behind two findings of the ENCORE paper (arXiv 2502.01636): unbounded norm growth of edited matrices, and
*importance hacking*, the growing contribution of edited sub-modules to the residual stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from lke_lightning.edits import EditError
from lke_lightning.evaluation.windows import windows
from lke_lightning.model.activations import change_output
from lke_lightning.model.batching import by_length, within_memory
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.model.tokens import Row
from lke_lightning.model.weights import EditedWeight

LARGEST = 256
"""How many singular values are returned; norm and effective rank use all of them."""


@torch.no_grad()
def matrix_norms(model: LanguageModel) -> list[float]:
    """Return the Frobenius norm of the MLP output matrix of every block, as it is, in order."""
    matrices = (model.architecture.matrix(layer) for layer in range(len(model.architecture.blocks)))
    return [matrix.weight.to(model.wide_dtype).norm().item() for matrix in matrices]


@torch.no_grad()
def spectrum(matrix: Tensor) -> dict[str, Any]:
    """Describe a matrix by its singular values.

    They come from the eigenvalues of the smaller Gram matrix in float64, several times faster than a decomposition of
    the matrix itself; values below 1e-8 of the largest are lost in rounding and count as 0.

    Args:
        matrix: (rows, columns).

    Returns:
        `singular_values`: the `LARGEST` largest, falling; `frobenius`: its norm; `effective_rank`: exp of the entropy
        of their shares (Roy and Vetterli, 2007), from 1 for a matrix of rank one to the full rank where all are alike;
        0 for a matrix of zeros.
    """
    wide = matrix.double()
    gram = wide @ wide.T if wide.shape[0] <= wide.shape[1] else wide.T @ wide
    values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt().flip(0)
    values = torch.where(values > 1e-8 * values[0], values, 0.0)
    shares = values / values.sum() if values[0] > 0 else values
    entropy = torch.special.entr(shares).sum().item()
    return {
        "singular_values": [float(f"{value:.6g}") for value in values[:LARGEST].tolist()],
        "frobenius": wide.norm().item(),
        "effective_rank": torch.tensor(entropy).exp().item() if values[0] > 0 else 0.0,
    }


@torch.no_grad()
def key_drift(weight: EditedWeight, moment: Tensor) -> float:
    """Return the change of an edited matrix's outputs for ordinary keys, relative to the unedited outputs.

    sqrt(tr(D C0 D')) / sqrt(tr(W0 C0 W0')): the root mean square over ordinary tokens of |D k|, divided by that of
    |W0 k|. The preservation term of MEMIT and ENCORE is the square of the numerator.

    Args:
        weight: the edited matrix, with its change D.
        moment: C0 = E[k k'], (d_key, d_key).
    """
    change = weight.delta
    base = weight.live() - change

    def outputs(matrix: Tensor) -> float:
        wide = torch.promote_types(matrix.dtype, moment.dtype)
        matrix = matrix.to(wide)
        return ((matrix @ moment.to(wide)) * matrix).sum(dtype=torch.float64).clamp(min=0).sqrt().item()

    return outputs(change) / outputs(base)


@dataclass(frozen=True)
class Contributions:
    """What each sub-module adds to the residual stream, averaged over the tokens of a text."""

    submodules: list[str]
    """`embedding`, then `attention 0`, `mlp 0`, `attention 1` and so on: in the order in which they write."""
    norm: list[float]
    """Mean norm of what it adds, in the units of the residual stream."""
    share: list[float]
    """Mean over tokens of that norm divided by the sum of all sub-modules' norms; the list sums to 1."""
    projection: list[float]
    """Mean over tokens of <added, final> / |final|^2, with the stream before the final norm; the list sums to 1."""
    tokens: int
    """How many tokens were averaged over."""

    def plain(self) -> dict[str, Any]:
        """Return the fields."""
        return asdict(self)


@torch.no_grad()
def contributions(
    model: LanguageModel, texts: Sequence[str], tokens: int = 2000, length: int = 128, max_tokens: int = 1024
) -> Contributions:
    """Measure the contribution of every sub-module to the residual stream on a text.

    Differences of the stream itself, so that it does not matter how a family composes a block: what a block's
    attention adds is what the block adds with its MLP's last matrix silenced, and the MLP adds the rest. This holds for
    parallel blocks and for those that norm a sub-module's output before it is added (Gemma 2, OLMo 2) alike.

    Args:
        model: the language model, as it is.
        texts: documents.
        tokens: how many tokens are read; the first of each window is not counted, because many models have very
            large activations there.
        length: tokens of a window, at most.
        max_tokens: how many tokens are run at once. The result does not depend on it.

    Raises:
        EditError: the text has no token to count.
    """
    pieces = sorted((piece for piece in windows(model, texts, tokens, length) if len(piece) > 1), key=len)
    if not pieces:
        raise EditError("the text for contributions (drift.text) has no token to count: give more text")
    count = sum(len(piece) - 1 for piece in pieces)

    def run(rows: list[tuple[int, ...]]) -> Tensor:
        groups = by_length([len(row) for row in rows], max_tokens, model.device)
        return torch.stack([_summed(model, [rows[i] for i in members]) for members in groups]).sum(0)

    sums, _ = within_memory(run, pieces, len, max_tokens)
    norm, share, projection = (torch.stack(sums).sum(0) / count).tolist()
    blocks = range(len(model.architecture.blocks))
    names = ["embedding", *(f"{part} {layer}" for layer in blocks for part in ("attention", "mlp"))]
    return Contributions(names, norm, share, projection, count)


def _summed(model: LanguageModel, rows: Sequence[tuple[int, ...]]) -> Tensor:
    """Return norms, shares and projections summed over the counted tokens, (3, submodules) float64."""
    batch = model.text.pad([Row(row, len(row) - 1) for row in rows], model.device)
    counted = batch.mask.bool()
    counted[:, 0] = False
    [(hidden, _)] = model.observe(batch, [model.architecture.blocks[0]], stop=1)
    stream = [hidden[counted].to(model.wide_dtype)]  # all of it is kept: projections need where it ends
    for layer in range(len(model.architecture.blocks)):
        middle, hidden = _through(model, batch, layer, hidden)
        stream += [middle[counted].to(model.wide_dtype), hidden[counted].to(model.wide_dtype)]
    final, before = stream[-1].double(), torch.zeros_like(stream[-1])
    norms, projections = [], []
    for states in stream:
        added, before = states.double() - before, states.double()
        norms.append(added.norm(dim=1))
        projections.append((added * final).sum(1) / final.square().sum(1))
    norm = torch.stack(norms)
    return torch.stack([norm, norm / norm.sum(0), torch.stack(projections)]).sum(2).cpu()


def _through(model: LanguageModel, batch: Any, layer: int, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Return the stream behind a block's attention, and behind the whole block, (rows, length, hidden size) each."""
    states = []
    for silenced in (True, False):
        with ExitStack() as stack:
            if silenced:
                stack.enter_context(change_output(model.architecture.matrix(layer), torch.zeros_like))
            block = model.architecture.blocks[layer]
            [(_, after)] = model.observe(batch, [block], stop=layer + 1, start=layer, hidden=hidden)
        states.append(after)
    return states[0], states[1]
