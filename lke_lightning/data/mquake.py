"""MQuAKE: several edits, and questions that need all of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace

from lke_lightning.data.fields import Fields
from lke_lightning.data.records import RecordFile, naming, records
from lke_lightning.edits import EditError, EditRequest, Probe, check_list, check_text

Fact = tuple[str, str]
"""Subject and relation."""
Triple = tuple[str, ...]
"""Subject, relation and object."""


@dataclass(frozen=True)
class _Case:
    """The questions of a case, the facts that it edits, and those that its reasoning uses."""

    questions: tuple[Probe, ...]
    changes: list[Triple]
    chain: list[Triple]


class MQuAKE(RecordFile):
    """A file of MQuAKE (arXiv 2305.14795) or of a derived data set: MQuAKE-CF, MQuAKE-hard, AKEW's MQuAKE-CF.

    Each edit of a case becomes one edit, with its question as a paraphrase. The case's multi-hop questions are attached
    to the one of its edits that comes last in the stream (`two_hop`), so that all are made when they are asked; that
    does not hold with a `shuffle_seed`.

    Many cases share edits. Irregular, where all cases are edited into one model:
    a fact that an earlier case edits in the same way is edited once;
    a case that edits it differently is left out;
    if the reasoning of a case uses a fact that another case changes, its edits stay, but its questions, whose answers
    are no longer correct, are left out.

    Args:
        path: see `RecordFile`.
        batch_size: see `RecordFile`.
        limit: see `RecordFile`.
        shuffle_seed: see `RecordFile`.
        consistent: leave cases out whose reasoning uses a fact that any other case changes, edits and all: what is left
            of MQuAKE-CF-3k is MQuAKE-2002 (arXiv 2401.10471).
        by_case: each case is a time step of its own, with all of its edits and questions, whatever the others change:
            for `singly`, which makes each case on the unedited model, as the publications do. A batch must hold a case.
    """

    def __init__(
        self,
        path: str,
        batch_size: int = 100,
        limit: int | None = None,
        shuffle_seed: int | None = None,
        consistent: bool = False,
        by_case: bool = False,
    ) -> None:
        super().__init__(path, batch_size, limit, shuffle_seed)
        if by_case and (shuffle_seed is not None or consistent):
            raise EditError("data.by_case keeps all cases, in order: leave data.shuffle_seed and data.consistent out")
        self.consistent, self.by_case = consistent, by_case

    def read(self) -> Iterator[EditRequest]:
        """Yield the edits of all cases; the whole file is read first, unless it goes case by case."""
        if self.by_case:
            yield from self._whole_cases()
            return
        made: dict[Fact, EditRequest] = {}
        cases: list[tuple[_Case, list[Fact]]] = []
        for edits, case in self._consistent() if self.consistent else self._cases():
            if any(made.get(edit.fact, edit).target != edit.target for edit in edits):
                self.note("an earlier case edits a fact of this case in another way: the case is left out")
                continue
            for edit in edits:
                if edit.fact in made:
                    self.note("an earlier case makes the same edit: made once")
                made.setdefault(edit.fact, edit)
            cases.append((case, [edit.fact for edit in edits]))

        changed = {(subject, relation): new for case, _ in cases for subject, relation, new in case.changes}
        place = {fact: number for number, fact in enumerate(made)}
        asked: dict[Fact, tuple[Probe, ...]] = {}
        for case, facts in cases:
            if any(changed.get((subject, relation), new) != new for subject, relation, new in case.chain):
                self.note("another case changes a fact that this case's questions need: the questions are left out")
                continue
            last = max(facts, key=place.__getitem__)
            asked[last] = asked.get(last, ()) + case.questions
        self.report()
        for fact, edit in made.items():
            yield replace(edit, two_hop=asked.get(fact, ()))

    def _whole_cases(self) -> Iterator[EditRequest]:
        self.edges = []
        for edits, case in self._cases():
            if len(edits) > self.batch_size:
                raise EditError(f"a case has {len(edits)} edits: data.by_case needs a data.batch_size of that at least")
            self.edges.append(len(edits) + (self.edges[-1] if self.edges else 0))
            yield from (*edits[:-1], replace(edits[-1], two_hop=case.questions))

    def _cases(self) -> Iterator[tuple[list[EditRequest], _Case]]:
        """Yield the edits of each case, and what else it has."""
        for index, record in enumerate(records(self.path)):
            with naming(self.path, index):
                fields = Fields(record, index=index)
                edits = list(self.edits(fields))
                case = _Case(_questions(fields), _triples(fields, "edit"), _triples(fields, "new"))
            yield edits, case

    def _consistent(self) -> Iterator[tuple[list[EditRequest], _Case]]:
        """Yield the cases whose reasoning agrees with the edits of all cases.

        Raises:
            EditError: the file does not say which facts the cases use.
        """
        cases, changes = list(self._cases()), defaultdict(set)
        for _, case in cases:
            if not case.chain:
                raise EditError(f"{self.path} does not say which facts its cases use (orig): leave data.consistent out")
            for subject, relation, new in case.changes:
                changes[subject, relation].add(new)
        for edits, case in cases:
            if all(changes.get((subject, relation), {new}) == {new} for subject, relation, new in case.chain):
                yield edits, case
            else:
                self.note("another case changes a fact that this case's questions need: the case is left out")

    def edits(self, record: Fields) -> Iterator[EditRequest]:
        """Yield the edits of one case, without its multi-hop questions."""
        aliases = {hop.text("question"): hop.texts("answer_alias") for hop in record.parts("new_single_hops")}
        for i, edit in enumerate(record.parts("requested_rewrite", needed=True)):
            yield EditRequest(
                id=f"{record.name('case_id')}.{i}",
                prompt=edit.text("prompt"),
                subject=edit.text("subject"),
                target=edit.part("target_new").text("str"),
                original=edit.part("target_true").text("str"),
                relation=edit.text("relation_id"),
                paraphrases=(edit.text("question"),),
                aliases=aliases.get(edit.text("question"), ()),
            )


def _questions(case: Fields) -> tuple[Probe, ...]:
    answer, aliases = case.text("new_answer"), case.texts("new_answer_alias", needed=True)
    return tuple(Probe(question, answer, aliases) for question in case.texts("questions", needed=True))


def _triples(case: Fields, kind: str) -> list[Triple]:
    """Return subject, relation and object of a case's `edit`s, or its `new` chain of facts, as Wikidata names them."""
    if "orig" not in case:
        return []
    found: list[Triple] = []
    for entry, path in case.part("orig").entries(f"{kind}_triples"):
        triple = check_list(entry, f"field {path!r}", check_text)
        if len(triple) != 3:
            raise EditError(f"field {path!r} has {len(triple)} entries, not subject, relation and object")
        found.append(triple)
    return found
