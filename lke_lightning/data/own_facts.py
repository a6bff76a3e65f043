"""Your own facts, in a file or as dicts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from lke_lightning.data.fields import Fields
from lke_lightning.data.records import RecordFile
from lke_lightning.edits import SLOT, EditError, EditRequest, Probe, kind

FIELDS = (
    "prompt", "target", "subject", "original", "paraphrases", "neighborhood", "id", "relation", "weight", "aliases",
    "portability", "two_hop", "generation", "references", "neighbours",
)  # fmt: skip


class JsonLines(RecordFile):
    """Your own facts, one JSON object per line.

    Fields: `prompt` and `target`; optional `subject` (spelled in the prompt, or marked there by `{}`; without one the
    edit is made at the prompt's last token), `original` (the model's present answer), `paraphrases` (list of prompts),
    `neighborhood` (list of {"prompt", "answer", "aliases"}, or of prompts whose answer is `original`), `id` (text or
    whole number; the record's position if not given), `relation`, `weight` (how much the edit counts, 1 if not given),
    `aliases` (other wordings of the target), `portability` and `two_hop` (lists of {"prompt", "answer", "aliases"};
    questions that follow from the edit alone, or with other facts), `generation` (prompts to be continued freely)
    and `references` (texts that continuations are compared with), `neighbours` (as `neighborhood`; an edit may be made
    with them, and they are not scored). Other fields are refused.
    """

    def edits(self, record: Fields) -> Iterator[EditRequest]:
        """Read one of your records."""
        request = _request(record)
        if request.subject is None:
            self.note("no subject: edited at the prompt's last token, where prompts that end alike may change too")
        if record["target"] != request.target:
            self.note("the target begins or ends with blanks: stripped; one blank separates it from its prompt")
        if record["prompt"] != record["prompt"].rstrip():
            self.note("the prompt ends with blanks: stripped; one blank separates it from its target")
        if request.original is not None and request.original.strip() == request.target:
            self.note("the original equals the target: success compares a text with itself")
        yield request


def own_request(record: Mapping[str, Any], index: int = 0) -> EditRequest:
    """Turn a dict with the fields of `JsonLines` into a request; questions may be `Probe`s, lists may be tuples.

    Args:
        record: the dict.
        index: its position, which is its id if it has none.

    Raises:
        EditError: a field is unknown, missing or of another form.
    """
    return _request(Fields(record, index=index))


def as_fact(request: EditRequest) -> dict[str, Any]:
    """Return the dict that `own_request` turns into this request; what is empty is left out."""
    return {name: value for name, value in asdict(request).items() if value not in (None, ())}


def _request(record: Fields) -> EditRequest:
    record.only(FIELDS)
    original = record.text("original") if "original" in record else None
    return EditRequest.about(
        record.text("prompt"),
        record.text("subject") if "subject" in record else None,
        id=record.name("id") if "id" in record else str(record.index),
        target=record.text("target"),
        original=original,
        relation=record.name("relation") if "relation" in record else None,
        paraphrases=tuple(_spelled(text, "paraphrases") for text in record.texts("paraphrases")),
        neighborhood=tuple(_probe(*entry, original) for entry in record.entries("neighborhood")),
        weight=record.get("weight", 1.0),
        aliases=record.texts("aliases"),
        portability=tuple(_probe(*entry) for entry in record.entries("portability")),
        two_hop=tuple(_probe(*entry) for entry in record.entries("two_hop")),
        generation=tuple(_spelled(text, "generation") for text in record.texts("generation")),
        references=record.texts("references"),
        neighbours=tuple(_probe(*entry, original) for entry in record.entries("neighbours")),
    )


def _probe(given: Any, path: str, original: str | None = None) -> Probe:
    if isinstance(given, Probe):
        return given
    if isinstance(given, Mapping):
        fields = Fields(given, path).only(("prompt", "answer", "aliases"))
        return Probe(_spelled(fields.text("prompt"), path), fields.text("answer"), fields.texts("aliases"))
    if not isinstance(given, str):
        raise EditError(f'field {path!r} is {kind(given)}: give {{"prompt", "answer"}}')
    if original is None:
        raise EditError(f'field {path!r} is a prompt that needs its answer: give {{"prompt", "answer"}}, or `original`')
    return Probe(_spelled(given, path), original)


def _spelled(prompt: str, path: str) -> str:
    """Return a whole prompt; only the edited prompt has a slot."""
    if SLOT in prompt:
        raise EditError(f"field {path!r} has the prompt {prompt!r} with {SLOT!r} in it: spell the subject out")
    return prompt
