"""From text to token ids with known positions, by one rule for every tokenizer.

The rule:

1. *Front.* The tokenizer's own leading special tokens (BOS) precede every row once, even if the text already
   begins with them; nothing is ever appended, and none of them can be part of a target.
2. *Boundary.* A target follows exactly one blank, whatever whitespace the prompt ends with or the target begins
   with. Its ids are those that `prompt + " " + target` has beyond the ids of the prompt. If the tokenizer merges
   letters across that boundary, the prompt keeps its ids, and the target gets those that it has after another text.
3. *Slot.* The slot is the last token of the text up to the subject's end, found by encoding that text; where the
   tokenizer merges the subject's end with what follows, it is the merged token. Without a subject it is the last token
   of the prompt (of the user's message, in a chat). Offsets that fast tokenizers report are not used: they are wrong
   for some models.
4. *Preface.* What a module beside the network puts before a question (`TextEncoder.preface`) is asked with it, inside
   the user's message of a chat. Of what does not fit into the context, beside room for an answer, the least relevant is
   left out.
5. *Padding* is on the right, by this module, whatever side the tokenizer is set to.

Through a chat template (`chat: true`) the prompt is a user's message and the target the beginning of the answer: what
the template writes around the message surrounds every prompt, and the boundary is what the template itself puts
between its generation prompt and an answer, often nothing. The template writes the special tokens, so that
rule 1 adds none. Edits and evaluation see the same rows, because both encode prompts here. Plain text (context seeds,
text for key statistics and perplexity) does not go through the template.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lke_lightning.edits import EditError
from lke_lightning.model.cache import Padded

MOST_KNOWN = 200_000
"""Prompts whose ids are cached: both stages and every evaluation encode the same ones."""


ROOM = 8
"""One in so many tokens of the context is kept free for the answer where facts are put before a question."""


@dataclass(frozen=True)
class Row:
    """One token sequence and the position in it that matters."""

    ids: tuple[int, ...]
    slot: int
    """Index of the token where keys are read and targets are written."""


class TextEncoder:
    """A Hugging Face tokenizer that follows the rule of this module.

    Args:
        tokenizer: what `AutoTokenizer` returns; its padding side does not matter.
        chat: put every prompt into the tokenizer's chat template, as a user's message that is answered.
        system: system prompt of the chat.
        longest: tokens that the model's context holds; `None`: any number.

    Raises:
        EditError: `chat` is set and the tokenizer has no chat template, or one that alters the messages.
    """

    def __init__(
        self, tokenizer: Any, chat: bool = False, system: str | None = None, longest: int | None = None
    ) -> None:
        if system is not None and not chat:
            raise EditError("a system prompt (model.system) needs the chat template: set model.chat as well")
        self.tokenizer, self.chat, self.system, self.longest = tokenizer, chat, system, longest
        self._frame = _chat_frame(tokenizer, system) if chat else _Frame()
        plain = tokenizer("a", add_special_tokens=False)["input_ids"]
        special = tokenizer("a")["input_ids"]
        start = next((i for i in range(len(special)) if special[i : i + len(plain)] == plain), 0)
        self.prefix: tuple[int, ...] = tuple(special[:start])
        fallback = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else 0
        self._begins = {*self.prefix, tokenizer.bos_token_id}
        self.padding: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else fallback
        self._known: dict[str, tuple[int, ...]] = {}
        self.preface: Callable[[str], Sequence[str]] | None = None
        """Returns what stands before a question, the least relevant first; set by a module beside the network."""

    def encode(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Encode plain texts, each after the special prefix."""
        return self._encode(texts, self.prefix)

    def prompts(self, texts: Sequence[str], may_exceed: bool = False) -> list[tuple[int, ...]]:
        """Encode prompts after the special prefix, or in the chat template.

        Raises:
            EditError: one is longer than the model's context, unless they `may_exceed` it; or nothing of what stands
                before it fits.
        """
        encoded = self._recall([self._frame.prompt(self._asked(text.rstrip(), may_exceed)) for text in texts])
        for ids, text in zip(encoded, texts, strict=True) if not may_exceed else ():
            self._check_length(len(ids), text)
        return encoded

    def fitted(self, parts: Sequence[str], text: str) -> str | None:
        """Put before a question as many of some texts, from the last one on, as leave room for an answer.

        Returns:
            The whole, which is encoded in place of the question; `None`: not even the last one fits.
        """
        for first in range(len(parts)):
            whole = "".join(parts[first:]) + text
            [ids] = self._recall([self._frame.prompt(whole)])
            if self.longest is None or len(ids) <= self.longest - self.longest // ROOM:
                return whole
        return None

    def _asked(self, text: str, may_exceed: bool = False) -> str:
        """Return a question with what stands before it."""
        parts = self.preface(text) if self.preface is not None else ()
        whole = self.fitted(parts, text) if parts else text
        if whole is None and not may_exceed:
            raise EditError(
                f"not even the most relevant fact fits before {reprlib.repr(text)} in the {self.longest} tokens of the "
                "model's context: shorten it"
            )
        return text if whole is None else whole

    def _encode(self, texts: Sequence[str], prefix: tuple[int, ...]) -> list[tuple[int, ...]]:
        if not texts:
            return []
        encoded = map(tuple, self.tokenizer(list(texts), add_special_tokens=False)["input_ids"])
        return [ids if prefix and ids[: len(prefix)] == prefix else prefix + ids for ids in encoded]

    def _recall(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Encode texts, using the cache."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if len(self._known) + len(new) > MOST_KNOWN:
            self._known, new = {}, list(dict.fromkeys(texts))
        self._known |= dict(zip(new, self._encode(new, () if self.chat else self.prefix), strict=True))
        return [self._known[text] for text in texts]

    def rows(self, texts: Sequence[tuple[str, str]]) -> list[Row]:
        """Encode pairs (whole prompt, prompt up to the slot's end).

        Raises:
            EditError: a prompt is longer than the model's context, or empty.
        """
        asked = [self._asked(text) for text, _ in texts]
        before = [whole.removesuffix(text) for whole, (text, _) in zip(asked, texts, strict=True)]
        whole = self._recall([self._frame.prompt(text) for text in asked])
        upto = self._recall([self._frame.head + add + part for add, (_, part) in zip(before, texts, strict=True)])
        for ids, (text, _) in zip(whole, texts, strict=True):
            self._check_length(len(ids), text)
        return [Row(ids, self._slot(ids, part, text)) for ids, part, (text, _) in zip(whole, upto, texts, strict=True)]

    def _slot(self, ids: tuple[int, ...], upto: tuple[int, ...], text: str) -> int:
        """Find the token that holds the end of the text whose ids, encoded alone, are `upto`."""
        common = 0
        while common < min(len(ids), len(upto)) and ids[common] == upto[common]:
            common += 1
        slot = len(upto) - 1
        if common < len(upto):  # the end merged with the following text, perhaps into other pieces
            wanted = self._letters(upto)
            slot = next((i for i in range(common, len(ids)) if self._letters(ids[: i + 1]) >= wanted), len(ids) - 1)
        if not 0 <= slot < len(ids):
            raise EditError(f"{text!r} has no token where the edit could be made")
        return slot

    def _letters(self, ids: tuple[int, ...]) -> int:
        """Count the whole letters of a text, blanks left out: tokenizers differ in what they make of those."""
        return len("".join(self.tokenizer.decode(ids).split()).rstrip("\ufffd"))

    def continuations(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Encode pairs (prompt, target) into the prompt's ids and the target's ids after it.

        Raises:
            EditError: a target has no ids, or an unknown or special token among them; prompt and target together are
                longer than the model's context.
        """
        asked = [self._frame.prompt(self._asked(prompt.rstrip())) for prompt, _ in pairs]
        targets = [self._frame.lead + target.strip() for _, target in pairs]
        prompts = self._recall(asked)
        wholes = self._recall([prompt + target for prompt, target in zip(asked, targets, strict=True)])
        found = []
        for prompt, prompt_ids, whole, target in zip(asked, prompts, wholes, targets, strict=True):
            fits = whole[: len(prompt_ids)] == prompt_ids
            ids = whole[len(prompt_ids) :] if fits else self._behind_another_text(target)
            self._check_target(ids, target.strip())
            self._check_length(len(prompt_ids) + len(ids) - 1, prompt + target)
            found.append((prompt_ids, ids))
        return found

    def _behind_another_text(self, target: str) -> tuple[int, ...]:
        """Encode a target, its boundary included, where it merges with its prompt: alone, markers would be added."""
        for other in ("a", ".", "\n"):
            before, whole = self._recall([other, other + target])
            if before and whole[: len(before)] == before:
                return whole[len(before) :]
        return self._recall([target])[0][0 if self.chat else len(self.prefix) :]

    def _check_target(self, ids: tuple[int, ...], target: str) -> None:
        unknown = self.tokenizer.unk_token_id
        if not ids:
            raise EditError(f"the target {target!r} has no tokens in this vocabulary")
        if self._begins & set(ids):
            raise EditError(
                f"the target {target!r} has a token that begins texts (BOS), which cannot occur in the middle"
            )
        if unknown is not None and unknown in ids:
            raise EditError(f"the target {target!r} has a token unknown to this vocabulary: it cannot be generated")

    def _check_length(self, length: int, text: str) -> None:
        if self.longest is not None and length > self.longest:
            raise EditError(
                f"{reprlib.repr(text)} takes {length} tokens, but the model's context holds {self.longest}: shorten it"
            )

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


@dataclass(frozen=True)
class _Frame:
    """The text around a prompt: none, or a chat template."""

    head: str = ""
    tail: str = ""
    lead: str = " "
    """Between the prompt, its tail included, and the target."""

    def prompt(self, text: str) -> str:
        """Return a prompt with the text around it."""
        return self.head + text + self.tail


_ASKED, _ANSWERED = "QUESTION-5f1c", "ANSWER-5f1c"
"""Marks that no template contains or changes."""


def _chat_frame(tokenizer: Any, system: str | None) -> _Frame:
    """Extract the text that a chat template writes around a prompt, by rendering a marked conversation."""
    from jinja2 import TemplateError

    conversation = [{"role": "user", "content": _ASKED}]
    if system is not None:
        conversation.insert(0, {"role": "system", "content": system})

    def render(messages: list[dict[str, str]], **more: bool) -> str:
        return tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            date_string="26 Jul 2024",  # Llama 3 would write today's: a run could not be continued tomorrow
            enable_thinking=False,  # Qwen 3 and others: the target is the answer, not the thoughts before it
            **more,
        )

    try:
        asked = render(conversation, add_generation_prompt=True)
        answered = render([*conversation, {"role": "assistant", "content": _ANSWERED}])
    except (TemplateError, ValueError) as error:
        raise EditError(
            f"model.chat needs a tokenizer with a chat template that takes these messages: {error}"
        ) from error
    if asked.count(_ASKED) != 1 or answered.count(_ASKED) != 1 or answered.count(_ANSWERED) != 1:
        raise EditError("the chat template repeats or drops the user's message: model.chat cannot be used with it")
    head, tail = asked.split(_ASKED)
    between = answered[answered.index(_ASKED) + len(_ASKED) : answered.index(_ANSWERED)]
    return _Frame(head, tail, between.removeprefix(tail) if between.startswith(tail) else "")
