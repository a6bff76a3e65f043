"""Tasks made of ordinary text, for models that are too small for benchmarks: which continuation is the text's own?

A document gives at most one question, and documents are read in their order, so that questions are independent and the
text may be long. The prediction is the continuation with the highest mean log-probability per token.
"""

from __future__ import annotations

import math
import random
import re
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from lke_lightning.data.corpus import TextCorpus
from lke_lightning.edits import EditError, check_number
from lke_lightning.evaluation.downstream import Result, Task
from lke_lightning.evaluation.teacher_forced import continuations
from lke_lightning.model.language_model import LanguageModel

VERBS = (("is", "are"), ("was", "were"), ("has", "have"))
"""Singular and plural."""
OTHER = {verb: other for pair in VERBS for verb, other in (pair, pair[::-1])}
SINGULAR = {singular for singular, _ in VERBS}
SENTENCE = re.compile(r"(?<=[.!?])\s+|\n")
"""What is between two sentences."""

BEGINNING, ENDING = 24, 12
"""Words that `Completion` shows, and words of each ending."""


@dataclass(frozen=True)
class Choice:
    """The beginning of a text, and how it may go on."""

    beginning: str
    endings: tuple[str, ...]
    """The text's own first."""


class TextChoices(Task):
    """Questions made of ordinary text.

    Args:
        text: files, a hub name, or `demo`; see `data.corpus.TextCorpus`. It should not be used otherwise in the run.
        limit: ask so many questions, of the first documents that give one. An accuracy near one half is uncertain by
            1 / sqrt(limit) in either direction (95 %).
        seed: where a document gives several questions, one is drawn with this seed.
    """

    endings: ClassVar[int]
    """How many continuations each question has."""

    def __init__(self, text: list[str], limit: int = 200, seed: int = 0) -> None:
        self.text, self.limit, self.seed = text, limit, seed
        self._choices: list[Choice] = []

    @abstractmethod
    def choice(self, document: str, number: int, draw: random.Random) -> Choice | None:
        """Make the question of that number of a document; `None`: it gives none."""

    def check(self) -> None:
        """Check the arguments, and make the questions.

        Raises:
            EditError: the limit is below 1, or the text gives fewer questions, or cannot be read.
        """
        check_number(f"limit of {self.name} (downstream.tasks)", self.limit, at_least=1)
        self.read()

    def about(self) -> dict[str, Any]:
        """Describe the questions."""
        return {"source": [*self.text], "limit": self.limit, "seed": self.seed, "chance": 1 / self.endings}

    def measure(self, model: LanguageModel, max_tokens: int = 16384) -> Result:
        """Ask all questions.

        Returns:
            `accuracy`, `standard_error` (of the accuracy, over questions), `chance`, `items` (questions asked).
        """
        choices = self.read()
        pairs = [(choice.beginning, ending) for choice in choices for ending in choice.endings]
        nll = continuations(model, pairs, max_tokens).nll.reshape(-1, self.endings)
        # more probable than each of the others: a model that calls all alike, or gives no numbers, is never right
        accuracy = (nll[:, :1] < nll[:, 1:]).all(1).double().mean().item()
        return {
            "accuracy": round(accuracy, 6),
            "standard_error": round(math.sqrt(accuracy * (1 - accuracy) / len(choices)), 6),
            "chance": 1 / self.endings,
            "items": len(choices),
        }

    def read(self) -> list[Choice]:
        """Return the questions; made once.

        Raises:
            EditError: the text gives too few, or cannot be read.
        """
        if not self._choices:
            found = list(self._made())
            if len(found) < self.limit:
                raise EditError(
                    f"{', '.join(self.text)} gives {len(found)} questions of {self.name}, not {self.limit}: "
                    "give more text, or set its limit (downstream.tasks)"
                )
            self._choices = found
        return self._choices

    def _made(self) -> Iterator[Choice]:
        draw, number = random.Random(self.seed), 0
        for document in TextCorpus(self.text, f"downstream.tasks, {self.name}").documents():
            choice = self.choice(document, number, draw)
            if choice is not None:
                yield choice
                number += 1
            if number == self.limit:
                return


class Agreement(TextChoices):
    """Grammar: is the verb of a sentence singular or plural?

    The sentence is shown up to its only form of *is*, *was* or *has*; the other number of the same verb is the other
    continuation. As many sentences are singular as plural. What needs the rest of the sentence (*there is*) is left
    out. After Linzen et al., *Assessing the Ability of LSTMs to Learn Syntax-Sensitive Dependencies*, arXiv 1611.01368.
    """

    endings = 2

    def choice(self, document: str, number: int, draw: random.Random) -> Choice | None:
        """Take a sentence whose verb has the number that is due."""
        found = []
        for sentence in SENTENCE.split(document):
            words = sentence.split()
            verbs = [place for place, word in enumerate(words) if word in OTHER]
            if len(verbs) != 1 or verbs[0] < 2 or words[verbs[0] - 1] == "there":
                continue
            verb = words[verbs[0]]
            if (verb in SINGULAR) == (number % 2 == 0):
                found.append(Choice(" ".join(words[: verbs[0]]), (verb, OTHER[verb])))
        return draw.choice(found) if found else None


class Completion(TextChoices):
    """Coherence: how does a text go on?

    The first 24 words of a document are shown, and the 12 that follow; the other three continuations are 12 words each
    from later in the same document, so that its topic alone does not tell.
    """

    endings = 4

    def choice(self, document: str, number: int, draw: random.Random) -> Choice | None:
        """Draw the three other endings."""
        words = document.split()
        later = range(BEGINNING + ENDING, len(words) - ENDING + 1, ENDING)
        if len(later) < self.endings - 1:
            return None
        starts = (BEGINNING, *draw.sample(later, self.endings - 1))
        return Choice(" ".join(words[:BEGINNING]), tuple(" ".join(words[start : start + ENDING]) for start in starts))
