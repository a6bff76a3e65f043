"""From text to token ids with known positions, by one rule for every tokenizer.

The rule. The tokenizer's own leading special tokens (BOS) stand in front of every row once; nothing is ever appended.
A target is written after exactly one blank, and its ids are what `prompt + " " + target` has beyond the ids of the
prompt. The slot is the last token of the text up to the subject's end; where the tokenizer merges that end with what
follows, it is the merged token. Positions come from encoding prefixes, because offsets reported by fast tokenizers
are not reliable for every model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lke_lightning.edits import EditError

if TYPE_CHECKING:
    from lke_lightning.model.prefix import PrefixCache

MOST_KNOWN = 200_000
"""Prompts whose ids are kept: both stages and every evaluation ask for the same ones."""


@dataclass(frozen=True)
class Row:
    """One token sequence and the position in it that matters."""

    ids: tuple[int, ...]
    slot: int
    """Index of the token where keys are read and targets are written."""


@dataclass(frozen=True)
class Padded:
    """Rows as one right-padded batch, possibly continuing prefixes that were run before."""

    ids: Tensor
    """(rows, length), int64."""
    mask: Tensor
    """1 for real tokens, 0 for padding, (rows, length), int64."""
    slots: Tensor
    """Index of each row's slot in `ids`, (rows,), int64."""
    positions: Tensor | None = None
    """Position of every token, (rows, length), int64; `None`: counted from 0."""
    past: PrefixCache | None = None
    """Keys and values of the prefixes."""

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.slots)

    def select(self, rows: Tensor) -> Padded:
        """Keep some rows, in the order given, without the columns that are padding in all of them."""
        width = int(self.mask[rows].sum(1).max())
        return Padded(
            self.ids[rows, :width],
            self.mask[rows, :width],
            self.slots[rows],
            None if self.positions is None else self.positions[rows, :width],
            None if self.past is None else self.past.select(rows),
        )


class TextEncoder:
    """A Hugging Face tokenizer behind the rule of this module.

    Raises:
        EditError: the tokenizer yields no ids for a text that needs some.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        plain = tokenizer("a", add_special_tokens=False)["input_ids"]
        special = tokenizer("a")["input_ids"]
        start = next((i for i in range(len(special)) if special[i : i + len(plain)] == plain), 0)
        self.prefix: tuple[int, ...] = tuple(special[:start])
        fallback = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else 0
        self.padding: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else fallback
        self._known: dict[str, tuple[int, ...]] = {}

    def encode(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Encode texts, the special prefix in front of each."""
        if not texts:
            return []
        encoded = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return [self.prefix + tuple(ids) for ids in encoded]

    def _recall(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Encode texts, but not again what was asked for before."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if len(self._known) + len(new) > MOST_KNOWN:
            self._known, new = {}, list(dict.fromkeys(texts))
        self._known |= dict(zip(new, self.encode(new), strict=True))
        return [self._known[text] for text in texts]

    def rows(self, texts: Sequence[tuple[str, str]]) -> list[Row]:
        """Encode pairs (whole text, text up to the slot's end)."""
        whole, upto = self._recall([text for text, _ in texts]), self._recall([part for _, part in texts])
        return [Row(ids, _slot(ids, part, text)) for ids, part, (text, _) in zip(whole, upto, texts, strict=True)]

    def continuations(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Encode pairs (prompt, target) into the prompt's ids and the target's ids after it.

        Raises:
            EditError: a target has no ids, or an unknown token among them.
        """
        prompts = self._recall([prompt.rstrip() for prompt, _ in pairs])
        wholes = self._recall([f"{prompt.rstrip()} {target.strip()}" for prompt, target in pairs])
        found = []
        for prompt_ids, whole, (_, target) in zip(prompts, wholes, pairs, strict=True):
            if whole[: len(prompt_ids)] == prompt_ids:
                ids = whole[len(prompt_ids) :]
            else:  # the blank or the target's first letters merged with the prompt
                ids = self._recall([f" {target.strip()}"])[0][len(self.prefix) :]
            self._check_target(ids, target)
            found.append((prompt_ids, ids))
        return found

    def _check_target(self, ids: tuple[int, ...], target: str) -> None:
        unknown = self.tokenizer.unk_token_id
        if not ids:
            raise EditError(f"the target {target!r} has no tokens in this vocabulary")
        if unknown is not None and unknown in ids:
            raise EditError(f"the target {target!r} has a token unknown to this vocabulary: it cannot be generated")

    def pad(self, rows: Sequence[Row], device: torch.device | str = "cpu") -> Padded:
        """Pad rows on the right into one batch on `device`."""
        ids, mask = self.align([row.ids for row in rows])
        return Padded(ids.to(device), mask.to(device), torch.tensor([row.slot for row in rows], device=device))

    def align(self, sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Pad sequences on the right into ids and mask (rows, longest), int64."""
        width = max(len(sequence) for sequence in sequences)
        ids = torch.full((len(sequences), width), self.padding, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, sequence in enumerate(sequences):
            ids[i, : len(sequence)] = torch.tensor(sequence, dtype=torch.long)
            mask[i, : len(sequence)] = 1
        return ids, mask


def _slot(ids: tuple[int, ...], upto: tuple[int, ...], text: str) -> int:
    """Find the token that holds the end of the text whose ids, encoded alone, are `upto`."""
    common = 0
    while common < min(len(ids), len(upto)) and ids[common] == upto[common]:
        common += 1
    slot = min(common, len(upto) - 1)
    if not 0 <= slot < len(ids):
        raise EditError(f"{text!r} has no token where the edit could be made")
    return slot
