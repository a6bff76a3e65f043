"""How far preservation lets single edits through: found for the first edits in the unedited model, and told."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from lke_lightning.edits import EditRequest
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.model.reading import SlotReader
from lke_lightning.model.units import Expansion

FIRST = 100
"""A fulfilment is the median over so many of the edits to come."""

WEAK, STRONG, USUAL = 0.3, 0.99, 0.75
"""Fulfilments below and above which weights were hardly meant for the model, and one in between."""


@torch.no_grad()
def first_keys(
    model: LanguageModel,
    requests: Sequence[EditRequest],
    contexts: Sequence[str],
    weights: Tensor,
    expansion: Expansion | None = None,
) -> dict[int, Tensor]:
    """Read the keys of the first edits in the unedited model.

    Args:
        model: the language model.
        requests: the edits to come.
        contexts: templates, `"{}"` first.
        weights: of the contexts in a key, (contexts,).
        expansion: which units each request has.

    Returns:
        By layer (units, d_key); of no layer where there are no edits.
    """
    if not requests:
        return {}
    with model.unedited():
        reader = SlotReader(model, requests[:FIRST], contexts, expansion)
        return {layer: reader.keys(layer, [weights])[0] for layer in model.layers}


def tell(strengths: Mapping[int, Mapping[str, float]]) -> None:
    """Say to which share single edits are written.

    Args:
        strengths: by layer, the `factor` of the preservation terms and, where it is known, the `fulfilment`.
    """
    known = {layer: found for layer, found in strengths.items() if "fulfilment" in found}
    if known:
        layers = ", ".join(f"{layer}: {found['fulfilment']:.2f}" for layer, found in known.items())
        factors = ", ".join(f"{found['factor']:.4g}" for found in known.values())
        rank_zero_info(f"Fulfilment of a single edit by layer: {layers}; factor of the preservation terms: {factors}")


def warn_of_weights(strengths: Mapping[int, Mapping[str, float]]) -> None:
    """Warn where absolute weights mean that almost nothing is written, or leave no protection; arguments as above."""
    by_weight = [found for found in strengths.values() if found["factor"] == 1]
    shares = [found["fulfilment"] for found in by_weight if "fulfilment" in found]
    share = statistics.median(shares) if shares else USUAL
    if WEAK <= share <= STRONG:
        return
    effect = "edits will hardly show" if share < WEAK else "nothing is protected"
    advice = "Give a fulfilment in place of the weight"
    if 0 < share < 1:
        times = share / (1 - share) * (1 - USUAL) / USUAL
        advice += f"; weights {times:.3g} times as large would give {USUAL:.0%}"
    rank_zero_warn(
        f"with these preservation weights a single edit is written to {share:.1%}, so that {effect}: were they found "
        f"for another model? {advice}"
    )
