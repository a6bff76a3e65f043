"""Several edits of one subject, in one batch or in separate ones. `python -m benchmarks.same_subject`.

They share a key wherever the text up to the subject is the same, and ask it for different outputs, so that a
least-squares update gives all of them their mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import seed_everything
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks import harness
from lke_lightning.api import edit
from lke_lightning.configuration import configs
from lke_lightning.data.formats import CounterFact, DemoWorld
from lke_lightning.edits import SLOT, EditRequest
from lke_lightning.evaluation.summary import summarize
from lke_lightning.evaluation.teacher_forced import score
from lke_lightning.model.language_model import resolve

Group = tuple[EditRequest, ...]
"""Edits of one subject, each of another relation."""


def groups_of(requests: Sequence[EditRequest], size: int, count: int) -> list[Group]:
    """Return the first `count` subjects of which so many relations are edited, with so many of their edits."""
    by_subject: dict[str | None, dict[str | None, EditRequest]] = {}
    for request in requests:
        by_subject.setdefault(request.subject, {}).setdefault(request.relation, request)
    groups = [tuple(found.values())[:size] for found in by_subject.values() if len(found) >= size]
    return groups[:count]


def groups_from_templates(requests: Sequence[EditRequest], size: int, count: int) -> list[Group]:
    """Give each of the first `count` subjects the prompts and targets of the edits behind its own.

    For data with few subjects of several relations. The paraphrases name another subject, so they are dropped; of what
    is added the model need not know any original answer.
    """
    groups = []
    for start, own in enumerate(requests[:count]):
        others: dict[str | None, EditRequest] = {}
        for request in (*requests[start + 1 :], *requests[:start]):
            if request.relation != own.relation:
                others.setdefault(request.relation, request)
        chosen = [own, *list(others.values())[: size - 1]]
        groups.append(tuple(replace(r, id=f"{own.id}/{r.id}", subject=own.subject, paraphrases=()) for r in chosen))
    return groups


def together(groups: Sequence[Group]) -> list[EditRequest]:
    """Order edits so that a batch holds all of a subject's."""
    return [request for group in groups for request in group]


def apart(groups: Sequence[Group]) -> list[EditRequest]:
    """Order edits so that a batch, of as many edits as there are groups or fewer, holds one of each subject."""
    return [request for relation in zip(*groups, strict=True) for request in relation]


def run(name: str, pretrained: str, config: str, groups: Sequence[Group], batch_size: int) -> dict[str, Any]:
    """Edit a fresh model in both orders, in as many batches of as many edits each, and score all edits at the end."""
    size = len(groups[0])
    shared = sum(len({request.in_context(SLOT)[1] for request in group}) == 1 for group in groups)
    row: dict[str, Any] = {"model": name, "subjects": len(groups), "relations": size, "batch_size": batch_size,
                           "subjects_with_one_key": shared}  # fmt: skip
    orders: dict[str, Callable[[Sequence[Group]], list[EditRequest]]] = {"one batch": together, "separate": apart}
    for order, arrange in orders.items():
        seed_everything(0, verbose=False)
        folder = resolve(pretrained)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        requests = arrange(groups)
        result = edit(model, AutoTokenizer.from_pretrained(folder), requests, batch_size=batch_size, config=config)
        scored = dict(zip([r.id for r in requests], score(result.editor.language_model, requests), strict=True))
        holds = [all(bool(scored[request.id]["efficacy"][0, 2]) for request in group) for group in groups]
        row[order] = {**summarize(scored.values()), "subjects_with_all_first_choice": round(sum(holds) / len(holds), 4)}
        print(name, size, order, row[order], flush=True)
    return row


def main(subjects: int = 20, batch_size: int = 20, pretrained: str | None = None, facts: str | None = None) -> None:
    """Measure what two and three edits of one subject lose by sharing a batch.

    Args:
        subjects: how many are edited.
        batch_size: edits of one batch; at most `subjects`, so that separate edits of a subject share none.
        pretrained: a second model beside the demo model, with the hyperparameters of tests/conf/cf-llama-9m.
        facts: a file of CounterFact records that it knows.
    """
    runs, world = [], DemoWorld()
    world.setup("fit")
    for size in (2, 3):
        groups = groups_of(world.requests, size, subjects)
        runs.append(run("demo", "demo", str(configs() / "method" / "encore.yaml"), groups, batch_size))
    if pretrained and facts:
        data = CounterFact(facts)
        data.setup("fit")
        for size in (2, 3):
            groups = groups_from_templates(data.requests, size, subjects)
            config = "tests/conf/cf-llama-9m/encore.yaml"
            runs.append(run("cf-llama-9m, templates of other relations", pretrained, config, groups, batch_size))
    harness.report("same-subject", {"runs": runs})


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main, as_positional=False)
