"""The parts of KnowEdit that state facts, as published with the survey of knowledge editing (arXiv 2401.01286)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lke_lightning.data.fields import Fields
from lke_lightning.data.records import RecordFile
from lke_lightning.edits import EditRequest, Probe, check_list, check_text

Answers = list[list[str]]
"""All correct answers to a question, each with its aliases."""


class KnowEdit(RecordFile):
    """The parts `wiki_counterfact`, `wiki_recent` and `ZsRE`: one schema, with small differences.

    All questions under `portability` (reasoning, aliases of the subject, logical generalisation) become portability,
    all under `locality` (other relations of the subject, other answers of the same relation) become neighborhood.
    The first of several answers is the reference, the others are aliases.

    Irregular: a question without an answer is left out; an answer of a locality question that equals the
    edit's target is uninformative and left out, and so is the question if it was the only one; an original answer that
    equals the target is dropped.
    """

    def edits(self, record: Fields) -> Iterator[EditRequest]:
        """Read a record."""
        target = record.text("target_new")
        original = next((names[0] for names in _answers(record)), None)
        if original == target:
            self.note("the original answer equals the target: no comparison")
            original = None
        yield EditRequest.about(
            record.text("prompt"),
            record.text("subject"),
            id=str(record.index),
            target=target,
            original=original,
            paraphrases=(record.text("rephrase_prompt"),) if "rephrase_prompt" in record else (),
            neighborhood=tuple(self._probes(record, "locality", target)),
            portability=tuple(self._probes(record, "portability", None)),
        )

    def _probes(self, record: Fields, part: str, but: str | None) -> Iterator[Probe]:
        """Yield the questions of a part whose answers are not `but`."""
        if part not in record:
            return
        asked = record.part(part)
        for topic in asked:
            for question in asked.parts(topic):
                given = _answers(question)
                answers = [names for names in given if but not in names]
                if not given:
                    self.note(f"a {part} question has no answer: left out")
                elif not answers:
                    self.note(f"a {part} question has the target as its answer: left out")
                else:
                    (first, *aliases), *others = answers
                    aliases += [name for names in others for name in names]
                    yield Probe(question.text("prompt"), first, tuple(dict.fromkeys(aliases)))


class WikiBio(RecordFile):
    """The part `WikiBio`: a Wikipedia passage about a person, to be continued with a true sentence.

    Records about one person begin alike, with the person's name in the first sentence. At the name's last token they
    would have one key and different targets, so there is no subject here: each edit is made at the last token of its
    passage. Neighborhood: other facts of the person.
    """

    def edits(self, record: Fields) -> Iterator[EditRequest]:
        """Read a record."""
        locality = record.part("locality")
        yield EditRequest(
            id=str(record.index),
            prompt=record.text("text"),
            target=record.text("labels"),
            neighborhood=tuple(
                Probe(question.text("prompt"), names[0], tuple(names[1:]))
                for topic in locality
                for question in locality.parts(topic)
                for names in _answers(question)[:1]
            ),
        )


def _answers(question: Fields) -> Answers:
    """Bring the answers, a text, a list of texts, or such a list with aliases, into one form without blanks."""
    value = question.get("ground_truth") or []
    given = [value] if isinstance(value, str) else check_list(value, "field 'ground_truth'", lambda group, _: group)
    groups = [[group] if isinstance(group, str) else group for group in given]
    named = [check_list(group, "an answer in 'ground_truth'", _text_or_blank) for group in groups]
    return [names for names in ([name for name in group if name.strip()] for group in named) if names]


def _text_or_blank(value: Any, what: str) -> str:
    return value if value == "" else check_text(value, what)
