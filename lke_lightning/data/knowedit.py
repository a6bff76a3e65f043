"""The parts of KnowEdit that state facts, as published with the survey of knowledge editing (arXiv 2401.01286)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lke_lightning.data.records import Record, RecordFile, nested
from lke_lightning.edits import EditRequest, Probe

Answers = list[list[str]]
"""Answers to one question that are all right, each with its aliases."""


class KnowEdit(RecordFile):
    """The parts `wiki_counterfact`, `wiki_recent` and `ZsRE`: one schema, with small differences.

    All questions under `portability` (reasoning, aliases of the subject, logical generalisation) become portability,
    all under `locality` (other relations of the subject, other answers of the same relation) become neighbourhood.
    A question with several answers takes the first, the others count as aliases.

    Irregular: a question without an answer is left out; an answer of a locality question that is the edit's own
    target, about which the question then tells nothing, is left out, and so is the question if it was the only one;
    an original answer that is the target is not compared with.
    """

    def edits(self, record: Record) -> Iterator[EditRequest]:
        """Read a record."""
        target = record["target_new"]
        original = next((names[0] for names in _answers(record.get("ground_truth"))), None)
        if original == target:
            self.note("the original answer is the target: nothing to compare with")
            original = None
        yield EditRequest.about(
            record["prompt"],
            record["subject"],
            id=str(record["index"]),
            target=target,
            original=original,
            paraphrases=(record["rephrase_prompt"],) if "rephrase_prompt" in record else (),
            neighborhood=self._locality(record, target),
            portability=tuple(self._probes(record, "portability", None)),
        )

    def _locality(self, record: Record, target: str) -> tuple[Probe, ...]:
        return tuple(self._probes(record, "locality", target))

    def _probes(self, record: Record, part: str, but: str | None) -> Iterator[Probe]:
        """Yield the questions of a part whose answers are not `but`."""
        for questions in (nested(record.get(part)) or {}).values():
            for question in questions or ():
                given = _answers(question["ground_truth"])
                answers = [names for names in given if but not in names]
                if not given:
                    self.note(f"a {part} question has no answer: left out")
                elif not answers:
                    self.note(f"a {part} question has the target for its answer: left out")
                else:
                    (first, *aliases), *others = answers
                    others = [name for names in others for name in names]
                    yield Probe(question["prompt"], first, tuple(dict.fromkeys([*aliases, *others])))


class WikiBio(RecordFile):
    """The part `WikiBio`: a Wikipedia passage about a person, to be continued with a true sentence.

    Records about one person begin alike, with the person's name in the first sentence. At the name's last token they
    would have one key and different targets, so there is no subject here: each edit is made at the last token of its
    passage. Neighbourhood: other facts of the person.
    """

    def edits(self, record: Record) -> Iterator[EditRequest]:
        """Read a record."""
        yield EditRequest(
            id=str(record["index"]),
            prompt=record["text"],
            target=record["labels"],
            neighborhood=tuple(
                Probe(question["prompt"], names[0], tuple(names[1:]))
                for questions in nested(record["locality"]).values()
                for question in questions
                for names in _answers(question["ground_truth"])[:1]
            ),
        )


def _answers(value: Any) -> Answers:
    """Bring a text, a list of texts, or a list of texts with their aliases into one form; blank ones are dropped."""
    given = [value] if isinstance(value, str) else value or []
    groups = [[one] if isinstance(one, str) else one for one in given]
    return [names for names in ([name for name in group if name.strip()] for group in groups) if names]
