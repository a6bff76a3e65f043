"""What the keys of all entities share, found once in the unedited model and taken out of the keys of edits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from lke_lightning.data.corpus import TextCorpus
from lke_lightning.distributed import Team
from lke_lightning.edits import SLOT, EditError, EditRequest, check_number
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.model.reading import SlotReader

OPTION = "stage_two.key_filter.entities"

MOST, AT_ONCE = 10_000, 500
"""Entities that are read of a file, the paper's number, and together."""

FEW = 50
"""With fewer entities, the directions are theirs rather than all entities'."""


class SharedDirections:
    """Leaves of a key what is the entity's own: k - U U' k, the key half of SUIT (arXiv 2509.24502, section 4.2).

    U are the fewest directions that hold the share `energy` of the squared length of entities' keys, uncentred. Its
    other half, a residual in two learned directions, is not here.

    Args:
        energy: that share, between 0 and 1; published: 0.4 for Llama 3, 0.6 for GPT-J and Qwen2.5. A larger one spares
            other entities and weakens edits.
        entities: a text file with a name a line, or any corpus of `KeyStatistics`; the first 10,000 are read, as the
            subject of a prompt that is nothing else. `None`: the subjects of the run's first edits (100) in their
            prompts. The paper has 10,000 entities of ParaRel.

    Raises:
        EditError: the energy is not between 0 and 1, or the file cannot be read.
    """

    def __init__(self, energy: float = 0.4, entities: str | list[str] | None = None) -> None:
        check_number("SharedDirections.energy", energy, above=0, below=1)
        self.energy = energy
        names = [entities] if isinstance(entities, str) else entities
        self._corpus = None if names is None else TextCorpus(names, OPTION)

    @torch.no_grad()
    def find(
        self, model: LanguageModel, keys: Mapping[int, Tensor], contexts: Sequence[str], weights: Tensor
    ) -> dict[int, Tensor]:
        """Return U of each layer, (d_key, directions) float64, found by the first process.

        Args:
            model: the language model; it is read unedited.
            keys: of the first edits, by layer, (edits, d_key).
            contexts: templates, `"{}"` first.
            weights: of the contexts in a key, (contexts,).

        Raises:
            EditError: there are fewer than two entities with finite keys that are not zero.
        """
        if self._corpus is not None:
            keys = self._keys_of_entities(self._corpus, model, contexts, weights)
        team = Team.of(model.network)
        found = {
            layer: team.first(self._basis(keys[layer])).to(model.device) for layer in model.layers if layer in keys
        }
        if not found:
            raise EditError(
                f"the key filter needs entities, and there are no edits yet: name a file of them ({OPTION})"
            )
        read, counts = len(keys[model.target_layer]), ", ".join(f"{i}: {basis.shape[1]}" for i, basis in found.items())
        rank_zero_info(
            f"Key filter: directions that hold {self.energy:.0%} of {read} entities' keys, by layer: {counts}"
        )
        if read < FEW:
            rank_zero_warn(
                f"the key filter takes what {read} entities share for what all do: name a file of them ({OPTION})"
            )
        return found

    def _keys_of_entities(
        self, corpus: TextCorpus, model: LanguageModel, contexts: Sequence[str], weights: Tensor
    ) -> dict[int, Tensor]:
        names = [name.strip() for name in islice(corpus.documents(model), MOST)]
        entities = [EditRequest(id=name, prompt=SLOT, target=name, subject=name) for name in names]
        parts: dict[int, list[Tensor]] = {layer: [] for layer in model.layers}
        with model.unedited():
            for start in range(0, len(entities), AT_ONCE):
                reader = SlotReader(model, entities[start : start + AT_ONCE], contexts)
                for layer, read in parts.items():
                    read += [part.cpu() for part in reader.keys(layer, [weights])]
        return {layer: torch.cat(read) for layer, read in parts.items()}

    def _basis(self, keys: Tensor) -> Tensor:
        """Return the leading right singular vectors of keys (entities, d_key), as columns."""
        keys = keys.cpu().double()
        keys = keys[keys.isfinite().all(1) & keys.any(1)]
        if len(keys) < 2:
            raise EditError(
                f"the key filter has {len(keys)} entities, and what one has is its own: name a file of them ({OPTION})"
            )
        _, sizes, directions = torch.linalg.svd(keys, full_matrices=False)
        held = sizes.square().cumsum(0)
        return directions[: int((held < self.energy * held[-1]).sum()) + 1].T.contiguous()


def own_part(keys: Tensor, shared: Tensor) -> Tensor:
    """Return k - U U' k for keys (n, d_key) and U (d_key, directions)."""
    shared = shared.to(keys)
    return keys - (keys @ shared) @ shared.T
