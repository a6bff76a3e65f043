"""How far preservation lets single edits through: found for the first edits in the unedited model, and told."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from lke_lightning.edits import EditRequest
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.stage_two.reading import SlotReader

FIRST = 100
"""A fulfilment is the median over so many of the edits to come."""

WEAK, STRONG, USUAL = 0.3, 0.99, 0.75
"""Fulfilments below and above which weights were hardly meant for the model, and one in between."""


@torch.no_grad()
def first_keys(
    model: LanguageModel, requests: Sequence[EditRequest], contexts: Sequence[str], weights: Tensor
) -> dict[int, Tensor]:
    """Read the keys of the first edits in the unedited model.

    Args:
        model: the language model.
        requests: the edits to come.
        contexts: templates, `"{}"` first.
        weights: of the contexts in a key, (contexts,).

    Returns:
        By layer (edits, d_key); of no layer where there are no edits.
    """
    if not requests:
        return {}
    with model.unedited():
        reader = SlotReader(model, requests[:FIRST], contexts)
        return {layer: reader.keys(layer, [weights])[0] for layer in model.layers}


def tell(strengths: Mapping[int, Mapping[str, float]]) -> None:
    """Say to which share single edits are written, and warn where that is almost nothing, or leaves no protection.

    Args:
        strengths: by layer, the `factor` of the preservation terms and, where it is known, the `fulfilment`.
    """
    shares = {layer: found["fulfilment"] for layer, found in strengths.items() if "fulfilment" in found}
    if not shares:
        return
    layers = ", ".join(f"{layer}: {share:.2f}" for layer, share in shares.items())
    factors = ", ".join(f"{strengths[layer]['factor']:.4g}" for layer in shares)
    rank_zero_info(f"Fulfilment of a single edit by layer: {layers}; factor of the preservation terms: {factors}")
    share = statistics.median(shares.values())
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
