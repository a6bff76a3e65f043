"""MQuAKE: several edits, and questions that need all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from lke_lightning.data.records import Record, RecordFile, naming, present, records
from lke_lightning.edits import EditRequest, Probe

Fact = tuple[str, str]
"""Subject and relation."""


class MQuAKE(RecordFile):
    """A file of MQuAKE (arXiv 2305.14795) or of one made from it: MQuAKE-CF, MQuAKE-hard, AKEW's MQuAKE-CF.

    Each edit of a case becomes one edit, with its question as a paraphrase. The case's multi-hop questions are attached
    to the one of its edits that comes last in the stream (`two_hop`), so that all are made when they are asked; that
    does not hold with a `shuffle_seed`.

    Many cases share edits. Irregular, where all cases are edited into one model:
    a fact that an earlier case edits in the same way is edited once;
    a case that edits it in another way is left out;
    of a case whose reasoning passes through a fact that another case changes, the edits stay and the questions, whose
    answers do not hold any more, are left out.
    """

    def read(self) -> Iterator[EditRequest]:
        """Yield the edits of all cases; the whole file is read first."""
        made: dict[Fact, EditRequest] = {}
        cases: list[tuple[Record, list[Fact]]] = []
        for index, record in enumerate(records(self.path)):
            case = present(index, record)
            with naming(self.path, index, record):
                edits = list(self.edits(case))
                questions = _questions(case)
            if any(made.get(edit.fact, edit).target != edit.target for edit in edits):
                self.note("an earlier case edits a fact of this case in another way: the case is left out")
                continue
            for edit in edits:
                if edit.fact in made:
                    self.note("an earlier case makes the same edit: made once")
                made.setdefault(edit.fact, edit)
            cases.append((case | {"probes": questions}, [edit.fact for edit in edits]))

        changed = {(subject, relation): new for case, _ in cases for subject, relation, new in _triples(case, "edit")}
        place = {fact: number for number, fact in enumerate(made)}
        asked: dict[Fact, tuple[Probe, ...]] = {}
        for case, facts in cases:
            if any(changed.get((subject, relation), new) != new for subject, relation, new in _triples(case, "new")):
                self.note("another case changes a fact that this case's questions need: the questions are left out")
                continue
            last = max(facts, key=place.__getitem__)
            asked[last] = asked.get(last, ()) + case["probes"]
        self.tell()
        for fact, edit in made.items():
            yield dataclasses.replace(edit, two_hop=asked.get(fact, ()))

    def edits(self, record: Record) -> Iterator[EditRequest]:
        """Yield the edits of one case, without its multi-hop questions."""
        aliases = {hop["question"]: tuple(hop["answer_alias"]) for hop in record.get("new_single_hops") or ()}
        for i, edit in enumerate(record["requested_rewrite"]):
            yield EditRequest(
                id=f"{record['case_id']}.{i}",
                prompt=edit["prompt"],
                subject=edit["subject"],
                target=edit["target_new"]["str"],
                original=edit["target_true"]["str"],
                relation=edit["relation_id"],
                paraphrases=(edit["question"],),
                aliases=aliases.get(edit["question"], ()),
            )


def _questions(case: Record) -> tuple[Probe, ...]:
    answer, aliases = case["new_answer"], tuple(case["new_answer_alias"])
    return tuple(Probe(question, answer, aliases) for question in case["questions"])


def _triples(case: Record, kind: str) -> list[list[str]]:
    """Return subject, relation and object of a case's `edit`s, or its `new` chain of facts, as Wikidata names them."""
    return (case.get("orig") or {}).get(f"{kind}_triples") or []
