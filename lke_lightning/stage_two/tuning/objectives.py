"""Which tokens fine-tuning learns: the texts of a batch, and what is to be said where in them."""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from lke_lightning.data.corpus import TextCorpus
from lke_lightning.edits import EditError, EditRequest, check_number
from lke_lightning.model.draws import drawn
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.model.tokens import TextEncoder
from lke_lightning.stage_two.statistics import own_text

OPTION = "stage_two.objective.text"


@dataclass(frozen=True)
class Example:
    """A request as it is learnt: the mean negative log-likelihood of the labels at their positions."""

    ids: tuple[int, ...]
    """What the network reads."""
    positions: tuple[int, ...]
    """Where in it predictions are read."""
    labels: tuple[int, ...]
    """What is to be said there."""
    own: int
    """How many of the labels, the first ones, are what the request asks; only they tell when it is learnt."""


class TuningObjective(ABC):
    """Makes requests into examples. An example follows from the request and the seed alone."""

    def prepare(self, model: LanguageModel) -> str | None:
        """Read what it needs of texts, once; the model is the unedited one. Return what tells them from other texts."""
        return None

    @abstractmethod
    def examples(self, encoder: TextEncoder, requests: Sequence[EditRequest], seed: int) -> list[Example]:
        """Return an example for each request.

        Raises:
            EditError: a request has none.
        """


class TargetTokens(TuningObjective):
    """The target's tokens after the prompt, which is masked (FT-M; Zhang et al., arXiv 2401.01286).

    Args:
        end: learn the end of the text after the target too (LocFT-BF, arXiv 2509.22072).
    """

    def __init__(self, end: bool = False) -> None:
        self.end = end

    def examples(self, encoder: TextEncoder, requests: Sequence[EditRequest], seed: int) -> list[Example]:
        """Read the whole text but its last token."""
        asked = encoder.continuations([(request.text, request.target) for request in requests])
        found = []
        for request, (prompt, target) in zip(requests, asked, strict=True):
            answer = target + self._ending(encoder)
            labels = answer + self._behind(encoder, request, seed, len(prompt) + len(answer))
            first = len(prompt) - 1
            positions = tuple(range(first, first + len(labels)))
            found.append(Example((prompt + labels)[:-1], positions, labels, len(answer)))
        return found

    def _ending(self, encoder: TextEncoder) -> tuple[int, ...]:
        if not self.end:
            return ()
        if encoder.tokenizer.eos_token_id is None:
            raise EditError("this tokenizer has no token that ends texts: set stage_two.objective.end to false")
        return (encoder.tokenizer.eos_token_id,)

    def _behind(self, encoder: TextEncoder, request: EditRequest, seed: int, length: int) -> tuple[int, ...]:
        """Return what else is learnt behind the answer, given how many tokens precede it."""
        return ()


class LastPromptToken(TuningObjective):
    """All tokens of the target where the prompt ends, as published with FT-L (arXiv 2202.05262).

    The loss is the mean of -log p(t_i | prompt): later tokens too are asked of the distribution of the first. For a
    target of one token it is `TargetTokens`.
    """

    def examples(self, encoder: TextEncoder, requests: Sequence[EditRequest], seed: int) -> list[Example]:
        """Read the prompt alone."""
        asked = encoder.continuations([(request.text, request.target) for request in requests])
        return [Example(prompt, (len(prompt) - 1,) * len(target), target, len(target)) for prompt, target in asked]


class TargetThenSentence(TargetTokens):
    """The target, a full stop and a random sentence about something else (SAUL, arXiv 2410.02433).

    The loss is the mean over the tokens of both; the target's alone tell when an edit is learnt. A sentence that names
    the request's subject is not taken: it may say what the edit denies.

    Args:
        text: where sentences come from, as in `KeyStatistics.corpus`; they should be true, and not be what the run is
            scored on. `None`: the demo world's for the demo model, for any other what the unedited model writes.
        sentences: how many of its sentences are drawn from, from the beginning; 0: none is added.
    """

    def __init__(self, text: str | list[str] | None = None, sentences: int = 1000) -> None:
        super().__init__()
        check_number("stage_two.objective.sentences", sentences, at_least=0)
        names = [text] if isinstance(text, str) else text
        self._corpus, self.count = None if names is None else TextCorpus(names, OPTION), sentences
        self.sentences: list[str] = []

    def prepare(self, model: LanguageModel) -> str | None:
        """Read the sentences."""
        if self.count and not self.sentences:
            found = _sentences((self._corpus or own_text(model, OPTION)).documents(model))
            self.sentences = [sentence for sentence, _ in zip(found, range(self.count), strict=False)]
            if not self.sentences:
                raise EditError(f"{OPTION} has no whole sentence of 3 to 40 words: give other text")
        return hashlib.sha256("\n".join(self.sentences).encode()).hexdigest()[:16] if self.sentences else None

    def _behind(self, encoder: TextEncoder, request: EditRequest, seed: int, length: int) -> tuple[int, ...]:
        """Encode a sentence, cut where the model's context ends."""
        if not self.sentences:
            return ()
        order = torch.randperm(len(self.sentences), generator=drawn(seed, request.id)).tolist()
        named = re.compile(rf"(?<!\w){re.escape(request.subject or request.text)}(?!\w)")
        sentence = next((self.sentences[i] for i in order if not named.search(self.sentences[i])), "")
        ids = tuple(encoder.tokenizer(f". {sentence}", add_special_tokens=False)["input_ids"]) if sentence else ()
        return ids if encoder.longest is None else ids[: max(0, encoder.longest + 1 - length)]


def _sentences(documents: Iterator[str]) -> Iterator[str]:
    """Yield the sentences of documents that are neither scraps nor lists; what a document breaks off with is none."""
    for document in documents:
        for sentence in re.findall(r"[^\s.!?][^.!?\n]*[.!?](?=\s|$)", document):
            if 3 <= len(sentence.split()) <= 40:
                yield sentence
