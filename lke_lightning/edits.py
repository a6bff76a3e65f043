"""The vocabulary of the package: what an edit is, in plain text, before any tokenizer or model."""

from __future__ import annotations

import operator
import sys
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

Item = TypeVar("Item")

SLOT = "{}"
"""The mark in a template where a subject (or a whole prompt) goes."""

KINDS = ("efficacy", "paraphrase", "neighborhood")
"""The kinds of prompts of every edit: its own, rephrased ones, and prompts about other subjects. Other papers call the
scores reliability, generalization, and specificity or locality."""


WEIGHTS = (1e-6, 1e6)
"""The smallest and the largest weight of an edit: beyond them, least squares lose precision."""


class EditError(ValueError):
    """Invalid input; the message says what is wrong and what to do."""

    @classmethod
    def behind(cls, error: BaseException | None) -> EditError | None:
        """Return the `EditError` that an error goes back to: parsers wrap what a class raises when it is made."""
        while error is not None and not isinstance(error, cls):
            error = error.__cause__ or error.__context__
        return error


def kind(value: Any) -> str:
    """Name the type of a value, in JSON's terms."""
    return _KINDS.get(type(value), f"a {type(value).__name__}")


_KINDS = {
    str: "a text", bool: "true or false", int: "a number", float: "a number", list: "a list", tuple: "a list",
    dict: "an object", type(None): "null",
}  # fmt: skip


def check_text(value: Any, what: str, instead: str = "") -> str:
    """Return a text as it is.

    Args:
        value: what should be one.
        what: its name in the message.
        instead: what to do if it is empty.

    Raises:
        EditError: the value is not a text, is blank, or has a lone surrogate, which no tokenizer or file accepts.
    """
    if not isinstance(value, str):
        raise EditError(f"{what} is {kind(value)}" + ("" if value is None else ", not a text"))
    if not value.strip():
        raise EditError(f"{what} is empty" + (f": {instead}" if instead else ""))
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise EditError(
            f"{what} has half a character, a lone surrogate ({value[error.start]!r}): correct it"
        ) from error
    return value


def check_list(value: Any, what: str, check: Callable[[Any, str], Item]) -> tuple[Item, ...]:
    """Return the entries of a list or tuple, each as `check(entry, its name)` returns it.

    Raises:
        EditError: something else, such as a text, whose letters would be taken for entries.
    """
    if not isinstance(value, list | tuple):
        raise EditError(f"{what} is {kind(value)}, not a list: put it into [ ]")
    return tuple(check(entry, f"{what}[{i}]") for i, entry in enumerate(value))


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
    given = [("above", above, operator.gt), ("at least", at_least, operator.ge)]
    given += [("below", below, operator.lt), ("at most", at_most, operator.le)]
    bounds = [(word, limit, holds) for word, limit, holds in given if limit is not None]
    is_finite = isinstance(value, int | float) and abs(value) <= sys.float_info.max  # nan compares as false
    if not is_finite or not all(holds(value, limit) for _, limit, holds in bounds):
        allowed = " and ".join(f"{word} {limit:g}" for word, limit, _ in bounds)
        raise EditError(f"{name} is {value}: it has to be a finite number {allowed}".rstrip())


def printable(text: str) -> str:
    """Return a text with its control characters spelled out: a terminal would obey them."""
    return "".join(repr(part)[1:-1] if unicodedata.category(part) == "Cc" else part for part in text)


@dataclass(frozen=True)
class Probe:
    """A prompt and its correct answer: a neighborhood fact or a consequence of an edit."""

    prompt: str
    answer: str
    aliases: tuple[str, ...] = ()
    """Other accepted wordings, for generated answers."""

    def __post_init__(self) -> None:
        """Check every field, and turn lists into tuples."""
        check_text(self.prompt, "the prompt of a question")
        check_text(self.answer, f"the answer to {self.prompt!r}")
        object.__setattr__(self, "aliases", check_list(self.aliases, f"aliases of {self.answer!r}", check_text))


@dataclass(frozen=True)
class EditRequest:
    """One edit: after `prompt`, with `subject` in its slot, the model should generate `target`.

    Raises:
        EditError: a field that is empty or of another kind, a weight outside `WEIGHTS`, a template without its slot or
            with other braces.
    """

    id: str
    prompt: str
    """Template with one `{}` for the subject; without a subject, the whole prompt."""
    target: str
    """The new answer, without leading space."""
    subject: str | None = None
    """The subject of the fact; `None`: the edit is made at the last prompt token."""
    original: str | None = None
    """The model's present answer (CounterFact's true target); success compares the target with it."""
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
    neighbours: tuple[Probe, ...] = field(default=(), repr=False)
    """Prompts like those of `neighborhood` that an edit may be made with, and that are not scored."""

    def __post_init__(self) -> None:
        """Check every field, turn lists into tuples, and normalise blanks at the seams."""
        if not isinstance(self.id, str):
            raise EditError(f"the id {self.id!r} is {kind(self.id)}, not a text")
        for name in ("prompt", "target"):
            check_text(getattr(self, name), f"the {name}")
        for name in ("subject", "original", "relation"):
            if getattr(self, name) is not None:
                check_text(getattr(self, name), f"the {name}", "leave it out instead")
        for name in ("paraphrases", "aliases", "generation", "references"):
            object.__setattr__(self, name, check_list(getattr(self, name), name, check_text))
        for name in ("neighborhood", "neighbours", "portability", "two_hop"):
            object.__setattr__(self, name, check_list(getattr(self, name), name, _check_probe))
        is_number = isinstance(self.weight, int | float) and not isinstance(self.weight, bool)
        if not is_number or not WEIGHTS[0] <= self.weight <= WEIGHTS[1]:
            raise EditError(f"the weight {self.weight!r} of an edit must be a number from 1e-06 to 1e+06")
        object.__setattr__(self, "weight", float(self.weight))
        object.__setattr__(self, "target", self.target.strip())
        object.__setattr__(self, "prompt", self.prompt.rstrip())
        if self.subject is not None:
            check_template(self.prompt, "the prompt")
        elif set("{}") & set(self.prompt):
            raise EditError(f"the prompt {self.prompt!r} has braces but no subject is given")

    @classmethod
    def about(cls, prompt: str, subject: str | None, **fields: object) -> EditRequest:
        """Make a request from a prompt that may spell its subject out instead of marking it with `{}`.

        Raises:
            EditError: the subject is not in the prompt, or occurs in it more than once.
        """
        if subject is not None and SLOT not in prompt:
            check_text(prompt, "the prompt")
            count = prompt.count(check_text(subject, "the subject", "leave it out to edit at the last prompt token"))
            if count == 0:
                raise EditError(f"the subject {subject!r} is not in the prompt {prompt!r}{_near(subject, prompt)}")
            if count > 1:
                raise EditError(f"the subject {subject!r} occurs {count} times in {prompt!r}: mark the one with '{{}}'")
            prompt = prompt.replace(subject, SLOT)
        return cls(prompt=prompt, subject=subject, **fields)  # type: ignore[arg-type]  # their own types

    @property
    def text(self) -> str:
        """The prompt with its subject."""
        return self.prompt if self.subject is None else self.prompt.replace(SLOT, self.subject)

    @property
    def fact(self) -> tuple[str, str]:
        """What identifies the fact: a later edit with the same value replaces this one."""
        return (self.subject or "", self.relation or self.prompt)

    def upto_subject(self, prompt: str) -> str | None:
        """Return another subject's prompt up to the subject's end; `None`: it is not in the words of this one."""
        if self.subject is None:
            return None
        before, after = self.prompt.split(SLOT)
        prompt = prompt.rstrip()
        is_alike = prompt.startswith(before) and prompt.endswith(after) and len(prompt) > len(before) + len(after)
        return prompt[: len(prompt) - len(after)] if is_alike else None

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


def _check_probe(value: Any, what: str) -> Probe:
    if not isinstance(value, Probe):
        raise EditError(f"{what} is {kind(value)}, not a Probe")
    return value


def _near(subject: str, prompt: str) -> str:
    """Say why a subject that looks as if it were in its prompt is not."""
    if subject.casefold() in prompt.casefold():
        return ": letter case counts"
    for form in ("NFC", "NFKC"):
        if unicodedata.normalize(form, subject) in unicodedata.normalize(form, prompt):
            return (
                f": they look alike, but are other characters ({subject!a} in the prompt {prompt!a}); bring both into "
                f"one Unicode normalisation form, such as {form}"
            )
    return ""
