"""Questions that a model answers wrongly or cannot know: QAEdit and WikiBigEdit."""

from __future__ import annotations

from collections.abc import Iterator

from lke_lightning.data.fields import Fields
from lke_lightning.data.records import RecordFile, marked
from lke_lightning.edits import EditRequest, Probe


class QAEdit(RecordFile):
    """QAEdit (arXiv 2502.11177): questions of three question-answering sets that a model gets wrong.

    The five unrelated questions of a record become its neighborhood. There is no original answer, so use accuracy.
    Irregular: if a subject occurs in its question more than once, the last occurrence is marked.
    """

    def edits(self, record: Fields) -> Iterator[EditRequest]:
        """Read a record; its id is the set and the number in the set, which alone repeats."""
        prompt, subject = record.text("prompt"), record.text("subject")
        if prompt.count(subject) > 1:
            self.note("the subject occurs several times: the last occurrence is marked")
            prompt = marked(prompt, subject)
        yield EditRequest.about(
            prompt,
            subject,
            id=f"{record.name('source')}-{record.name('id')}",
            target=record.text("target"),
            paraphrases=(record.text("rephrase"),),
            neighborhood=tuple(
                Probe(other.text("loc"), other.text("loc_ans")) for other in record.parts("locality", needed=True)
            ),
        )


class WikiBigEdit(RecordFile):
    """One file of WikiBigEdit (arXiv 2503.05683): what changed in Wikidata within a month, as questions.

    `rephrase` and `personas` become paraphrases, `loc` the neighborhood and `mhop` a question that needs other facts.
    The same question in a later file replaces the earlier answer. Irregular: a record without question or answer is
    left out; if the subject does not occur exactly once, the edit is made at the question's last token.
    """

    def edits(self, record: Fields) -> Iterator[EditRequest]:
        """Read a record."""
        prompt, answer, subject = record.find("update"), record.find("ans"), record.find("subject")
        if prompt is None or answer is None:
            self.note("no question or no answer: left out")
            return
        if subject is None or prompt.count(subject) != 1:
            self.note("the subject does not occur exactly once in the question: edited at the question's last token")
            subject = None
        yield EditRequest.about(
            prompt,
            subject,
            id=str(record.index),
            target=answer,
            paraphrases=tuple(filter(None, (record.find("rephrase"), record.find("personas")))),
            neighborhood=_asked(record, "loc", "loc_ans"),
            two_hop=_asked(record, "mhop", "mhop_ans"),
        )


def _asked(record: Fields, question: str, answer: str) -> tuple[Probe, ...]:
    asked, reply = record.find(question), record.find(answer)
    return (Probe(asked, reply),) if asked and reply else ()
