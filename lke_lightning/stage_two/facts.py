"""Facts kept in words beside the network, and the stage two of editors that only tell them: no weight changes."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from lke_lightning.edits import SLOT, EditError, EditRequest, check_number
from lke_lightning.model.beside import Beside
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.model.units import Expansion
from lke_lightning.results import write
from lke_lightning.stage_two.register import UNDONE, Register
from lke_lightning.stage_two.retrieval import Retriever, Score
from lke_lightning.stage_two.solvers import EditSystem
from lke_lightning.stage_two.stage import Again, StageTwo
from lke_lightning.step import EditStep

NAME = "facts"
"""The name under which they stand beside the network."""

Fact = dict[str, Any]
"""`prompt` and `target`; where the edit has them `subject`, `relation`, one of its `paraphrases`, and one prompt of its
`neighbours`, else of its neighborhood, with the answer: fields of `JsonLines`."""


Mark = tuple[int, list[int], dict[int, dict[str, Tensor]]]
"""How many facts there were, the numbers of those that held, and the memory, which only tells that there is a run."""


class Facts(Beside):
    """The facts of a run, by the numbers of its register, of which some hold, and a way to find those that matter.

    A question is compared with the prompts of the facts. How relevant a fact is, is told by its score over that of its
    own prompt: 1 for that prompt, whatever the retriever.

    Args:
        retriever: compares questions with facts.
        top_k: how many facts are found for a question, at most.
        threshold: the relevance that a fact has to exceed to be found.
        facts: all that were ever made.
        holding: the numbers of those that hold.

    Raises:
        EditError: a number is out of its range.
    """

    def __init__(
        self,
        retriever: Retriever,
        top_k: int,
        threshold: float,
        facts: list[Fact] | None = None,
        holding: list[int] | None = None,
    ) -> None:
        super().__init__()
        check_number("stage_two.top_k", top_k, at_least=1)
        check_number("stage_two.threshold", threshold, at_least=0, below=1)
        self.retriever, self.top_k, self.threshold = retriever, top_k, threshold
        self.facts = list(facts or [])
        self.hold(holding or [])

    @property
    def settings(self) -> dict[str, Any]:
        """What it was made with, and the facts as they are."""
        given = {"retriever": self.retriever, "top_k": self.top_k, "threshold": self.threshold}
        return {**given, "facts": list(self.facts), "holding": list(self.holding)}

    def add(self, requests: Sequence[EditRequest]) -> None:
        """Append facts; they do not hold yet."""
        self.facts += [_fact(request) for request in requests]

    def hold(self, numbers: Sequence[int]) -> None:
        """Let these facts hold, by their numbers, and no others."""
        self.holding = list(numbers)
        self._score: Score | None = None
        self._found: dict[str, list[int]] = {}

    @property
    def is_empty(self) -> bool:
        """Whether no fact holds."""
        return not self.holding

    def clear(self) -> None:
        """Forget all facts."""
        self.facts = []
        self.hold([])

    def found(self, question: str) -> list[int]:
        """Return the numbers of the facts that bear on a question, the most relevant first; while it is off, none."""
        if not self.is_on or not self.holding:
            return []
        if question not in self._found:
            ranked, scores = self.ranked(question)
            self._found[question] = [
                number for number, score in zip(ranked, scores, strict=True)
                if score > self.threshold * self._scores(asked(self.facts[number]))[self.holding.index(number)]
            ]  # fmt: skip
        return self._found[question]

    def ranked(self, question: str, count: int | None = None) -> tuple[list[int], list[float]]:
        """Return the numbers of the best facts for a question, best first, older ones first among equals; and scores.

        Args:
            question: any text.
            count: how many, at most; `None`: `top_k`.
        """
        best = self._scores(question).sort(descending=True, stable=True)
        count = min(self.top_k if count is None else count, len(self.holding))
        return [self.holding[place] for place in best.indices[:count].tolist()], best.values[:count].tolist()

    def _scores(self, question: str) -> Any:
        if self._score is None:
            self._score = self.retriever.index([asked(self.facts[number]) for number in self.holding])
        return self._score(question)

    def is_of(self, units: Sequence[int]) -> bool:
        """See `Beside.is_of`."""
        texts = [fact.get(name) for fact in self.facts for name in ("prompt", "target")]
        numbers = all(0 <= number < len(units) for number in self.holding)
        return len(self.facts) == len(units) and numbers and all(isinstance(text, str) for text in texts)

    def save(self, path: str | Path) -> None:
        """Write the facts that hold as JSON Lines, which `JsonLines` reads."""
        lines = [json.dumps(self.facts[number], ensure_ascii=False) + "\n" for number in self.holding]
        write(Path(path), "".join(lines))


def asked(fact: Fact) -> str:
    """Return a fact's prompt with its subject."""
    return fact["prompt"].replace(SLOT, fact.get("subject", ""))


def stated(fact: Fact) -> str:
    """Return a fact as a sentence."""
    return f"{asked(fact)} {fact['target'].rstrip('.')}."


def _fact(request: EditRequest) -> Fact:
    beside = [*request.neighbours, *request.neighborhood][:1]
    given: Fact = {
        "prompt": request.prompt,
        "target": request.target,
        "subject": request.subject,
        "relation": request.relation,
        "paraphrases": list(request.paraphrases[:1]),
        "neighbours": [{"prompt": probe.prompt, "answer": probe.answer} for probe in beside],
    }
    return {name: value for name, value in given.items() if value}


class Telling(StageTwo):
    """Keeps edits as facts in words, which a module beside the network makes use of; no weight changes.

    A later edit of a fact replaces the earlier one, which is found no more; undo and redo are exact, and cost nothing.
    """

    needs_targets, USE = False, "needs no targets"

    def __init__(self) -> None:
        self.memory = {}  # by layer nothing, once there is a run

    @abstractmethod
    def store(self) -> Facts:
        """Make the module, without any facts."""

    @abstractmethod
    def check_fits(self, model: LanguageModel, facts: Facts, request: EditRequest) -> None:
        """Raise `EditError` where a fact cannot be told to this model."""

    def prepare(
        self,
        model: LanguageModel,
        requests: Sequence[EditRequest] = (),
        contexts: Sequence[str] = ("{}",),
        expansion: Expansion | None = None,
    ) -> None:
        """Let the facts stand beside the network, and check that each can be told; see `StageTwo.prepare`."""
        if self.memory and NAME not in model.beside:
            raise EditError("the checkpoint lacks the facts of its run: it was changed by another program; use another")
        self.memory = {layer: {} for layer in model.layers}
        if NAME not in model.beside or not model.beside[NAME].facts:
            model.attach(NAME, self.store())
        for request in requests:
            self.check_fits(model, model.beside[NAME], request)

    def write(
        self, model: LanguageModel, step: EditStep, register: Register, again: Again | None = None
    ) -> dict[int, EditSystem]:
        """Add the facts of a batch; see `StageTwo.write`."""
        model.beside[NAME].add(step.requests)
        register.enter(step.requests, step.targets.groups)
        model.beside[NAME].hold(register.holding)
        return {}

    def mark(self, model: LanguageModel, register: Register) -> Mark:
        """Mark how many facts there are, and which hold."""
        return len(register), register.holding, self.memory

    def roll_back(self, model: LanguageModel, register: Register, mark: Mark) -> None:
        """Forget later facts, and let hold what held."""
        count, holding, self.memory = mark
        if NAME in model.beside:
            del model.beside[NAME].facts[count:]
            model.beside[NAME].hold(holding)
        register.shorten(count)

    def revert(self, model: LanguageModel, register: Register) -> None:
        """Let no fact hold; they can be told again (`redo`)."""
        model.beside[NAME].hold([])
        register.deactivate(register.holding, UNDONE)

    def why_not_exact(self) -> str | None:
        """Return nothing: undo is exact."""
        return None

    def move(self, model: LanguageModel, register: Register, out: Sequence[int], back: Sequence[int]) -> None:
        """Let facts hold no more, and others again."""
        model.beside[NAME].hold(sorted({*register.holding, *back} - {*out}))
