"""The demo world, and the two most common benchmarks, CounterFact and zsRE."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from lke_lightning.data.fields import Fields
from lke_lightning.data.records import RecordFile
from lke_lightning.data.stream import EditStream
from lke_lightning.demo.world import make_world
from lke_lightning.edits import EditError, EditRequest, Probe, check_number


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
        return (counterfact_request(Fields(record)) for record in make_world(self.world_seed).records())


class CounterFact(RecordFile):
    """`counterfact.json` or `multi_counterfact.json` as published with ROME and MEMIT.

    Args:
        path: the file, or the name of a hub dataset with the same fields.
        batch_size: edits of one training step.
        limit: edit only this many, from the start.
        shuffle_seed: shuffle with this seed first.
        hold_out: take so many of a record's neighborhood prompts, at most, that are in the words of its own prompt, out
            of what is scored, and let the edit be made with them (`Neighbours`).
    """

    def __init__(
        self,
        path: str,
        batch_size: int = 100,
        limit: int | None = None,
        shuffle_seed: int | None = None,
        hold_out: int = 0,
    ) -> None:
        check_number("CounterFact.hold_out", hold_out, at_least=0)
        super().__init__(path, batch_size, limit, shuffle_seed)
        self.hold_out = hold_out

    def edits(self, record: Fields) -> Iterator[EditRequest]:
        """Read a record in CounterFact's schema."""
        request = counterfact_request(record)
        alike = [probe for probe in request.neighborhood if request.upto_subject(probe.prompt) is not None]
        held = alike[: self.hold_out]
        scored = tuple(probe for probe in request.neighborhood if probe not in held)
        yield replace(request, neighborhood=scored, neighbours=tuple(held)) if held else request


class ZsRE(RecordFile):
    """`zsre_mend_eval.json` as published with MEND: questions with an answer, a rephrasing and an unrelated question.

    As ROME and MEMIT do, the target is the first of `answers` (the others are aliases), the prompt is the question with
    the subject marked, and the unrelated question with its reference answer is the neighborhood. There is no original
    target, so success and magnitude are undefined: use accuracy.

    Args:
        path: the file, or the name of a hub dataset with the same fields.
        batch_size: edits of one training step.
        limit: edit only this many, from the start.
        shuffle_seed: shuffle with this seed first.
        counterfactual: teach the counterfactual answer `alt` instead of the true one, as MEND and EasyEdit do; the true
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

    def edits(self, record: Fields) -> Iterator[EditRequest]:
        """Read a record in MEND's schema."""
        answers = record.texts("answers", needed=True)
        if not answers:
            raise EditError("field 'answers' is an empty list")
        true, alt = answers[0], record.find("alt")
        if self.counterfactual and alt is None:
            self.note("no counterfactual answer: left out")
            return
        has_hop = self.counterfactual and "portability" in record
        hop = (record.part("portability"),) if has_hop else ()
        yield EditRequest.about(
            record.text("src"),
            record.text("subject"),
            id=str(record.index),
            target=alt if self.counterfactual else true,
            original=true if self.counterfactual else None,
            aliases=() if self.counterfactual else answers[1:],
            paraphrases=(record.text("rephrase"),),
            neighborhood=(Probe(record.text("loc") + "?", record.text("loc_ans")),),
            portability=tuple(Probe(asked.text("New Question"), asked.text("New Answer")) for asked in hop),
        )


def counterfact_request(record: Fields) -> EditRequest:
    """Turn a record in CounterFact's schema into a request."""
    rewrite = record.part("requested_rewrite")
    original = rewrite.part("target_true").text("str")
    return EditRequest(
        id=record.name("case_id"),
        prompt=rewrite.text("prompt"),
        subject=rewrite.text("subject"),
        target=rewrite.part("target_new").text("str"),
        original=original,
        relation=rewrite.find("relation_id"),
        paraphrases=record.texts("paraphrase_prompts"),
        neighborhood=tuple(Probe(prompt, original) for prompt in record.texts("neighborhood_prompts")),
        generation=record.texts("generation_prompts"),
        two_hop=tuple(Probe(hop.text("question"), hop.text("answer_new")) for hop in record.parts("two_hop")),
    )
