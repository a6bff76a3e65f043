"""The vocabulary of the package: what an edit is, in plain text, before any tokenizer or model."""

from __future__ import annotations

import operator
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

SLOT = "{}"
"""The mark in a template where a subject (or a whole prompt) goes."""

KINDS = ("efficacy", "paraphrase", "neighborhood")
"""What every edit is asked about: its own prompt, other wordings, other subjects. Other papers call them reliability,
generalization, and specificity or locality."""


class EditError(ValueError):
    """Input that cannot be edited with; the message says what is wrong and what to do."""


def check_template(template: str, what: str) -> None:
    """Raise `EditError` unless `template` holds exactly one slot and no other brace."""
    if template.count(SLOT) != 1:
        raise EditError(f"{what} {template!r} needs exactly one {SLOT!r}, found {template.count(SLOT)}")
    if set("{}") & set(template.replace(SLOT, "")):
        raise EditError(f"{what} {template!r} has braces besides its {SLOT!r}: remove them")


def check_number(
    name: str,
    value: float,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
) -> None:
    """Raise `EditError` unless the value of an option, `name`, is a finite number within the given bounds."""
    bounds = [("above", above, operator.gt), ("at least", at_least, operator.ge)]
    bounds += [("below", below, operator.lt), ("at most", at_most, operator.le)]
    bounds = [bound for bound in bounds if bound[1] is not None]
    is_finite = isinstance(value, int | float) and abs(value) <= sys.float_info.max  # nan compares as false
    if not is_finite or not all(holds(value, limit) for _, limit, holds in bounds):
        allowed = " and ".join(f"{word} {limit:g}" for word, limit, _ in bounds)
        raise EditError(f"{name} is {value}: it has to be a finite number {allowed}".rstrip())


@dataclass(frozen=True)
class Probe:
    """A prompt and the answer it should get: a neighbourhood fact or a question that follows from an edit."""

    prompt: str
    answer: str
    aliases: tuple[str, ...] = ()
    """Other wordings of the answer, for what is generated freely."""


@dataclass(frozen=True)
class EditRequest:
    """One fact to change: after `prompt`, with `subject` in its slot, the model shall say `target`.

    Raises:
        EditError: an empty field, a template without its slot or with other braces.
    """

    id: str
    prompt: str
    """Template with one `{}` for the subject; without a subject, the whole prompt."""
    target: str
    """What the model shall say, without leading space."""
    subject: str | None = None
    """What the fact is about; `None`: the last prompt token is where the edit is made."""
    original: str | None = None
    """What the model says today (CounterFact's true target); success is measured against it."""
    relation: str | None = None
    paraphrases: tuple[str, ...] = ()
    """Full prompts that ask for the same fact."""
    neighborhood: tuple[Probe, ...] = ()
    """Full prompts about other subjects, whose answers must stay."""
    weight: float = 1.0
    """How much the edit counts in the least-squares problem, beside others and beside ordinary text."""
    aliases: tuple[str, ...] = ()
    """Other wordings of the target that count as right where the model generates freely."""
    portability: tuple[Probe, ...] = field(default=(), repr=False)
    """Questions whose answers follow from the edit in one step of reasoning."""
    two_hop: tuple[Probe, ...] = field(default=(), repr=False)
    """Questions that need the edited fact and others."""
    generation: tuple[str, ...] = field(default=(), repr=False)
    """Prompts about the subject that are continued freely, for fluency and consistency."""
    references: tuple[str, ...] = field(default=(), repr=False)
    """Texts about things of which the target is true, that continuations are compared with for consistency."""

    def __post_init__(self) -> None:
        """Normalise blanks at the seams, then check every field that an edit needs."""
        object.__setattr__(self, "target", self.target.strip())
        object.__setattr__(self, "prompt", self.prompt.rstrip())
        if not self.prompt:
            raise EditError("the prompt is empty")
        if not self.target:
            raise EditError("the target is empty")
        if self.original is not None and not self.original.strip():
            raise EditError("the original target is empty: leave it out instead")
        if self.weight <= 0:
            raise EditError(f"the weight {self.weight:g} of an edit must be above 0")
        if self.subject is None:
            if set("{}") & set(self.prompt):
                raise EditError(f"the prompt {self.prompt!r} has braces but no subject is given")
        else:
            if not self.subject.strip():
                raise EditError("the subject is empty: leave it out to edit at the last prompt token")
            check_template(self.prompt, "the prompt")

    @classmethod
    def about(cls, prompt: str, subject: str | None, **fields: object) -> EditRequest:
        """Make a request from a prompt that may spell its subject out instead of marking it with `{}`.

        Raises:
            EditError: the subject is not in the prompt, or occurs in it more than once.
        """
        if subject is not None and SLOT not in prompt:
            count = prompt.count(subject) if subject else 0
            if count == 0:
                raise EditError(f"the subject {subject!r} is not in the prompt {prompt!r} (letter case counts)")
            if count > 1:
                raise EditError(f"the subject {subject!r} occurs {count} times in {prompt!r}: mark the one with '{{}}'")
            prompt = prompt.replace(subject, SLOT)
        return cls(prompt=prompt, subject=subject, **fields)  # type: ignore[arg-type]

    @property
    def text(self) -> str:
        """The prompt with its subject."""
        return self.prompt if self.subject is None else self.prompt.replace(SLOT, self.subject)

    @property
    def fact(self) -> tuple[str, str]:
        """What identifies the fact: a later edit with the same value replaces this one."""
        return (self.subject or "", self.relation or self.prompt)

    def in_context(self, template: str) -> tuple[str, str]:
        """Put the prompt into a context template such as `"Because it rained. {}"`.

        Returns:
            The whole text, and its part up to and including the slot (the subject, or the whole prompt).
        """
        before = template[: template.index(SLOT)]
        if self.subject is None:
            return before + self.prompt, before + self.prompt
        upto = before + self.prompt[: self.prompt.index(SLOT)] + self.subject
        return before + self.text, upto


class EditBatch:
    """The requests of one training step, at most one per fact; of a validation step, any.

    Not a dataclass, unlike the rest: Lightning's half precision looks for tensors inside of those, and refuses frozen
    ones.

    Args:
        requests: what is edited or scored.
        superseded: requests left out because a later one of the same batch states the same fact.
    """

    def __init__(self, requests: Sequence[EditRequest], superseded: Sequence[EditRequest] = ()) -> None:
        self.requests, self.superseded = tuple(requests), tuple(superseded)

    def __len__(self) -> int:
        """Count the requests that are edited."""
        return len(self.requests)

    @classmethod
    def of(cls, requests: Sequence[EditRequest]) -> EditBatch:
        """Collect requests; of two about the same fact the later wins."""
        last = {request.fact: request for request in requests}
        kept = [request for request in requests if last[request.fact] is request]
        return cls(kept, [request for request in requests if last[request.fact] is not request])
