"""Editing in context: the facts that bear on a question are put before it."""

from __future__ import annotations

import itertools
from typing import Any

from lke_lightning.edits import EditError, EditRequest, check_number
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.stage_two.facts import Fact, Facts, Telling, asked, stated
from lke_lightning.stage_two.retrieval import Retriever

ORDER = ("copy", "update", "retain", "update", "retain", "update", "retain", "retain")
"""The kinds of eight demonstrations, of the most relevant fact first: one to three to four, as in IKE."""


class Preface(Facts):
    """Puts facts before questions, in sentences, the most relevant last; a question without any stays as it is.

    With demonstrations, as in IKE: other facts of the run, each with a prompt and its right answer. *Copy*: its own
    prompt. *Update*: a paraphrase. *Retain*: a prompt about something else, with the answer that stays. A fact that
    lacks such a prompt, or whose prompt is the very question, is shown as a copy.

    Args:
        retriever: see `Facts`.
        top_k: see `Facts`.
        threshold: see `Facts`.
        demonstrations: how many; 0: the facts alone.
        facts: see `Facts`.
        holding: see `Facts`.

    Raises:
        EditError: a number is out of its range.
    """

    def __init__(
        self,
        retriever: Retriever,
        top_k: int,
        threshold: float,
        demonstrations: int,
        facts: list[Fact] | None = None,
        holding: list[int] | None = None,
    ) -> None:
        super().__init__(retriever, top_k, threshold, facts, holding)
        check_number("stage_two.demonstrations", demonstrations, at_least=0)
        self.demonstrations = demonstrations

    @property
    def settings(self) -> dict[str, Any]:
        """See `Facts.settings`."""
        return {**super().settings, "demonstrations": self.demonstrations}

    def install(self, model: LanguageModel) -> None:
        """Speak before each question."""
        model.text.preface = self.before

    def before(self, question: str) -> list[str]:
        """Return what stands before a question, the least relevant first."""
        found = self.found(question)
        if not found:
            return []
        others = [n for n in self.ranked(question, self.demonstrations + len(found))[0] if n not in found]
        shown = zip(others[: self.demonstrations], itertools.cycle(ORDER), strict=False)
        examples = [_demonstrated(self.facts[number], kind, question) for number, kind in shown]
        return [*reversed(examples), *told([self.facts[number] for number in reversed(found)])]


def told(facts: list[Fact]) -> list[str]:
    """Return what is said of some facts, at least one, before a question."""
    said = [f"New fact: {stated(fact)}\n" for fact in facts]
    return [*said[:-1], said[-1] + "Prompt: "]


def _demonstrated(fact: Fact, kind: str, question: str) -> str:
    """Show what follows from a fact, or does not."""
    copied = (asked(fact), fact["target"])
    of_kind = {
        "copy": [copied],
        "update": [(prompt, fact["target"]) for prompt in fact.get("paraphrases", ())],
        "retain": [(probe["prompt"], probe["answer"]) for probe in fact.get("neighbours", ())],
    }
    prompt, answer = next((pair for pair in of_kind[kind] if pair[0] != question), copied)
    return f"{''.join(told([fact]))}{prompt} {answer}\n\n"


class InContext(Telling):
    """Puts the facts that bear on a question before it: retrieval, and with demonstrations IKE (arXiv 2305.12740).

    What is put there reaches prompts that are answered, teacher-forced or freely, and not the documents of perplexity
    and guard; it is where the present facts are, and so are `unedited` and undo.

    Args:
        retriever: finds the facts.
        top_k: how many facts are put before a question, at most.
        threshold: relevance, as a share of that of a fact's own prompt, that a fact has to exceed; 0: any that has
            something in common with the question.
        demonstrations: how many examples of what follows from a fact, made from other edits of the run, come before.

    Raises:
        EditError: a number is out of its range.
    """

    def __init__(self, retriever: Retriever, top_k: int = 3, threshold: float = 0.0, demonstrations: int = 0) -> None:
        super().__init__()
        self.options = (retriever, top_k, threshold, demonstrations)
        self.store()

    def store(self) -> Preface:
        """Make the module."""
        return Preface(*self.options)

    def check_fits(self, model: LanguageModel, facts: Facts, request: EditRequest) -> None:
        """Check that the fact fits before its own prompt, which is asked with other edits."""
        probe = self.store()
        probe.add([request])
        if model.text.fitted(told(probe.facts), request.text) is None:
            raise EditError(
                f"edit {request.id}: the fact and its prompt do not fit into the {model.context_length} tokens of the "
                "model's context, of which an eighth is kept for the answer: shorten it"
            )
