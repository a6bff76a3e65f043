"""Read keys before a batch is optimised, where a target space asks for them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lke_lightning.distributed import Team
from lke_lightning.edits import SLOT, EditRequest
from lke_lightning.model.batching import by_length
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.model.tokens import Row

MAX_TOKENS = 32768
"""How many tokens run at once: keys need no gradients."""


def bare_keys(model: LanguageModel, requests: Sequence[EditRequest], layer: int) -> Tensor:
    """Return the inputs of a layer's matrix at the slots of bare prompts, (requests, d_key).

    Processes divide the requests, and each gets the keys of all.
    """
    team, matrix = Team.of(model.network), model.architecture.matrix(layer)
    rows = model.text.rows([request.in_context(SLOT) for request in team.share(requests)])
    rows = [Row(row.ids[: row.slot + 1], row.slot) for row in rows]
    found: dict[int, Tensor] = {}
    for members in by_length([len(row.ids) for row in rows], MAX_TOKENS, model.device):
        batch = model.text.pad([rows[i] for i in members], model.device)
        [(keys, _)] = model.observe(batch, [matrix], stop=layer + 1)
        at_slots = keys[torch.arange(len(members), device=keys.device), batch.slots].to(model.wide_dtype)
        found.update(zip(members, at_slots, strict=True))
    mine = torch.stack([found[i] for i in range(len(rows))]) if rows else None  # there may be more processes
    return team.gather_rows(mine, model.device)
