"""The demo world, the two benchmarks that most editors report, and your own records."""

from __future__ import annotations

from collections.abc import Iterator

from lke_lightning.data.records import Record, RecordFile, nested
from lke_lightning.data.stream import EditStream
from lke_lightning.demo.world import make_world
from lke_lightning.edits import EditError, EditRequest, Probe


class DemoWorld(EditStream):
    """The world that comes with the package: 1,800 invented facts that the demo model knows.

    Args:
        world_seed: seed of the world; the demo model knows world 0.
        batch_size: edits of one training step; `None`: 20.
        limit: edit only this many, from the start; `None`: 200.
        shuffle_seed: shuffle with this seed first.
    """

    # None, because jsonargparse takes a class's defaults for given values and hands them on to the next class chosen
    def __init__(
        self,
        world_seed: int = 0,
        batch_size: int | None = None,
        limit: int | None = None,
        shuffle_seed: int | None = None,
    ) -> None:
        super().__init__(20 if batch_size is None else batch_size, 200 if limit is None else limit, shuffle_seed)
        self.world_seed = world_seed

    def read(self) -> Iterator[EditRequest]:
        """Yield the world's records."""
        return map(counterfact_request, make_world(self.world_seed).records())


class CounterFact(RecordFile):
    """`counterfact.json` or `multi_counterfact.json` as published with ROME and MEMIT."""

    def edits(self, record: Record) -> Iterator[EditRequest]:
        """Read a record in CounterFact's schema."""
        yield counterfact_request(record)


class ZsRE(RecordFile):
    """`zsre_mend_eval.json` as published with MEND: questions with an answer, a rephrasing and an unrelated question.

    As ROME and MEMIT do, the target is the first of `answers` (the others are aliases), the prompt is the question with
    the subject marked, and the unrelated question with its reference answer is the neighbourhood. There is no original
    target, so success and magnitude are undefined and accuracy is what counts.

    Args:
        path: the file, or the name of a hub dataset with the same fields.
        batch_size: edits of one training step.
        limit: edit only this many, from the start.
        shuffle_seed: shuffle with this seed first.
        counterfactual: teach the invented answer `alt` in the place of the true one, as MEND and EasyEdit do; the true
            one is then the original target. Portability questions (`zsre_mend_eval_portability_gpt4.json`) follow from
            `alt` and are read only then. Records without an `alt` are left out.
    """

    def __init__(
        self,
        path: str,
        batch_size: int = 100,
        limit: int | None = None,
        shuffle_seed: int | None = None,
        counterfactual: bool = False,
    ) -> None:
        super().__init__(path, batch_size, limit, shuffle_seed)
        self.counterfactual = counterfactual

    def edits(self, record: Record) -> Iterator[EditRequest]:
        """Read a record in MEND's schema."""
        true, *others = record["answers"]
        alt = record.get("alt", "").strip()
        if self.counterfactual and not alt:
            self.note("no invented answer: left out")
            return
        hop = nested(record.get("portability")) if self.counterfactual else None
        yield EditRequest.about(
            record["src"],
            record["subject"],
            id=str(record["index"]),
            target=alt if self.counterfactual else true,
            original=true if self.counterfactual else None,
            aliases=() if self.counterfactual else tuple(others),
            paraphrases=(record["rephrase"],),
            neighborhood=(Probe(record["loc"] + "?", record["loc_ans"]),),
            portability=(Probe(hop["New Question"], hop["New Answer"]),) if hop else (),
        )


class JsonLines(RecordFile):
    """Your own facts, one JSON object per line.

    Fields: `prompt` and `target`; optional `subject` (spelled in the prompt, or marked there by `{}`; without one the
    edit is made at the prompt's last token), `original` (what the model says today), `paraphrases` (list of prompts),
    `neighborhood` (list of {"prompt", "answer"}, or of prompts whose answer is `original`), `id`, `relation`,
    `weight` (how much the edit counts, 1 if not given), `aliases` (other wordings of the target), `portability` and
    `two_hop` (lists of {"prompt", "answer", "aliases"}; questions that follow from the edit alone, or with other
    facts), `generation` (prompts that are continued freely) and `references` (texts that continuations are compared
    with).
    """

    def edits(self, record: Record) -> Iterator[EditRequest]:
        """Read one of your records."""
        original = record.get("original")
        yield EditRequest.about(
            record["prompt"],
            record.get("subject"),
            id=str(record["index"] if record.get("id") is None else record["id"]),
            target=record["target"],
            original=original,
            relation=record.get("relation"),
            paraphrases=tuple(record.get("paraphrases") or ()),
            neighborhood=tuple(_probe(neighbor, original) for neighbor in nested(record.get("neighborhood")) or ()),
            weight=float(record.get("weight", 1)),
            aliases=tuple(record.get("aliases") or ()),
            portability=tuple(_probe(question) for question in record.get("portability") or ()),
            two_hop=tuple(_probe(question) for question in record.get("two_hop") or ()),
            generation=tuple(record.get("generation") or ()),
            references=tuple(record.get("references") or ()),
        )


def counterfact_request(record: Record) -> EditRequest:
    """Turn a record in CounterFact's schema into a request."""
    rewrite = record["requested_rewrite"]
    original = rewrite["target_true"]["str"]
    return EditRequest(
        id=str(record["case_id"]),
        prompt=rewrite["prompt"],
        subject=rewrite["subject"],
        target=rewrite["target_new"]["str"],
        original=original,
        relation=rewrite.get("relation_id"),
        paraphrases=tuple(record.get("paraphrase_prompts") or ()),
        neighborhood=tuple(Probe(prompt, original) for prompt in record.get("neighborhood_prompts") or ()),
        generation=tuple(record.get("generation_prompts") or ()),
        two_hop=tuple(Probe(hop["question"], hop["answer_new"]) for hop in record.get("two_hop") or ()),
    )


def _probe(given: Record | str, original: str | None = None) -> Probe:
    if isinstance(given, dict):
        return Probe(given["prompt"], given["answer"], tuple(given.get("aliases") or ()))
    if original is None:
        raise EditError('a neighbourhood prompt needs its answer: give {"prompt", "answer"}, or `original`')
    return Probe(given, original)
