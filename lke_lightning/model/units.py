"""Units: one request may ask for several changes, each at a token of its own, in its prompt followed by its answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from lke_lightning.edits import EditError, EditRequest
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.model.tokens import Row, TextEncoder


@dataclass(frozen=True)
class Unit:
    """A change that a request asks for."""

    slot: int
    """The token, in the prompt followed by the answer, where the key is read and the target written."""
    start: int
    """Tokens `start` to `stop - 1` of the answer are what the change is found for; `slot` is before the first."""
    stop: int


Other = tuple[Row, tuple[int, ...]]
"""A prompt about something else, followed by all tokens of its answer but the last; and that answer."""


class Expansion(ABC):
    """Makes a request into units, found and written one after the other; a request's units stand and fall together."""

    @abstractmethod
    def units(self, prompt: Row, answer: int) -> list[Unit]:
        """Return the units of a request, in the order of their slots, at least one.

        Args:
            prompt: its tokens, and the slot of the request itself.
            answer: how many tokens the answer has.
        """

    in_contexts: ClassVar[bool] = True
    """Whether units may stand behind other text, and are at the request's own slot."""

    def check(self, requests: Sequence[EditRequest], contexts: Sequence[str]) -> None:
        """Check that the requests of a run can be expanded, before any work.

        Raises:
            EditError: they cannot, in these context templates.
        """
        if not self.in_contexts and len(contexts) > 1:
            raise EditError(
                f"{type(self).__name__} takes prompts as they are, without contexts in front of them: set "
                "stage_one.contexts.init_args.seeds to []"
            )

    def others(
        self, model: LanguageModel, requests: Sequence[EditRequest], contexts: Sequence[str]
    ) -> list[tuple[Other, ...]]:
        """Return for each request the rows about something else that its changes are found for too; default: none."""
        return [()] * len(requests)


class Whole(Expansion):
    """A request is one unit, at its own slot: all methods that are not about long answers."""

    def units(self, prompt: Row, answer: int) -> list[Unit]:
        """Ask for the whole answer."""
        return [Unit(prompt.slot, 0, answer)]


@dataclass(frozen=True)
class Text:
    """A request's prompt in a context, and its answer."""

    ids: tuple[int, ...]
    slots: tuple[int, ...]
    """Of its units."""
    answer: tuple[int, ...]


def texts(encoder: TextEncoder, requests: Sequence[EditRequest], templates: Sequence[str], by: Expansion) -> list[Text]:
    """Encode requests, each in all context templates, the bare prompt `"{}"` first.

    Raises:
        EditError: a text is longer than the model's context, or has tokens that the vocabulary cannot say.
    """
    prompts = encoder.rows([request.in_context(template) for request in requests for template in templates])
    answers = [ids for _, ids in encoder.continuations([(request.text, request.target) for request in requests])]
    found = []
    for i, prompt in enumerate(prompts):
        answer = answers[i // len(templates)]
        found.append(Text(prompt.ids + answer, tuple(u.slot for u in by.units(prompt, len(answer))), answer))
    return found
