"""Questions to a model that answers them wrongly, or could not know: QAEdit and WikiBigEdit."""

from __future__ import annotations

from collections.abc import Iterator

from lke_lightning.data.records import Record, RecordFile, marked, nested
from lke_lightning.edits import EditRequest, Probe


class QAEdit(RecordFile):
    """QAEdit (arXiv 2502.11177): questions of three question-answering sets that a model gets wrong.

    The five unrelated questions of a record become its neighbourhood. There is no original answer, so accuracy is what
    counts. Irregular: a subject that occurs in its question more than once is marked where it stands last.
    """

    def edits(self, record: Record) -> Iterator[EditRequest]:
        """Read a record; its id is the set and the number in the set, which alone repeats."""
        prompt, subject = record["prompt"], record["subject"]
        if prompt.count(subject) > 1:
            self.note("the subject occurs several times: marked where it stands last")
            prompt = marked(prompt, subject)
        yield EditRequest.about(
            prompt,
            subject,
            id=f"{record['source']}-{record['id']}",
            target=record["target"],
            paraphrases=(record["rephrase"],),
            neighborhood=tuple(Probe(other["loc"], other["loc_ans"]) for other in nested(record["locality"])),
        )


class WikiBigEdit(RecordFile):
    """One file of WikiBigEdit (arXiv 2503.05683): what changed in Wikidata within a month, as questions.

    `rephrase` and `personas` become paraphrases, `loc` the neighbourhood and `mhop` a question that needs other facts.
    The same question in a later file replaces the earlier answer. Irregular: a record without question or answer is
    left out; where the subject is not spelled in the question just once, the edit is made at the question's last token.
    """

    def edits(self, record: Record) -> Iterator[EditRequest]:
        """Read a record."""
        if not (record.get("update", "").strip() and record.get("ans", "").strip()):
            self.note("no question or no answer: left out")
            return
        prompt, subject = record["update"], record.get("subject", "")
        if not subject or prompt.count(subject) != 1:
            self.note("the subject is not in the question just once: edited at the question's last token")
            subject = ""
        yield EditRequest.about(
            prompt,
            subject or None,
            id=str(record["index"]),
            target=record["ans"],
            paraphrases=tuple(record[name] for name in ("rephrase", "personas") if record.get(name)),
            neighborhood=_asked(record, "loc", "loc_ans"),
            two_hop=_asked(record, "mhop", "mhop_ans"),
        )


def _asked(record: Record, question: str, answer: str) -> tuple[Probe, ...]:
    return (Probe(record[question], record[answer]),) if record.get(question) and record.get(answer) else ()
