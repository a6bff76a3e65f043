"""Expansions beside `Whole`: chunks of a long answer, the last token, a neighbour; and how units are found in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from lightning.pytorch.utilities import rank_zero_warn

from lke_lightning.distributed import Team
from lke_lightning.edits import SLOT, EditRequest, Probe, check_number
from lke_lightning.model.batching import within_memory
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.model.targets import Targets
from lke_lightning.model.tokens import Row
from lke_lightning.model.units import Expansion, Other, Unit, Whole
from lke_lightning.stage_one.rows import RequestRows

MAX_TOKENS = 16384
"""How many tokens of possible neighbours run at once."""


class Chunks(Expansion):
    """AnyEdit's windows of a long answer (arXiv 2502.05628): each has a change at the last token before it.

    A change is found for its window's tokens alone, with the targets of the windows before it in their places. Where
    two requests are alike up to a slot they have one key there, and share the change, whatever `share_targets` says.
    Where the subject ends does not matter.

    Args:
        width: tokens of a window; shorter ones are easier to reach, and are more places to write.
        overlap: how many tokens of a window the next one asks for again.
    """

    in_contexts: ClassVar[bool] = False

    def __init__(self, width: int = 40, overlap: int = 0) -> None:
        check_number("Chunks.width", width, at_least=1)
        check_number("Chunks.overlap", overlap, at_least=0, below=width)
        self.width, self.overlap = width, overlap

    def units(self, prompt: Row, answer: int) -> list[Unit]:
        """Cut the answer into windows; the last one may be short."""
        starts = range(0, max(1, answer - self.overlap), self.width - self.overlap)
        return [Unit(len(prompt.ids) - 1 + start, start, min(start + self.width, answer)) for start in starts]


class LastToken(Expansion):
    """One change at the last token of the prompt, wherever the subject ends (GRACE, arXiv 2211.11031)."""

    in_contexts: ClassVar[bool] = False

    def units(self, prompt: Row, answer: int) -> list[Unit]:
        """Ask for the whole answer there."""
        return [Unit(len(prompt.ids) - 1, 0, answer)]


class Neighbours(Whole):
    """OverEdit's neighbour (arXiv 2503.11895): the change is also added at another subject, whose answer shall stay.

    It is the first of a request's `neighbours`, or else of its neighbourhood, that is asked for in the words of the
    edited prompt, so that its subject is known, and whose answer is the model's first choice now. It counts as one more
    context, and stands in the first of those that are sampled. Keys are those without it.
    """

    def check(self, requests: Sequence[EditRequest], contexts: Sequence[str]) -> None:
        """Warn where there is no neighbour, or one that the scorecard measures too."""
        with_some = [request for request in requests if _alike(request)]
        if len(with_some) < len(requests):
            rank_zero_warn(
                f"{len(requests) - len(with_some)} of {len(requests)} edits are made without a neighbour: none of "
                "their `neighbours` or `neighborhood` prompts is the edited prompt with another subject"
            )
        seen = sum(not request.neighbours for request in with_some)
        if seen:
            rank_zero_warn(
                f"{seen} edits use a neighborhood prompt that the scorecard measures, which flatters it: hold some out "
                "(CounterFact: --data.init_args.hold_out, your own facts: `neighbours`)"
            )

    def others(
        self, model: LanguageModel, requests: Sequence[EditRequest], contexts: Sequence[str]
    ) -> list[tuple[Other, ...]]:
        """Choose the neighbours by one pass over all that could be; processes divide the requests."""
        team = Team.of(model.network)
        possible = [_alike(request) for request in team.share(requests)]
        is_known = iter(_are_first_choices(model, [probe for found in possible for probe, _ in found]))
        known = [[pair for pair, holds in [(pair, next(is_known)) for pair in found] if holds] for found in possible]
        context = contexts[min(1, len(contexts) - 1)]
        return [tuple(_row(model, probe, upto, context) for probe, upto in found[:1]) for found in team.gather(known)]


def cut(rows: RequestRows, by: Expansion, others: tuple[Other, ...]) -> list[RequestRows]:
    """Cut a request's rows into those of its units; the essence is kept by one at the request's own slot."""
    pairs = list(zip(rows.contexts, rows.targets, strict=True))
    prompts = [Row(row.ids[: len(row.ids) - len(target) + 1], row.slot) for row, target in pairs]
    in_contexts = [by.units(prompt, len(target)) for prompt, (_, target) in zip(prompts, pairs, strict=True)]
    return [
        replace(
            rows,
            contexts=tuple(
                Row(row.ids[: len(prompt.ids) + unit.stop - 1], unit.slot)
                for unit, prompt, (row, _) in zip(unit_in, prompts, pairs, strict=True)
            ),
            targets=tuple(target[unit.start : unit.stop] for unit, (_, target) in zip(unit_in, pairs, strict=True)),
            essence=rows.essence if unit_in[0].slot == rows.contexts[0].slot else None,
            others=others,
        )
        for unit_in in zip(*in_contexts, strict=True)
    ]


def in_turn(units: Sequence[Sequence[RequestRows]], find: Callable[[list[RequestRows], list[int]], Targets]) -> Targets:
    """Find the first units of all requests together, then the second ones behind their targets, and so on.

    Args:
        units: the rows of the units of each request; of several, each has but one context.
        find: finds the targets of rows, given with the places of their requests, as if each were a whole request.
    """
    turns = max(len(own) for own in units)
    if turns == 1:
        return find([own[0] for own in units], list(range(len(units))))
    found: list[list[Targets]] = [[] for _ in units]
    for turn in range(turns):
        places = [place for place, own in enumerate(units) if len(own) > turn]
        rows = []
        for place in places:
            slots = [unit.contexts[0].slot for unit in units[place]]
            held = tuple((slot, earlier.vectors[0]) for slot, earlier in zip(slots, found[place], strict=False))
            rows.append(replace(units[place][turn], held=(held,)))
        targets = find(rows, places)
        for number, place in enumerate(places):
            found[place].append(targets.chosen([number]))
    return Targets.of_units(found)


def _alike(request: EditRequest) -> list[tuple[Probe, str]]:
    """Return the possible neighbours in the words of the edited prompt, each with its text up to its subject's end."""
    pairs = [(probe, request.upto_subject(probe.prompt)) for probe in request.neighbours or request.neighborhood]
    return [(probe, upto) for probe, upto in pairs if upto is not None]


def _row(model: LanguageModel, probe: Probe, upto: str, context: str) -> Other:
    [row] = model.text.rows([(context.replace(SLOT, probe.prompt.rstrip()), context.replace(SLOT, upto))])
    [(_, answer)] = model.text.continuations([(probe.prompt, probe.answer)])
    return Row(row.ids + answer[:-1], row.slot), answer


@torch.no_grad()
def _are_first_choices(model: LanguageModel, probes: Sequence[Probe]) -> list[bool]:
    """Tell for each probe whether every token of its answer is the most probable one."""

    def run(part: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> list[bool]:
        batch = model.text.pad([Row(prompt + answer[:-1], len(prompt) - 1) for prompt, answer in part], model.device)
        reads = [(i, len(p) - 1 + j, token) for i, (p, answer) in enumerate(part) for j, token in enumerate(answer)]
        rows, positions, tokens = torch.tensor(reads, device=model.device).T
        wrong = torch.zeros(len(part), device=model.device)
        wrong.index_add_(0, rows, (model.logits(batch, rows, positions).argmax(1) != tokens).to(wrong))
        return (wrong == 0).tolist()

    pairs = model.text.continuations([(probe.prompt, probe.answer) for probe in probes])
    found, _ = within_memory(run, pairs, lambda pair: len(pair[0]) + len(pair[1]), MAX_TOKENS)
    return [is_known for part in found for is_known in part]
