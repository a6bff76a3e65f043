"""Edits whose target is a text of sentences: UnKE, AKEW and EditEverything.

None of them has the model's original answers, so use accuracy and generated answers. The whole text is the target of
stage one; methods that write an answer at one position were not designed for that.
"""

from __future__ import annotations

from collections.abc import Iterator

from lke_lightning.data.fields import Fields
from lke_lightning.data.records import RecordFile
from lke_lightning.edits import SLOT, EditError, EditRequest, Probe


class UnKE(RecordFile):
    """UnKE (arXiv 2405.15349): questions with an answer of about a hundred words.

    There is no subject, so the edit is made at the question's last token. The questions about parts of the answer
    become portability.
    """

    def edits(self, record: Fields) -> Iterator[EditRequest]:
        """Read a record."""
        questions, answers = record.texts("sub_question", needed=True), record.texts("sub_answer", needed=True)
        if len(questions) != len(answers):
            raise EditError(f"there are {len(questions)} of 'sub_question' and {len(answers)} of 'sub_answer'")
        yield EditRequest(
            id=record.name("id"),
            prompt=record.text("question"),
            target=record.text("answer"),
            paraphrases=(record.text("para_question"),),
            portability=tuple(map(Probe, questions, answers)),
        )


class AKEW(RecordFile):
    """AKEW's unstructured edits (arXiv 2402.18909): a short text that states a fact, as the answer to a question.

    Every edit of a case is one edit; the statements in the text become portability. `MQuAKE` reads the same
    file as structured edits with multi-hop questions. Irregular: a question that an earlier case asked with the same
    text is edited once; if a subject does not occur exactly once in its question, the edit is at the last token; a
    statement whose prompt has no place for its subject is left out.
    """

    def read(self) -> Iterator[EditRequest]:
        """Yield the edits of all cases, repeated ones once."""
        known: set[tuple[str, str]] = set()
        for request in super().read():
            if (request.text, request.target) in known:
                self.note("an earlier case makes the same edit: made once")
                continue
            known.add((request.text, request.target))
            yield request

    def edits(self, record: Fields) -> Iterator[EditRequest]:
        """Read a case."""
        for i, edit in enumerate(record.parts("requested_rewrite", needed=True)):
            question, subject = edit.text("question"), edit.text("subject")
            is_clear = question.count(subject) == 1
            if not is_clear:
                self.note(
                    "the subject does not occur exactly once in the question: edited at the question's last token"
                )
            yield EditRequest.about(
                question,
                subject if is_clear else None,
                id=f"{record.name('case_id')}.{i}",
                target=edit.text("fact_new_uns"),
                portability=tuple(self._statements(edit)),
            )

    def _statements(self, edit: Fields) -> Iterator[Probe]:
        for statement in edit.parts("unsfact_triplets_GPT"):
            prompt, target = statement.find("prompt") or "", statement.find("target")
            if prompt.count(SLOT) == 1 and target:
                yield Probe(prompt.replace(SLOT, statement.text("subject")), target)
            else:
                self.note("a statement has no place for its subject, or no end: left out")


class EditEverything(RecordFile):
    """EditEverything, published with AnyEdit (arXiv 2502.05628): long answers in mathematics, code, news, poetry ...

    There is no subject, so the edit is made at the question's last token. Irregular: a question with braces is left
    out, because braces mark subjects; of repeated questions, the last answer wins.
    """

    def edits(self, record: Fields) -> Iterator[EditRequest]:
        """Read a record."""
        if set("{}") & set(record.text("question")):
            self.note("the question has braces: left out")
            return
        yield EditRequest(id=record.name("id"), prompt=record.text("question"), target=record.text("answer"))
