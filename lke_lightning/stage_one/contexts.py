"""Context templates: texts prepended to a prompt so that an edit generalizes over positions."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lke_lightning.edits import SLOT, EditError, check_number, check_template
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.model.tokens import Row

LONGEST = 1000
"""Maximum tokens of a context: more would be a mistake noticed only after hours."""

SEEDS = ("The", "Therefore", "Because", "I", "You")


class ContextTemplates:
    """Short texts sampled from the unedited model, one for each opening word.

    The bare prompt is always the first context and is not among them.

    Args:
        seeds: opening words; more make edits more robust and every step more expensive.
        length: tokens of each text, the opening word and any BOS included (MEMIT: 10).
        top_k: number of most probable tokens to sample from (MEMIT: 5).
        seed: seed of the sampling; the same seed and model give the same texts.
        templates: use these instead, each with one `{}`, and sample nothing.

    Raises:
        EditError: a template has no slot or other braces, an opening word is blank, or a number is out of range.
    """

    def __init__(
        self,
        seeds: Sequence[str] = SEEDS,
        length: int = 10,
        top_k: int = 5,
        seed: int = 0,
        templates: Sequence[str] | None = None,
    ) -> None:
        check_number("ContextTemplates.length", length, at_least=1, at_most=LONGEST)
        check_number("ContextTemplates.top_k", top_k, at_least=1)
        check_number("ContextTemplates.seed", seed, at_least=0, below=2**63)
        if not all(word.strip() for word in seeds):
            raise EditError(
                f"ContextTemplates.seeds {list(seeds)} holds a blank: each is a word that a text opens with"
            )
        self.seeds, self.length, self.top_k, self.seed = tuple(seeds), length, top_k, seed
        self.templates = None if templates is None else tuple(templates)
        for template in self.templates or ():
            check_template(template, "the context template")

    @torch.no_grad()
    def sample(self, model: LanguageModel) -> list[str]:
        """Return all contexts, `"{}"` first."""
        if self.templates is not None:
            return [SLOT, *self.templates]
        generator = torch.Generator().manual_seed(self.seed)
        return [SLOT, *(self._continue(model, ids, generator) for ids in model.text.encode(self.seeds))]

    def _continue(self, model: LanguageModel, ids: tuple[int, ...], generator: torch.Generator) -> str:
        while len(ids) < self.length:
            batch = model.text.pad([Row(ids, len(ids) - 1)], model.device)
            logits = model.logits(batch, torch.zeros_like(batch.slots), batch.slots)[0].float().cpu()
            best = logits.topk(min(self.top_k, len(logits)))
            choice = torch.multinomial(best.values.softmax(0), 1, generator=generator)
            ids = (*ids, int(best.indices[choice]))
        text = model.text.tokenizer.decode(ids, skip_special_tokens=True)
        for brace in "{}":
            text = text.replace(brace, " ")
        return " ".join(text.split()) + ". " + SLOT
